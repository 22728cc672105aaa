"""What shares one budget: an image or a whole video, each frame of a video, or all images of a row.

Where several samples are packed into a row, each stands for a row of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from vtc.model.layout import Grid, Layout, VisualInput

#: What a selector's `keep` may count in; see `Selector.per`.
Per = Literal["input", "frame", "row"]


@dataclass(frozen=True)
class Unit:
    """Visual tokens that one decision is about.

    Attributes:
        images: the images or videos that they belong to, as indices in the layout.
        inside: for each of these, LongTensor [n]: which of its tokens, ascending; None: all of them.
        grids: the blocks that make up the tokens, in order.
        kind: "image" or "video".
        row: row of the batch.
        positions: LongTensor [N]: places in the row, ascending.
    """

    images: tuple[int, ...]
    inside: tuple[Tensor | None, ...]
    grids: tuple[Grid, ...]
    kind: str
    row: int
    positions: Tensor

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def separators(self) -> Tensor:
        """BoolTensor [N]: tokens that stand for no place in the picture."""
        return VisualInput(self.row, self.kind, self.positions, self.grids).separators()


def units(layout: Layout, per: str) -> list[Unit]:
    """The units of a call, row by row."""
    whole = [
        Unit((index,), (None,), _told(image), image.kind, image.row, image.positions)
        for index, image in enumerate(layout.images)
    ]
    if per == "frame":
        return [frame for unit in whole for frame in _frames(unit)]
    if per == "row":
        rows: dict[tuple[int, int], list[Unit]] = {}
        for unit in whole:
            rows.setdefault(layout.sample_of(unit.row, unit.positions), []).append(unit)
        return [_joined(row) for row in rows.values()]
    return whole


def _told(image: VisualInput) -> tuple[Grid, ...]:
    """Its grids, of which those of a video say so."""
    if image.kind != "video":
        return image.grids
    return tuple(replace(grid, kind="video") if grid.known else grid for grid in image.grids)


def _frames(unit: Unit) -> list[Unit]:
    """The frames of a video; what stands behind the last one goes with it. All else stays whole."""
    if len(unit.grids) != 1 or unit.grids[0].t == 1:
        return [unit]
    grid = unit.grids[0]
    length, frames = grid.frame, []
    for frame in range(grid.t):
        last = frame == grid.t - 1
        inside = torch.arange(frame * length, len(unit) if last else (frame + 1) * length)
        of_frame = replace(grid, t=1, end=grid.end if last else 0)
        frames.append(replace(unit, inside=(inside,), grids=(of_frame,), positions=unit.positions[inside]))
    return frames


def _joined(row: Sequence[Unit]) -> Unit:
    """All images of a row as one; images with one grid each, all alike, are frames of one video."""
    if len(row) == 1:
        return row[0]
    first, start, grids = row[0].grids[0], 0, []
    alike = all(grid.known for unit in row for grid in unit.grids)
    if (
        alike
        and all(len(unit.grids) == 1 and replace(unit.grids[0], t=1) == replace(first, t=1) for unit in row)
        and (not first.end)
    ):
        grids = [replace(first, t=sum(unit.grids[0].t for unit in row), kind="video")]
    else:
        for unit in row:
            grids += [grid.moved(start + grid.start) for grid in unit.grids]
            start += len(unit)
    images = tuple(index for unit in row for index in unit.images)
    positions = torch.cat([unit.positions for unit in row])
    kind = "video" if alike and grids[0].t > 1 else row[0].kind
    return Unit(images, (None,) * len(row), tuple(grids), kind, row[0].row, positions)
