"""Density peaks in plain torch, with never more than so many distances at once."""

import torch
from torch import Tensor

from vtc.ops.similarity import as_float

#: Distances (of float32: 256 MiB) that are kept at once; beyond, those of one group are computed twice, in parts.
ENTRIES = 2**26
#: From so many tokens on it pays to compute half of the distances on a CPU.
_MIRRORED = 128


def density_peaks(
    x: Tensor, count: Tensor, most: int, neighbours: Tensor | None, valid: Tensor | None, ranked: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Cluster by density peaks, some groups after others.

    Args:
        x: [G, M, D].
        count: LongTensor [G], clusters.
        most: C: no group has more clusters.
        neighbours: LongTensor [G]; None: as many as clusters.
        valid: BoolTensor [G, M]; None: all.
        ranked: whether of equally dense tokens the first is the denser.

    Returns:
        Score [G, M], centres [G, C] and the centre [G, M] that each token joins, as `vtc.ops.clusters.Clusters`.
    """
    x, tokens = as_float(x), x.shape[1]
    most, neighbours = min(most, tokens), count if neighbours is None else neighbours
    size = max(1, ENTRIES // max(tokens**2, 1))
    here = [None] * -(-len(x) // size) if valid is None else valid.split(size)
    parts = zip(*(tensor.split(size) for tensor in (x, count, neighbours)), here, strict=True)
    made = [_of_some(some, number, most, near, there, ranked) for some, number, near, there in parts]
    if len(made) == 1:
        return made[0]
    score, centres, member_of = (torch.cat(each) for each in zip(*made, strict=True))
    return score, centres, member_of


def _of_some(
    x: Tensor, count: Tensor, most: int, neighbours: Tensor, valid: Tensor | None, ranked: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The same of groups whose distances fit, or of a single one."""
    groups, tokens, _ = x.shape
    size = tokens if groups * tokens**2 <= ENTRIES else max(1, ENTRIES // tokens)
    rows = [slice(start, start + size) for start in range(0, tokens, size)]
    whole = _mask(_mirrored(x), valid, valid) if len(rows) == 1 else None

    def apart(some: slice) -> Tensor:
        if whole is not None:
            return whole
        return _mask(_distances(x[:, some], x), None if valid is None else valid[:, some], valid)

    rank = torch.arange(most, device=x.device)
    near, wide = [], []
    for some in rows:
        found = apart(some)
        nearest = found.topk(most, dim=2, largest=False).values.square_()
        near.append(nearest.where(rank < neighbours[:, None, None], 0.0).sum(dim=2))
        wide.append((found if valid is None else found.masked_fill(found == torch.inf, 0.0)).amax(dim=(1, 2)))
    density = torch.exp(-torch.cat(near, dim=1) / neighbours[:, None].clamp_min(1))
    largest = torch.stack(wide).amax(dim=0)[:, None]
    thinness = density.argsort(dim=1, descending=True, stable=True).argsort(dim=1) if ranked else -density
    distance = []
    for some in rows:
        denser = thinness[:, None, :] < thinness[:, some, None]
        distance.append(apart(some).masked_fill(~denser, torch.inf).amin(dim=2))
    away = torch.cat(distance, dim=1)
    score = density * torch.where(away.isinf(), largest, away)
    if valid is not None:
        score.masked_fill_(~valid, -torch.inf)

    centres = score.argsort(dim=1, descending=True, stable=True)[:, :most].contiguous()
    unused = rank >= count[:, None]
    place = centres[:, :, None].expand(-1, -1, x.shape[2])
    to_centre = (
        _mask(_distances(x, x.gather(1, place)), valid, None if valid is None else valid.gather(1, centres))
        if whole is None
        else whole.gather(2, centres[:, None, :].expand(-1, tokens, -1))
    ).masked_fill_(unused[:, None, :], torch.inf)
    member_of = to_centre.argmin(dim=2)
    if valid is not None:
        member_of.masked_fill_(~valid, most)
    # A centre joins itself, also where another centre lies at the same point; `tokens` is a column for those unused.
    member_of = torch.nn.functional.pad(member_of, (0, 1))
    member_of = member_of.scatter(1, centres.masked_fill(unused, tokens), rank.expand(groups, -1))[:, :tokens]
    return score, centres, member_of.contiguous()


def _distances(x: Tensor, others: Tensor) -> Tensor:
    """Distances [G, m, M].

    Without matrix products: a token's distance to itself is 0, and two equal tokens have equal distances.
    """
    return torch.cdist(x, others, compute_mode="donot_use_mm_for_euclid_dist").div_(x.shape[2] ** 0.5)


def _mirrored(x: Tensor, parts: int = 5) -> Tensor:
    """All distances [G, M, M], of which half are computed and half mirrored: both ways they are the same."""
    groups, tokens, _ = x.shape
    if tokens < _MIRRORED or x.device.type != "cpu":
        return _distances(x, x)
    apart, size = x.new_empty(groups, tokens, tokens), -(-tokens // parts)
    for start in range(0, tokens, size):
        stop = min(start + size, tokens)
        block = _distances(x[:, start:stop], x[:, start:])
        apart[:, start:stop, start:] = block
        apart[:, stop:, start:stop] = block[:, :, stop - start :].mT
    return apart


def _mask(apart: Tensor, here: Tensor | None, there: Tensor | None) -> Tensor:
    """Distances [G, m, M], made infinite where one of the two is not there; None: all are."""
    if here is None or there is None:
        return apart
    return apart.masked_fill_(~(here[:, :, None] & there[:, None, :]), torch.inf)
