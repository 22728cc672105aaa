"""What the operations of `vtc.ops` are held up to: plain compositions of torch, and loops as released code runs them.

The loops are written anew from descriptions of the released implementations; none of their code is here.
"""

import torch
from torch import Tensor

# ---------------------------------------------------------------- as released


def released_distances(features: Tensor) -> Tensor:
    """1 - cosine similarity of all tokens [N, D]: [N, N], in their own dtype (2503.02175, as released)."""
    unit = features / features.norm(dim=-1, keepdim=True)
    return 1 - unit @ unit.T


def released_picks(distances: Tensor, k: int) -> Tensor:
    """The greedy loop over them (2503.02175, as released): LongTensor [k].

    The first pick has the largest second smallest entry of its column, the smallest being its own. Each step gathers
    the rows of all picks so far, takes the minimum over them and its largest entry: k² N / 2 numbers in all.
    """
    picks = distances.topk(2, dim=0, largest=False).values[1].argmax()[None]
    for _ in range(1, k):
        nearest = distances.index_select(0, picks).min(dim=0).values
        picks = torch.cat([picks, nearest.argmax()[None]])
    return picks


def row_by_row(tensors: list[Tensor], index: Tensor) -> list[Tensor]:
    """Rows of a batch gathered one after another, and stacked (2410.17247, as released)."""
    return [
        torch.stack([tensor[min(row, len(tensor) - 1)][places] for row, places in enumerate(index)])
        for tensor in tensors
    ]


# ---------------------------------------------------------------- as one would write it


def gathered(tensors: list[Tensor], index: Tensor) -> list[Tensor]:
    """Each tensor indexed by itself."""
    row = torch.arange(len(index), device=index.device)[:, None]
    return [tensor[row if len(tensor) > 1 else 0, index] for tensor in tensors]


def running_minimum(features: Tensor, k: int, seed: Tensor | None) -> Tensor:
    """The greedy loop of tokens [N, D] with what is nearest kept up to date, over the matrix of all similarities."""
    unit = torch.nn.functional.normalize(features.float(), dim=-1)
    similarity = unit @ unit.T
    if seed is None:
        seed = similarity.fill_diagonal_(-torch.inf).amax(dim=-1).argmin()[None]
    similarity.fill_diagonal_(torch.inf)
    picks, nearest = [seed], similarity[seed[0]]
    for _ in range(1, k):
        picks.append(nearest.argmin()[None])
        nearest = torch.maximum(nearest, similarity.index_select(0, picks[-1])[0])
    return torch.cat(picks)


def all_gains(values: Tensor, k: int, tolerance: float) -> Tensor:
    """The greedy cover of demands by tokens [U, N], all gains computed anew for each pick."""
    values = values.float()
    covered, chosen, picks = values.new_zeros(len(values), 1), torch.zeros_like(values[0], dtype=torch.bool), []
    for _ in range(k):
        gain = (values - covered).relu().sum(dim=0)
        gain = torch.where(gain > tolerance, gain, 0.0).masked_fill(chosen, -1.0)
        pick = gain.argmax()[None]
        chosen[pick] = True
        covered = torch.maximum(covered, values[:, pick])
        picks.append(pick)
    return torch.cat(picks)


def pivoted(features: Tensor, k: int) -> Tensor:
    """The greedy MAP of Chen et al. (2018) over the matrix of all similarities of tokens [N, D]."""
    unit = torch.nn.functional.normalize(features.float(), dim=-1)
    similarity = unit @ unit.T
    left, explained, picks = unit.new_ones(len(unit)), unit.new_zeros(k, len(unit)), []
    for step in range(k):
        pick = left.argmax()[None]
        before = explained[:step, pick]
        row = (similarity[pick] - before.T @ explained[:step]) / left[pick].sqrt()
        explained[step] = row[0]
        left = left - row[0].square()
        left[pick] = -torch.inf
        picks.append(pick)
    return torch.cat(picks)


def peaks(x: Tensor, count: int, neighbours: int) -> list[Tensor]:
    """Density peaks of [G, M, D]: centres [G, count] and the centre [G, M] that each joins, from all distances."""
    apart = torch.cdist(x.float(), x.float(), compute_mode="donot_use_mm_for_euclid_dist") / x.shape[2] ** 0.5
    density = (-apart.topk(neighbours, dim=2, largest=False).values.square().mean(dim=2)).exp()
    denser = density[:, None] > density[:, :, None]
    nearest = apart.masked_fill(~denser, torch.inf).amin(dim=2)
    distance = torch.where(nearest.isinf(), apart.amax(dim=(1, 2))[:, None], nearest)
    centres = (density * distance).argsort(dim=1, descending=True, stable=True)[:, :count]
    member_of = apart.gather(2, centres[:, None].expand(-1, x.shape[1], -1)).argmin(dim=2)
    return [centres, member_of.scatter(1, centres, torch.arange(count, device=x.device).expand(len(x), -1))]


def probabilities(query: Tensor, key: Tensor, scaling: float, mask: Tensor | None) -> Tensor:
    """softmax(Q Kᵀ) of all heads [B, H, Q, S], as eager attention computes it; True may attend."""
    keys = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    logits = query @ keys.transpose(-1, -2) * scaling
    if mask is not None:
        logits = logits.masked_fill(~mask, torch.finfo(logits.dtype).min)
    return logits.softmax(dim=-1, dtype=torch.float32)


def densely_merged(x: Tensor, source: Tensor, target: Tensor, weight: Tensor, k: int) -> Tensor:
    """W · x of one image, with all of W written down."""
    mixing = x.new_zeros(k, x.shape[1])
    mixing.index_put_((target[0], source[0]), weight[0].to(x.dtype), accumulate=True)
    return (mixing @ x[0])[None]
