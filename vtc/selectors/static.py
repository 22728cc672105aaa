"""HoliTom's mathematics: segments of a video in which positions stand still, and what becomes of them."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vtc.method import as_float
from vtc.prunes.clusters import density_peaks

MAX_WINDOW = 1024  # frames of one segment, as released


def frame_similarity(features: Tensor) -> Tensor:
    """Cosine of each position with itself in the next frame, [F, S, C] -> [F-1, S], in float32."""
    unit = torch.nn.functional.normalize(as_float(features), dim=-1)
    return (unit[1:] * unit[:-1]).sum(dim=-1)


def segment(similarity: Tensor, tau: float, longest: int = MAX_WINDOW) -> tuple[list[tuple[int, int]], int]:
    """Cut a video into segments so that as many tokens as possible repeat the frame before, by dynamic programming.

    A segment [a, b] spares (b - a) tokens for each position that is static, similarity above `tau`, from a to b. Of
    equally good cuts the one with the shorter last segment wins.

    Args:
        similarity: [F-1, S], of each position with itself in the next frame.
        tau: threshold, itself not included.
        longest: frames that a segment may have.

    Returns:
        (first, last) frame of each segment, and how many tokens they spare in all.
    """
    pairs, positions = similarity.shape
    run = torch.zeros(pairs + 1, positions, dtype=torch.long)  # static pairs in a row that end at this frame
    for frame, static in enumerate(similarity.cpu() > tau):
        run[frame + 1] = torch.where(static, run[frame] + 1, 0)
    counts = torch.zeros(pairs + 1, pairs + 1, dtype=torch.long).scatter_add_(1, run, torch.ones_like(run))
    at_least = counts.flip(1).cumsum(1).flip(1)  # [last frame, n]: positions static over the n pairs in front of it
    gain = at_least * torch.arange(pairs + 1)
    best, length = [0], []
    for last in range(pairs + 1):
        most = min(last + 1, longest)
        total = torch.tensor(best[last - most + 1 : last + 1]).flip(0) + gain[last, :most]
        choice = total.tolist().index(int(total.max()))  # the first of equal ones
        best.append(int(total[choice]))
        length.append(choice + 1)
    found, last = [], pairs
    while last >= 0:
        found.append((last - length[last] + 1, last))
        last -= length[last]
    return found[::-1], best[-1]


def corrected_ratio(rho: float, tokens: int, spared: int) -> float:
    """The share of what is left that keeps the budget `rho` of all `tokens`, once `spared` repeat others."""
    return min(rho / ((tokens - spared) / tokens), 1.0)


def most_attended(attention: Tensor, dynamic: Tensor, ratio: float) -> Tensor:
    """In each frame the ceil(n * ratio) of its n dynamic tokens that receive most attention, the first of equal ones.

    Args:
        attention: [F, S].
        dynamic: BoolTensor [F, S].
        ratio: share.

    Returns:
        BoolTensor [F, S].
    """
    attention = as_float(attention).masked_fill(~dynamic, -torch.inf)
    rank = attention.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    count = (dynamic.sum(dim=1).double() * ratio).ceil()
    return dynamic & (rank < count[:, None])


def cluster(features: Tensor, count: int, beta: float | None, neighbours: int) -> tuple[Tensor, Tensor, Tensor]:
    """Merge static tokens around `count` centres by density peaks (DPC-KNN), 1 <= count <= M.

    Args:
        features: [M, C].
        count: centres.
        beta: weight of the centre, the mean of its members having the rest; None: the plain mean of all of them.
        neighbours: nearest tokens that make the density, at most `count`.

    Returns:
        LongTensor [count], the centres, ascending; LongTensor [M], the number of the centre that each token joins;
        Tensor [M], its weight there.
    """
    number = torch.tensor([count], device=features.device)
    found = density_peaks(features[None], number, count, number.clamp(max=neighbours))
    centres, order = found.centres[0].sort()
    member_of = order.argsort()[found.member_of[0]]
    size = torch.zeros(count, device=features.device).index_add_(0, member_of, torch.ones(1, device=features.device).expand(len(member_of)))
    is_centre = torch.zeros(len(member_of), dtype=torch.bool, device=features.device).index_fill_(0, centres, True)
    if beta is None:
        return centres, member_of, 1 / size[member_of]
    alone = size[member_of] == 1
    of_centre = torch.where(alone, 1.0, beta)
    return centres, member_of, torch.where(is_centre, of_centre, (1 - beta) / (size[member_of] - 1).clamp_min(1))


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
    receive most attention.

    Args:
        features: [F, S, C].
        attention: [F, S], received in the vision tower.
        rho: share of the tokens that shall be left.
        tau, beta, neighbours: as in `segment` and `cluster`.
    """
    frames, tokens = features.shape[:2]
    device, x = features.device, as_float(features)
    similarity = frame_similarity(features)
    segments, spared = segment(similarity, tau)
    ratio = corrected_ratio(rho, frames * tokens, spared)
    cell = torch.arange(frames * tokens, device=device).view(frames, tokens)
    still = torch.zeros(frames, tokens, dtype=torch.bool, device=device)
    for first, last in segments:
        if last > first:
            still[first : last + 1] = (similarity[first:last] > tau).all(dim=0)
    dynamic = most_attended(attention, ~still, ratio)
    static = torch.zeros_like(still)
    parts = [(cell[dynamic], cell[dynamic], torch.ones(int(dynamic.sum()), device=device))]
    for first, last in segments:
        places = still[first].nonzero()[:, 0]
        count = round(len(places) * ratio)
        if not count and len(places) and not static.any() and not dynamic.any() and last == frames - 1:
            count = 1  # something must be left
        if not count:
            continue
        span = x[first : last + 1, places]
        centres, member_of, weight = cluster(span.mean(dim=0), count, beta, neighbours)
        static[first, places[centres]] = True
        source = cell[first : last + 1, places]
        target = cell[first, places[centres][member_of]].expand_as(source)
        parts.append((source.flatten(), target.flatten(), (weight / len(span)).expand(source.shape).flatten()))
    source, target, weight = (torch.cat(part) for part in zip(*parts))
    return Merged(segments, dynamic | static, static, source, target, weight)
