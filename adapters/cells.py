"""Patches in the cells that make a token."""

import torch
from torch import Tensor

from vtc.model.layout import Grid
from vtc.ops.host import on


def means(flat: Tensor, rows: Tensor) -> Tensor:
    """Means [N, ...] of `flat` over `rows` [N, cell]; NaN where they are -1."""
    rows = on(flat.device, rows)
    return (
        flat[rows.clamp(min=0)]
        .mean(dim=1)
        .masked_fill((rows[:, 0] < 0).view(-1, *[1] * (flat.dim() - 1)), float("nan"))
    )


def square_cells(rows: Tensor, cell: int) -> Tensor:
    """The patches of each token: square cells of a square grid of patches.

    Args:
        rows: Tensor [sequences, P].
        cell: patches that make a token; a square number for square grids.

    Returns:
        Tensor [sequences * P / cell, cell].
    """
    side, edge = round(rows.shape[1] ** 0.5), round(cell**0.5)
    if cell > 1 and side * side == rows.shape[1] and edge * edge == cell and side % edge == 0:
        rows = rows.view(len(rows), side // edge, edge, side // edge, edge).transpose(2, 3)
    return rows.reshape(-1, cell)


def cells_of_grid(rows: Tensor, grid: Grid, cell: int) -> Tensor:
    """The patches [N, cell] of each token of one image, `rows` [P], in cells of its own T × H × W grid."""
    edge = round(cell**0.5)
    if cell > 1 and edge * edge == cell and len(rows) == grid.t * grid.h * grid.w * cell:
        rows = rows.view(grid.t, grid.h, edge, grid.w, edge).transpose(2, 3)
    return rows.reshape(-1, cell)


def joined(calls: list[Tensor]) -> Tensor:
    """Scores [sequences, P, ...] of several calls as rows of equal length where they are; else as one row."""
    if len({call.shape[1] for call in calls}) == 1:
        return torch.cat(calls)
    return torch.cat([call.flatten(0, 1) for call in calls])[None]


def runs_by_row(mask: Tensor) -> list[tuple[int, Tensor]]:
    """(row, LongTensor) for each unbroken run of True in each row of `mask` [B, L]."""
    return [(row, run) for row, here in enumerate(mask) for run in runs(here.nonzero().flatten())]


def runs(places: Tensor) -> list[Tensor]:
    """The unbroken runs of ascending `places`."""
    if not len(places):
        return []
    breaks = (places.diff() != 1).nonzero().flatten() + 1
    return list(places.tensor_split(breaks.tolist()))
