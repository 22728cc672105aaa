"""Outliers among numbers: by Local Outlier Factor on a line (Breunig et al., 2000), and by quartiles."""

import torch
from torch import Tensor

from vtc.ops.host import on
from vtc.ops.similarity import as_float


def local_outlier_factor(values: Tensor, neighbours: int) -> Tensor:
    """How much sparser each number's surroundings are than those of its nearest neighbours; about 1 is normal.

    The local reachability density of a number is 1 / (mean over its neighbours of the larger of their distance and the
    neighbour's own distance to its farthest neighbour, plus 1e-10); the factor is the mean density of the neighbours
    over the number's own. Of equally far neighbours the smaller numbers count, so that equal numbers have equal
    factors. On a line, the nearest neighbours lie close by in sorted order: memory and time stay O(n · neighbours).

    Args:
        values: [..., n]; NaN and Inf count as 0.
        neighbours: how many nearest others are looked at; n - 1 where there are fewer.

    Returns:
        Tensor [..., n] in float64; 1 where there is nothing to compare with (n = 1).
    """
    count = values.shape[-1]
    neighbours = min(neighbours, count - 1)
    if neighbours < 1:
        return torch.ones_like(values, dtype=torch.float64)
    line, order = as_float(values).double().sort(dim=-1, stable=True)
    steps = torch.arange(1, neighbours + 1, device=values.device)
    offsets = torch.cat([-steps.flip(0), steps])  # ascending: of equally far neighbours the smaller numbers count
    place = torch.arange(count, device=values.device)[:, None] + offsets
    outside = (place < 0) | (place >= count)
    place = place.clamp(0, count - 1)
    away = (line[..., place] - line[..., None]).abs().masked_fill(outside, torch.inf)
    distance, nearest = away.sort(dim=-1, stable=True)
    distance, nearest = distance[..., :neighbours], nearest[..., :neighbours]
    neighbour = place.expand(nearest.shape[:-1] + place.shape[-1:]).gather(-1, nearest)  # [..., n, neighbours]
    reach = torch.maximum(distance, _at(distance[..., -1], neighbour))
    density = 1 / (reach.mean(dim=-1) + 1e-10)
    factor = _at(density, neighbour).mean(dim=-1) / density
    return torch.empty_like(factor).scatter_(-1, order, factor)


def outlier_count(values: Tensor, neighbours: int) -> Tensor:
    """How many of `values` [..., n] are outliers: a Local Outlier Factor above 1.5; LongTensor [...]."""
    return (local_outlier_factor(values, neighbours) > 1.5).sum(dim=-1)


def above_quartiles(values: Tensor) -> Tensor:
    """How many of `values` [..., n] lie above Q3 + 1.5 · (Q3 - Q1), quartiles by linear interpolation.

    Returns:
        LongTensor [...]; NaN and Inf count as 0.
    """
    values = as_float(values)
    q1, q3 = values.quantile(on(values.device, torch.tensor([0.25, 0.75], dtype=values.dtype)), dim=-1, keepdim=True)
    return (values > q3 + 1.5 * (q3 - q1)).sum(dim=-1)


def _at(values: Tensor, index: Tensor) -> Tensor:
    """`values` [..., n] at `index` [..., n, m]."""
    return values.gather(-1, index.flatten(-2)).view(index.shape)
