"""The only door to the operations that cost time: torch references for any device."""

import torch
from torch import Tensor

from vtc.reduction import Mixing

#: Up to this many entries (of float32: 256 MiB) all pairwise similarities are kept; beyond, each pick computes its row.
_MATRIX_ENTRIES = 2**26
_CHUNK = 512


@torch.no_grad()
def max_min(features: Tensor, k: int, seed: Tensor | None = None, rule: str = "max-min") -> Tensor:
    """Greedy diversity order under cosine distance, for G images at once.

    Each step picks the token that lies farthest from those picked before. How far a token is: "max-min" (greedy
    k-center): the distance to its nearest pick; "max-sum": the sum of its distances to all picks. Equal distances:
    lowest index. A smaller k gives a prefix. Rows that have no direction (zero, NaN, Inf) come last.

    Args:
        features: [G, N, D]; half precision is computed in float32.
        k: picks per image, 1 <= k <= N.
        seed: LongTensor [G], the first picks; None: the token whose nearest other token is farthest away.
        rule: "max-min" or "max-sum".

    Returns:
        LongTensor [G, k] in pick order, no duplicates.

    Raises:
        ValueError: k or rule out of range.
    """
    images, tokens, _ = features.shape
    if not 1 <= k <= tokens:
        raise ValueError(f"k={k} is not in 1…{tokens}, the tokens present")
    if rule not in ("max-min", "max-sum"):
        raise ValueError(f"rule={rule!r} is not one of 'max-min', 'max-sum'")
    unit, lost = _unit_rows(features)
    # `near` [G, N] is how close a token is to the picks; the smallest is next, a picked one is at +inf.
    near = unit.new_full((images, tokens), 0.0 if rule == "max-sum" else -torch.inf).masked_fill_(lost, 1e30)
    join = torch.add if rule == "max-sum" else torch.maximum
    fits = images * tokens * tokens <= _MATRIX_ENTRIES
    if images > 1 and not fits:
        seeds = [None] * images if seed is None else seed.split(1)
        return torch.cat([max_min(one, k, first, rule) for one, first in zip(features.split(1), seeds, strict=True)])
    if fits and (seed is None or images > 1 or 3 * k >= tokens):
        similarity = unit @ unit.transpose(1, 2)
        if seed is None:
            similarity.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
            seed = similarity.amax(dim=-1).masked_fill_(lost, 1e30).argmin(dim=-1)
        similarity.diagonal(dim1=1, dim2=2).fill_(torch.inf)  # so that a pick takes itself out
        return _greedy_from_matrix(similarity, near, k, seed, join)
    if seed is None:
        seed = _nearest_other(unit).masked_fill_(lost, 1e30).argmin(dim=-1)
    return _greedy_from_rows(unit, near, k, seed, join)


def _unit_rows(features: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of length 1 (zero where there is no direction), and BoolTensor [G, N]: where there is none."""
    features = features if features.dtype == torch.float64 else features.float()
    length = torch.linalg.vector_norm(features, dim=-1, keepdim=True)
    lost = ~(length.isfinite() & (length > 0))
    return (features / length).masked_fill_(lost, 0.0), lost[..., 0]


def _nearest_other(unit: Tensor) -> Tensor:
    """Similarity [G, N] of each row to the most similar other row, without an N × N matrix."""
    best = []
    for start in range(0, unit.shape[1], _CHUNK):
        block = unit[:, start : start + _CHUNK] @ unit.transpose(1, 2)
        block.diagonal(offset=start, dim1=1, dim2=2).fill_(-torch.inf)
        best.append(block.amax(dim=-1))
    return torch.cat(best, dim=1)


def _greedy_from_matrix(similarity: Tensor, near: Tensor, k: int, seed: Tensor, join) -> Tensor:
    images, tokens = near.shape
    rows = similarity.view(images * tokens, tokens)
    first_row = torch.arange(0, images * tokens, tokens, device=near.device)
    picks = first_row.new_empty(k, images)
    picks[0] = seed
    for i in range(1, k):
        join(near, rows.index_select(0, picks[i - 1] + first_row), out=near)
        torch.argmin(near, dim=1, out=picks[i])
    return picks.t().contiguous()


def _greedy_from_rows(unit: Tensor, near: Tensor, k: int, seed: Tensor, join) -> Tensor:
    images, tokens, dim = unit.shape
    rows = unit.view(images * tokens, dim)
    first_row = torch.arange(0, images * tokens, tokens, device=near.device)
    picks = first_row.new_empty(k, images)
    picks[0] = seed
    for i in range(1, k):
        newest = rows.index_select(0, picks[i - 1] + first_row)
        join(near, torch.bmm(unit, newest[:, :, None])[:, :, 0], out=near)
        near.scatter_(1, picks[i - 1, :, None], torch.inf)
        torch.argmin(near, dim=1, out=picks[i])
    return picks.t().contiguous()


def merge(x: Tensor, mixing: Mixing, k: int) -> Tensor:
    """New tokens = W · old tokens, for sparse W, in scatter form; gradients flow to `x` and the weights.

    Args:
        x: [G, N, D]; half precision is summed in float32.
        mixing: W, with targets in 0…k-1.
        k: new tokens per image.

    Returns:
        Tensor [G, k, D] in the dtype of `x`; a row without entries is zero.
    """
    images, _, dim = x.shape
    exact = torch.promote_types(x.dtype, torch.float32)
    parts = x.gather(1, mixing.source[:, :, None].expand(-1, -1, dim)).to(exact) * mixing.weight[:, :, None].to(exact)
    target = mixing.target + torch.arange(0, images * k, k, device=x.device)[:, None]
    merged = torch.zeros(images * k, dim, dtype=exact, device=x.device)
    return merged.index_add(0, target.flatten(), parts.flatten(0, 1)).view(images, k, dim).to(x.dtype)
