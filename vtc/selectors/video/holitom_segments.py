"""HoliTom's mathematics: segments of a video in which positions stand still, and what becomes of them."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from vtc.ops.clusters import density_peaks
from vtc.ops.host import on
from vtc.ops.similarity import as_float, unit_rows

#: Frames that a segment may have, as released.
MAX_WINDOW = 1024


def frame_similarity(features: Tensor) -> Tensor:
    """Cosine of each position with itself in the next frame, [F, S, D] -> [F-1, S], in float32.

    A token without direction (zero, NaN, Inf) is similar to none. Frame by frame, so that no copy of them all is made.
    """
    similarity = torch.zeros(len(features) - 1, features.shape[1], device=features.device)
    for index, (frame, following) in enumerate(pairwise(map(unit_rows, features))):
        similarity[index] = (frame * following).sum(dim=-1)
    return similarity


def segment(similarity: Tensor, tau: float, longest: int = MAX_WINDOW) -> tuple[list[tuple[int, int]], int]:
    """Cut a video into segments so that as many tokens as possible repeat the frame before, by dynamic programming.

    A segment [a, b] spares (b - a) tokens for each position that is static, similarity above `tau`, from a to b. Of
    equally good cuts the one with the shorter last segment wins. Takes F² numbers, and F·S.

    Args:
        similarity: [F-1, S], of each position with itself in the next frame.
        tau: threshold, itself not included.
        longest: frames that a segment may have.

    Returns:
        (first, last) frame of each segment, and how many tokens they spare in all.
    """
    frames, longest = len(similarity) + 1, min(longest, len(similarity) + 1)
    number = torch.arange(frames)[:, None]
    moves = torch.nn.functional.pad(~(similarity > tau).cpu(), (0, 0, 1, 0), value=True)
    still = number - torch.where(moves, number, 0).cummax(dim=0).values  # static pairs in a row that end at this frame
    still = still.clamp(max=longest - 1)
    counts = torch.zeros(frames, longest, dtype=torch.long).scatter_add_(1, still, torch.ones_like(still))
    at_least = counts.flip(1).cumsum(1).flip(1)  # [last frame, n]: positions static over the n pairs in front of it
    gain = at_least * torch.arange(longest)
    best = torch.zeros(frames + 1, dtype=torch.long)  # of so many frames
    lengths = []
    for last in range(frames):
        most = min(last + 1, longest)
        spared = best[last + 1 - most : last + 1].flip(0) + gain[last, :most]  # by the length of the last segment
        choice = int(spared.argmax())  # the first of equal ones
        best[last + 1] = spared[choice]
        lengths.append(choice + 1)
    segments, last = [], frames - 1
    while last >= 0:
        segments.append((last + 1 - lengths[last], last))
        last -= lengths[last]
    return segments[::-1], int(best[-1])


def corrected_ratio(rho: float, tokens: int, spared: int) -> float:
    """The share of what is left that keeps the budget `rho` of all `tokens`, once `spared` repeat others."""
    return min(rho / ((tokens - spared) / tokens), 1.0)


def most_attended(attention: Tensor, dynamic: Tensor, ratio: float) -> Tensor:
    """In each frame the ceil(n · ratio) of its n dynamic tokens that receive most attention, the first of equal ones.

    Args:
        attention: [F, S].
        dynamic: BoolTensor [F, S].
        ratio: share.

    Returns:
        BoolTensor [F, S].
    """
    attention = as_float(attention).masked_fill(~dynamic, -torch.inf)
    rank = attention.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    count = (dynamic.sum(dim=1).cpu().double() * ratio).ceil().long()
    return dynamic & (rank < count.to(rank.device)[:, None])


def cluster(features: Tensor, count: int, beta: float | None, neighbours: int) -> tuple[Tensor, Tensor, Tensor]:
    """Merge static tokens around `count` centres by density peaks (DPC-KNN), 1 <= count <= M.

    Args:
        features: [M, D].
        count: centres.
        beta: weight of the centre, the mean of its members having the rest; None: the plain mean of all of them.
        neighbours: nearest tokens that make the density, itself among them; at most `count`.

    Returns:
        LongTensor [count], the centres, ascending; LongTensor [M], the number of the centre that each token joins;
        Tensor [M], its weight there.
    """
    number = on(features.device, [count])
    found = density_peaks(features[None], number, count, number.clamp(max=neighbours))
    centres, order = found.centres[0].sort()
    member_of = order.argsort()[found.member_of[0]]
    size = torch.bincount(member_of, minlength=count)[member_of]
    if beta is None:
        return centres, member_of, 1 / size
    weight = (1 - beta) / (size - 1).clamp(min=1)
    weight[centres] = torch.where(size[centres] == 1, 1.0, beta)
    return centres, member_of, weight


@dataclass(frozen=True)
class Merged:
    """What is left of F frames of S tokens; cells are counted frame by frame.

    Attributes:
        segments: (first, last) frame of each.
        kept: BoolTensor [F, S]; a static position of a segment stands in its first frame.
        static: BoolTensor [F, S]: those of `kept` that are merged static positions.
        source, target: LongTensor [M]: cells, and the kept cell that each goes into.
        weight: Tensor [M].
    """

    segments: list[tuple[int, int]]
    kept: Tensor
    static: Tensor
    source: Tensor
    target: Tensor
    weight: Tensor


def merge_frames(
    features: Tensor, attention: Tensor, rho: float, tau: float, beta: float | None = 0.6, neighbours: int = 7
) -> Merged:
    """HoliTom's outer stage on one grid of tokens.

    Static positions of a segment are averaged over its frames and clustered; of the others each frame keeps those that
    receive most attention. Where rounding leaves nothing at all, one cluster of the first segment stays.

    Args:
        features: [F, S, D].
        attention: [F, S], received in the vision tower.
        rho: share of the tokens that shall be left.
        tau: as in `segment`.
        beta: as in `cluster`.
        neighbours: as in `cluster`.
    """
    frames, tokens = attention.shape
    device, exact = features.device, torch.promote_types(features.dtype, torch.float32)
    similarity = frame_similarity(features)
    segments, spared = segment(similarity, tau)
    ratio = corrected_ratio(rho, frames * tokens, spared)
    repeats = torch.zeros(frames, tokens, dtype=torch.bool, device=device)
    for first, last in segments:
        if last > first:
            repeats[first : last + 1] = (similarity[first:last] > tau).all(dim=0)
    dynamic = most_attended(attention, ~repeats, ratio)
    counts = [round(n * ratio) for n in repeats[on(device, [first for first, _ in segments])].sum(dim=1).tolist()]
    if not any(counts) and not dynamic.any():
        counts[0] = 1
    cell = torch.arange(frames * tokens, device=device).view(frames, tokens)
    static = torch.zeros_like(repeats)
    parts = [(cell[dynamic], cell[dynamic], torch.ones(int(dynamic.sum()), device=device))]
    for (first, last), count in zip(segments, counts, strict=True):
        if count:
            places = repeats[first].nonzero()[:, 0]
            mean = features[first : last + 1].mean(dim=0, dtype=exact)[places]
            centres, member_of, weight = cluster(mean, count, beta, neighbours)
            static[first, places[centres]] = True
            source = cell[first : last + 1, places]
            target, weight = cell[first, places[centres][member_of]], weight / len(source)
            parts.append((source.flatten(), target.repeat(len(source)), weight.repeat(len(source))))
    source, target, weight = (torch.cat(part) for part in zip(*parts, strict=True))
    return Merged(segments, dynamic | static, static, source, target, weight)
