"""PruneVid's mathematics: segments of a video, what stands still in them, and clusters of both (arXiv 2412.16117)."""

from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from vtc.ops.clusters import density_peaks
from vtc.ops.host import on
from vtc.ops.mixing import Mixing
from vtc.ops.similarity import as_float, unit_rows

#: No more tokens than these are never clustered.
_FEW = 14


def frame_labels(x: Tensor, share: float, neighbours: int) -> list[int]:
    """The cluster of each frame of [T, S, D], by the frames' mean tokens; clusters by falling score of their centres.

    Args:
        x: [T, S, D].
        share: of the frames, as many clusters, rounded down, one at least.
        neighbours: nearest frames that make up a frame's density.
    """
    frames = len(x)
    count, near = (on(x.device, [n]) for n in (max(int(frames * share), 1), min(neighbours, frames)))
    found = density_peaks(x.mean(dim=1)[None], count, max(int(frames * share), neighbours), near)
    return found.member_of[0].tolist()


def repaired(labels: list[int]) -> list[int]:
    """Labels in which each is kept in its longest runs alone, if these are of two frames or more.

    Frames in other runs get, from left to right and a whole stretch of them at once, the label of the longer of the two
    runs beside it, of the left one if they are equally long; 0 where there is none.
    """
    longest: dict[int, int] = {}
    runs = [(label, len(list(run))) for label, run in groupby(labels)]
    for label, length in runs:
        longest[label] = max(longest.get(label, 2), length)
    kept = [(label if length == longest[label] else None, length) for label, length in runs]
    stretches = [(label, sum(n for _, n in run)) for label, run in groupby(kept, key=lambda run: run[0])]
    found: list[int] = []
    for number, (label, length) in enumerate(stretches):
        if label is None:
            left = next(((one, len(list(run))) for one, run in groupby(reversed(found))), (0, 0))
            right = stretches[number + 1] if number + 1 < len(stretches) else (0, 0)
            label = max(left, right, key=lambda run: run[1])[0]
        assert label is not None
        found += [label] * length
    return found


def lengths_of(labels: list[int]) -> list[int]:
    """How many frames each run of equal labels has."""
    return [len(list(run)) for _, run in groupby(labels)]


@dataclass(frozen=True)
class Merged:
    """What is left of T frames of S tokens, counted frame by frame.

    Attributes:
        kept: LongTensor [k], ascending; static tokens stand in the first frame of their segment.
        mixing: how the tokens make them up, for one video.
        order: LongTensor [k]: the new tokens in the released order, as numbers of `kept`.
        groups: LongTensor [k]: the first token of the static ones of its segment, or of its frame's others.
    """

    kept: Tensor
    mixing: Mixing
    order: Tensor
    groups: Tensor


def merge_segments(x: Tensor, lengths: list[int], tau: float, share: float, neighbours: int) -> Merged:
    """Average what stands still in each segment of a video, and cluster that, and the other tokens of each frame.

    Args:
        x: [T, S, D].
        lengths: frames of each segment.
        tau: mean cosine of a position's tokens, over all pairs of different frames, above which it stands still.
        share: of the tokens that are clustered, as many clusters, rounded down, one at least.
        neighbours: nearest tokens that make up a token's density.
    """
    x, (frames, tokens, _) = as_float(x), x.shape
    size = on(x.device, lengths)
    segment = torch.arange(len(lengths), device=x.device).repeat_interleave(size, output_size=frames)
    static = _still(x, segment, size) > tau
    means = x.new_zeros(len(lengths), *x.shape[1:]).index_add(0, segment, x) / size[:, None, None]
    # The static tokens of a segment are a sheet, and so are the other ones of a frame.
    valid = torch.cat([static, ~static[segment]])
    joins, rank = _clusters(torch.cat([means, x]), valid, share, neighbours)
    frame, place = (torch.arange(n, device=x.device) for n in (frames, tokens))
    first = torch.cat([size.cumsum(0) - size, frame]) * tokens  # where a sheet stands
    still = static[segment]
    sheet = torch.where(still, segment[:, None], len(lengths) + frame[:, None])
    centre = joins[sheet, place]
    members = torch.zeros_like(joins).scatter_add(1, joins, valid.long())
    weight = 1 / (members[sheet, centre] * torch.where(still, size[segment][:, None], 1))
    kept, target = (first[sheet] + centre).flatten().unique(return_inverse=True)
    mixing = Mixing(torch.arange(frames * tokens, device=x.device)[None], target[None], weight.flatten()[None])
    number = torch.arange(len(lengths), device=x.device)
    turn = torch.cat([first[: len(lengths)] // tokens + number, frame + segment + 1])
    of, at = sheet.flatten()[kept], kept % tokens
    order = (turn[of] * tokens + rank[of, at]).argsort()
    return Merged(kept, mixing, order, (first + valid.long().argmax(dim=1))[of])


def _still(x: Tensor, segment: Tensor, size: Tensor) -> Tensor:
    """Mean cosine over all pairs of different frames of each position, [segments, S]; -1 in segments of one frame."""
    unit = unit_rows(x)
    total = unit.new_zeros(len(size), *unit.shape[1:]).index_add(0, segment, unit)
    own = unit.new_zeros(total.shape[:2]).index_add(0, segment, unit.square().sum(dim=-1))
    pairs = (size * (size - 1))[:, None]
    mean = (total.square().sum(dim=-1) - own) / pairs.clamp(min=1)
    return mean.clamp(max=1).masked_fill(pairs == 0, -1)


def _clusters(sheets: Tensor, valid: Tensor, share: float, neighbours: int) -> tuple[Tensor, Tensor]:
    """Clusters of each sheet, by density peaks, where it has more than a few tokens.

    Args:
        sheets: [G, S, D].
        valid: BoolTensor [G, S]: tokens that are there.
        share: as in `merge_segments`.
        neighbours: as in `merge_segments`.

    Returns:
        LongTensor [G, S], the place of the centre that each joins, its own where nothing is clustered; LongTensor
        [G, S], in which order centres come: by their score, best first, or by place where nothing is clustered.
    """
    joins = torch.arange(sheets.shape[1], device=sheets.device).repeat(len(sheets), 1)
    rank = joins.clone()
    numbers = valid.sum(dim=1).tolist()
    many = [sheet for sheet, number in enumerate(numbers) if number > _FEW]
    if many:
        counts = [max(int(numbers[sheet] * share), 1) for sheet in many]
        near = [min(neighbours, numbers[sheet]) for sheet in many]
        chosen, count, nearest = (on(sheets.device, values) for values in (many, counts, near))
        found = density_peaks(sheets[chosen], count, max(*counts, *near), nearest, valid[chosen])
        rank[chosen] = found.member_of
        joins[chosen] = found.centres.gather(1, found.member_of.clamp(max=found.centres.shape[1] - 1))
    return joins, rank
