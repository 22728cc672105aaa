"""FastVID's mathematics: how a segment's budget is dealt out, and what is merged into the centres of its anchors."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vtc.ops.clusters import density_peaks
from vtc.ops.host import on
from vtc.ops.similarity import as_float, nearest


@dataclass(frozen=True)
class Deal:
    """What each of the L frames of a segment gets.

    Attributes:
        salient: tokens that stay as they are.
        centres: tokens that others are merged into; frames that have some are anchors.
        alone: whether an anchor merges its own frame, not the whole segment.
    """

    salient: list[int]
    centres: list[int]
    alone: bool = False

    def spans(self, segment: tuple[int, int]) -> list[tuple[int, int]]:
        """The frames, from one to before another, whose tokens are merged together."""
        return [(frame, frame + 1) for frame in range(*segment)] if self.alone else [segment]


def deal_equally(length: int, tokens: int, budget: int, density: float, distance: int) -> Deal:
    """Each frame has the same salient tokens, each anchor the same centres; a remainder is lost ("ov").

    Args:
        length: L.
        tokens: S, of a frame.
        budget: R, tokens that are left of a frame.
        density: share of the budget that goes to centres.
        distance: frames from one anchor to the next; the last frame is one.
    """
    dense, anchors = int(budget * density), range(length)[::-distance]
    each = min(dense * length // len(anchors), tokens - budget + dense)
    centres = [each * (frame in anchors) for frame in range(length)]
    return Deal([budget - dense] * length, centres, alone=each == dense)


def deal_out(
    frames: list[int], length: int, tokens: int, budget: int, density: float, distance: int, capped: bool
) -> Deal:
    """The budget of all frames for some of them; a remainder goes to the first, of centres to the last ("video").

    Args:
        frames: those that get tokens, ascending.
        length: L.
        tokens: S, of a frame.
        budget: R, tokens that are left of a frame.
        density: share of the budget that goes to centres.
        distance: from one anchor to the next, among `frames`; the last is one.
        capped: whether half a frame may be centres at most, at the cost of salient tokens only where a frame is full,
            and a segment has one centre at least if anything ("qwen").
    """
    total, anchors = budget * length, frames[::-distance]
    dense = min(max(int(total * density), int(capped)), total)
    centres = dict(zip(anchors, parted(dense, len(anchors)), strict=True))
    salient = dict(zip(frames, parted(total - dense, len(frames)), strict=True))
    for frame in frames:
        most = tokens // 2 if capped else tokens - salient[frame]
        centres[frame] = min(centres.get(frame, 0), most)
        salient[frame] = min(salient[frame], tokens - centres[frame])
    every = range(length)
    return Deal([salient.get(frame, 0) for frame in every], [centres.get(frame, 0) for frame in every])


def parted(total: int, parts: int) -> list[int]:
    """A number in equal parts; the remainder goes to the first ones."""
    return [(total + parts - 1 - part) // parts for part in range(parts)]


def most_salient(saliency: Tensor, counts: Tensor) -> Tensor:
    """In each frame the tokens with the highest saliency [T, S], so many as `counts` [T] says; the first of equal ones.

    Returns:
        BoolTensor [T, S].
    """
    rank = as_float(saliency).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return rank < counts[:, None]


def densest(features: Tensor, left: Tensor, counts: list[int], neighbours: int) -> list[Tensor]:
    """Of the tokens of some frames that are `left` those that density peaks rank highest.

    Args:
        features: [A, S, D].
        left: BoolTensor [A, S].
        counts: of each frame.
        neighbours: nearest tokens that make a density, itself among them.

    Returns:
        LongTensor [count], best first, of each frame.
    """
    near = left.sum(dim=1).clamp(max=neighbours)
    most = max([neighbours, *counts])
    found = density_peaks(features, on(near.device, counts), most, near, left, ranked=True)
    return [centres[:count] for centres, count in zip(found.centres, counts, strict=True)]


def gather_into(unit: Tensor, pool: Tensor, centres: Tensor, beta: float, counted: bool) -> tuple[Tensor, Tensor]:
    """Each token of a pool joins the most similar centre; a centre joins itself.

    A centre with m members weighs max(beta, 1 / (m + 1)), their mean the rest.

    Args:
        unit: [P, D], the pool's tokens, of length 1.
        pool: LongTensor [P], their numbers, ascending.
        centres: LongTensor [C], numbers of some of them.
        beta: least weight of a centre.
        counted: whether a centre is one of its members.

    Returns:
        LongTensor [P], the number of the centre that each joins, and Tensor [P], its weight there.
    """
    at = torch.searchsorted(pool, centres)
    into = nearest(unit[None], unit[None, at])[1][0]
    into[at] = torch.arange(len(at), device=at.device)
    members = torch.bincount(into, minlength=len(at)) - int(not counted)
    own = (1 / (members + 1)).clamp(min=beta)
    each = (1 - own) / members.clamp(min=1)
    weight = each[into]
    weight[at] = own + each * int(counted)
    return centres[into], weight
