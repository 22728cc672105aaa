"""Token recycling: the best of the tokens that are not kept, merged into a few (SparseVLM, arXiv 2410.04417).

Counts, clustering by Euclidean distance and plain means are those of the released code.
"""

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from vtc import ops
from vtc.method.prune import Decision
from vtc.ops.clusters import density_peaks
from vtc.ops.mixing import Mixing

Count = TypeVar("Count", int, Tensor)


def recycled(dropped: Count) -> Count:
    """How many of the tokens that are not kept are merged: floor(0.3 · dropped) + 1, none where none is dropped."""
    return (3 * dropped // 10 + 1) * (dropped > 0)


def clusters(dropped: Count) -> Count:
    """How many tokens the recycled ones are merged into: a tenth of them, rounded down, and one."""
    return (recycled(dropped) // 10 + 1) * (dropped > 0)


def most_kept(present: Tensor, total: Tensor, limit: int) -> Tensor:
    """The most tokens that can be kept such that, with those merged from the rest, there are at most `total`.

    Args:
        present: LongTensor [B], tokens that are there.
        total: LongTensor [B], not above `present`.
        limit: no row has more tokens.

    Returns:
        LongTensor [B]; 0 where even the clusters alone are more than `total`.
    """
    dropped = torch.arange(limit + 1, device=present.device)
    fewer = dropped - clusters(dropped)  # never falls
    least = (fewer < (present - total)[:, None]).sum(dim=1)
    return (present - least).clamp_min(0)


@dataclass(frozen=True)
class Recycling:
    """Which tokens are merged, and into what.

    Attributes:
        places: LongTensor [B, M]: tokens that are merged, best first; n where there are fewer.
        centres: LongTensor [B, C]: places of the cluster centres, best first; n where there are fewer.
        member_of: LongTensor [B, M]: the cluster of each; C where there is none.
        merged: Tensor [B, C, D]: the new tokens.
    """

    places: Tensor
    centres: Tensor
    member_of: Tensor
    merged: Tensor


def recycle(hidden: Tensor, order: Tensor, kept: Tensor, dropped: Tensor, count: Tensor, limit: int) -> Recycling:
    """Merge the best of the tokens that are not kept into the means of their clusters.

    Args:
        hidden: [B, n, D].
        order: LongTensor [B, n]: places, best first.
        kept: LongTensor [B]: how many of them are kept.
        dropped: LongTensor [B]: how many tokens follow these, of which the best are merged.
        count: LongTensor [B]: into how many.
        limit: no row drops more tokens.
    """
    length, most = hidden.shape[1], recycled(limit)
    chosen = recycled(dropped) * (count > 0)
    number = torch.arange(most, device=hidden.device)
    valid = number < chosen[:, None]
    places = order.gather(1, (kept[:, None] + number).clamp_max(length - 1))
    rows = torch.arange(len(hidden), device=hidden.device)[:, None]
    x = hidden[rows, places]
    found = density_peaks(x, count, clusters(limit), valid=valid)
    size = found.centres.shape[1]
    members = torch.zeros(len(hidden), size + 1, device=hidden.device)
    members = members.scatter_add(1, found.member_of, torch.ones_like(found.member_of, dtype=members.dtype))
    mixing = Mixing(number.expand_as(places), found.member_of, 1 / (members.gather(1, found.member_of) + 1e-6))
    merged = ops.merge(x, mixing, size + 1)[:, :size]
    unused = torch.arange(size, device=hidden.device) >= count[:, None]
    centres = places.gather(1, found.centres).masked_fill(unused, length)
    return Recycling(places.masked_fill(~valid, length), centres, found.member_of, merged)


def laid_out(hidden: Tensor, visual: Tensor, kept: Tensor, again: Recycling, packed: bool) -> Decision:
    """Kept tokens and merged ones in the places of the kept tokens and of the cluster centres.

    Where survivors are numbered anew, those of each visual block (text on both sides) stand in the released order: kept
    ones in their own, then merged ones, best centre first. Else each is at its own place, or at its centre's.

    Args:
        hidden: [B, n, D].
        visual: BoolTensor [B, n].
        kept: BoolTensor [B, n].
        again: what is merged.
        packed: whether survivors are numbered anew.
    """
    batch, length = visual.shape
    size = again.centres.shape[1]
    place = torch.arange(length, device=hidden.device).expand(batch, -1)
    number = torch.arange(size, device=hidden.device).expand(batch, -1)
    own = torch.nn.functional.pad(torch.full_like(place, -1), (0, 1))  # a column for centres that are not there
    own = own.scatter(1, again.centres, number)[:, :length]
    alive = kept | (own >= 0)
    source = torch.where(own >= 0, length + own, place)
    if packed:
        block = (visual & ~torch.nn.functional.pad(visual, (1, -1))).cumsum(dim=1)
        centre_block = torch.nn.functional.pad(block, (0, 1)).gather(1, again.centres)
        width, last = length + size, torch.iinfo(torch.long).max
        key = torch.cat([(block * width + place), centre_block * width + length + number], dim=1)
        there = torch.cat([kept, again.centres < length], dim=1)
        standing = key.masked_fill(~there, last).argsort(dim=1)
        slot = (alive.cumsum(dim=1) - 1).clamp_min(0)
        source = torch.where(alive, standing.gather(1, slot), place)
    candidates = torch.cat([hidden, again.merged.to(hidden.dtype)], dim=1)
    offset = torch.arange(batch, device=hidden.device)[:, None] * candidates.shape[1]
    moved = candidates.flatten(0, 1).index_select(0, (source + offset).flatten()).view_as(hidden)
    goes = torch.nn.functional.pad(again.centres, (0, 1), value=-1).gather(1, again.member_of)
    into = torch.full((batch, length + 1), -1, device=hidden.device).scatter(1, again.places, goes)[:, :length]
    stood = torch.cat([place, again.centres.clamp_max(length - 1)], dim=1).gather(1, source)
    return Decision(alive, moved, into, stood if packed else None)
