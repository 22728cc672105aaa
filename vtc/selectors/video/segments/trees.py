"""FlashVID's mathematics: tokens that are attended to and differ, trees over time of the others, clusters of trees."""

from itertools import chain

import torch
from torch import Tensor

from vtc.ops.clusters import density_peaks
from vtc.ops.host import on
from vtc.ops.similarity import as_float, nearest, unit_rows

#: Distances that are kept at once (of float32: 16 MiB), unless a single frame has more.
_ENTRIES = 2**22
_NEIGHBOURS = 7


def attended_and_diverse(features: Tensor, weight: Tensor, count: int) -> Tensor:
    """In each frame tokens that lie far from each other by weighted distances, greedily (ADTS).

    From a token to another it is as far as 1 - their cosine, times the weight of the other. First comes the token to
    which it is farthest from the nearest of all, then always that to which it is farthest from the nearest chosen one;
    of equal ones the first.

    Args:
        features: [T, N, D].
        weight: [T, N]; may be negative.
        count: tokens of each frame.

    Returns:
        BoolTensor [T, N].
    """
    chosen = torch.zeros_like(weight, dtype=torch.bool)
    size = max(1, _ENTRIES // max(weight.shape[1] ** 2, 1))
    for some, factor, taken in zip(features.split(size), as_float(weight).split(size), chosen.split(size), strict=True):
        unit = unit_rows(some)
        distance = (1 - unit @ unit.mT) * factor[:, None]
        distance.diagonal(dim1=1, dim2=2).fill_(torch.inf)
        near, frame = distance.amin(dim=1), torch.arange(len(some), device=some.device)
        for step in range(count):
            pick = near.masked_fill(taken, -torch.inf).argmax(dim=1)
            taken[frame, pick] = True
            row = distance[frame, pick]
            near = torch.minimum(near, row) if step else row
    return chosen


def relevance(features: Tensor, average: Tensor, segments: list[tuple[int, int]]) -> Tensor:
    """Inner product of each token [T, N, D] with the mean of its segment's frames' mean tokens [T, D]: [T, N]."""
    means = chain.from_iterable(average[first:end].mean(dim=0).expand(end - first, -1) for first, end in segments)
    return torch.stack([as_float(frame) @ mean for frame, mean in zip(features, means, strict=True)])


def links(features: Tensor, rest: Tensor, segments: list[tuple[int, int]], left: int, threshold: float) -> Tensor:
    """Tie each token to the most similar one of the frame before, where the two are similar enough.

    Args:
        features: [T, N, D].
        rest: LongTensor [T, R], the tokens of each frame that may be tied.
        segments: first frame of each, and the frame behind its last; no tie leads out of a segment.
        left: B, how many of a frame's R tokens stay untied at least, on average over a segment: where fewer would, only
            what is more similar than the (R - B) · L-th of its L frames is tied.
        threshold: cosine, itself not included.

    Returns:
        LongTensor [T, R]: the number of its parent, counted over all T · R; a token that is not tied is its own.
    """
    number = torch.arange(rest.numel(), device=rest.device).view(rest.shape)
    parent = number.clone()
    for first, end in segments if rest.numel() else ():
        similarity = torch.full((end - first, rest.shape[1]), -1.0, device=rest.device)
        closest = number[first:end].clone()
        before = None
        for frame in range(first, end):
            unit = unit_rows(features[frame, rest[frame]])[None]
            if before is not None:
                similarity[frame - first], index = (found[0] for found in nearest(unit, before))
                closest[frame - first] = number[frame - 1, index]
            before = unit
        most = (rest.shape[1] - left) * (end - first)
        bound = similarity.new_tensor([torch.inf, -1.0])
        ranked = torch.cat([bound[:1], similarity.flatten().sort(descending=True).values, bound[1:]])
        needed = torch.where(ranked[most + 1] > threshold, ranked[most], threshold)
        parent[first:end] = torch.where(similarity > needed, closest, number[first:end])
    return parent


def roots(parent: Tensor) -> Tensor:
    """Where the ties end that lead from each of T · R tokens, frame by frame, to earlier ones: LongTensor [T · R]."""
    found = parent.flatten()
    for _ in range(len(parent).bit_length()):
        found = found[found]
    return found


def means(features: Tensor, rest: Tensor, into: Tensor, weight: Tensor, count: int) -> Tensor:
    """Add up tokens in float32.

    Args:
        features: [T, N, D].
        rest: LongTensor [T, R], those of each frame that are added up.
        into: LongTensor [T · R], the sum that each is part of.
        weight: [T · R].
        count: K sums.

    Returns:
        Tensor [K, D].
    """
    total = as_float(features.new_zeros(count, features.shape[2]))
    parts = zip(features, rest, into.view_as(rest), weight.view_as(rest), strict=True)
    for frame, places, number, factor in parts:
        total.index_add_(0, number, as_float(frame[places]) * factor[:, None])
    return total


def clusters(tokens: Tensor, count: int) -> Tensor:
    """Cluster tokens [n, D] by density peaks: the number of the centre that each joins; of 0 or n clusters its own.

    Returns:
        LongTensor [n].
    """
    if not 0 < count < len(tokens):
        return torch.arange(len(tokens), device=tokens.device)
    number = on(tokens.device, [count])
    found = density_peaks(tokens[None], number, count, number.clamp(max=_NEIGHBOURS), ranked=True)
    return found.centres[0, found.member_of[0]]
