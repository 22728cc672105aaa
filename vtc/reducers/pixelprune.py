"""PixelPrune: patches that repeat what their neighbours predict never enter the vision tower.

arXiv 2604.00886.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vtc.method import fields
from vtc.method.patches import Patches
from vtc.method.reducer import Reducer
from vtc.method.reduction import Reduction
from vtc.method.registry import register
from vtc.model.parts import Parts
from vtc.ops.host import on, without_autocast

Metric = Literal["max", "mean", "rms"]

#: How far two cells are apart, of the absolute differences [n, D] of their pixels.
_DISTANCES: dict[str, Callable[[Tensor], Tensor]] = {
    "max": lambda difference: difference.amax(dim=1),
    "mean": lambda difference: difference.mean(dim=1),
    "rms": lambda difference: difference.square().mean(dim=1).sqrt(),
}
#: Cells that are compared at once where none waits for another.
_AT_ONCE = 512


def unpredicted(
    cells: Tensor, threshold: float = 0.0, metric: Metric = "max", anchored: bool = True, scale: Tensor | float = 1.0
) -> Tensor:
    """Which cells of a picture are not equal to what their neighbours predict.

    A cell is predicted by the one above it where the one above on the left equals the left one and not that above, else
    by the left one; in the first row by the left one, in the first column by the one above. The first cell has none.

    Args:
        cells: Tensor [H, W, ...], all pixels of each.
        threshold: the distance up to which two cells count as equal.
        metric: of the differences over all pixels of a cell: the largest, their mean or root mean square.
        anchored: whether a neighbour that is predicted itself counts as the cell that stands for it, so that none
            differs by more than `threshold` from what stands for it; else every neighbour counts as it is.
        scale: what differences are multiplied by.

    Returns:
        BoolTensor [H, W].
    """
    high, wide = cells.shape[:2]
    pixels, place = cells.flatten(0, 1), torch.arange(high * wide)
    row, column = place // wide, place % wide
    above = torch.where(row > 0, place - wide, place - 1)
    left = torch.where(column > 0, place - 1, above)
    corner = torch.where((row > 0) & (column > 0), place - wide - 1, above)
    order, waves, diagonal = place, place // _AT_ONCE, row + column
    if in_turn := anchored and threshold > 0:  # at a threshold of 0 whatever stands for a cell equals it
        order, waves = diagonal.argsort(stable=True), diagonal
    order, sizes = order[1:], waves[1:].bincount().tolist()
    neighbours = on(cells.device, torch.stack([order, *(each[order] for each in (left, above, corner))]))
    stands = on(cells.device, place)
    kept = torch.ones_like(stands, dtype=torch.bool)

    def same(one: Tensor, other: Tensor) -> Tensor:
        difference = (pixels[one].float() - pixels[other].float()) * scale
        return _DISTANCES[metric](difference.abs().flatten(1)) <= threshold

    for here, *around in neighbours.split(sizes, dim=1):
        by_left, by_above, by_corner = (stands[each] for each in around)
        predicted = torch.where(same(by_corner, by_left) & ~same(by_corner, by_above), by_above, by_left)
        kept[here] = ~same(here, predicted)
        if in_turn:
            stands[here] = torch.where(kept[here], here, predicted)
    return kept.view(high, wide)


@register("pixelprune")
@dataclass
class PixelPrune(Reducer):
    """Drop patches whose pixels repeat what their neighbours predict, before the vision tower's first block.

    The patches of one visual token are a cell. Left, above and above-left neighbours predict it as in lossless image
    coding, and it stays only if it is unlike its prediction: all that is left out goes on as its neighbours do.
    Tower and language model never see it; the rest keeps its place. Documents and screens have many such cells,
    photographs none: their noise makes every cell its own. No text, no features, no training. For towers that take
    pictures patch by patch (Qwen-VL); a video of more than one step of its grid is left as it is. Pictures must not be
    resized to odd sides before, and pixels are compared as they are given, best in float32.
    https://arxiv.org/abs/2604.00886

    Budget: none; each picture keeps the cells that differ from their prediction, at least one.

    Attributes:
        threshold: tau, how far a cell may be from its prediction, with pixels from 0 to 1. Default 0: only exact
            repetition goes. The paper's lossy settings are 0.02 to 0.1; choose between multiples of 1/255.
        metric: distance of two cells: "max" over all pixels (default), "mean" or "rms" of their differences.
        anchored: whether a cell is compared with what stands for its neighbours (default), so that errors do not add up
            along a row: none is larger than the threshold. Else with the neighbours themselves.
        image_std: what the processor divided each channel by, as its config names it; only a threshold above 0 needs
            it. Default None: what was published with the family, 0.5 for Qwen3 and CLIP's for the others.
    """

    threshold: float = 0.0
    metric: Metric = "max"
    anchored: bool = True
    image_std: tuple[float, ...] | None = None
    signals: ClassVar[tuple[str, ...]] = ("diversity",)
    acts = "entry"
    sees_pixels: ClassVar[bool] = True
    may_adapt: ClassVar[bool] = True
    keep = None

    def __post_init__(self) -> None:
        super().__post_init__()
        fields.check_share("threshold", self.threshold, "give a distance of pixels from 0 to 1, such as 0.05")
        fields.check_bool("anchored", self.anchored)
        if self.image_std is not None:
            way_out = "give the image_std of the processor, such as (0.5, 0.5, 0.5), or None for the published one"
            self.image_std = fields.as_tuple("image_std", self.image_std, way_out)
            if not all(isinstance(each, Real) and 0 < float(each) < math.inf for each in self.image_std):
                raise ValueError(f"image_std={self.image_std!r} is not of numbers above 0; {way_out}")

    @property
    def together(self) -> str:
        """Each picture alone: how many cells stay depends on what it shows."""
        return "sequence"

    def blocks(self, parts: Parts) -> tuple[int, ...]:
        return (parts.block(0, "pixelprune"),)

    def reduce(self, patches: Patches) -> Reduction | None:
        (picture,) = patches.pictures
        if len(picture.cells) > 1:
            return None
        assert patches.tokens is not None
        published, channels = picture.deviation, picture.cells.shape[-2]
        std = published if self.image_std is None else self.image_std
        if len(std) != channels:
            raise ValueError(f"image_std={std!r} is not of the {channels} channels that the picture has")
        device = picture.cells.device
        with without_autocast(device):
            scale = on(device, std)[:, None]
            kept = unpredicted(picture.cells[0], self.threshold, self.metric, self.anchored, scale)
        stays = on(patches.tokens.device, kept.flatten())[patches.tokens].nonzero().T[1:]
        return Reduction(stays) if stays.shape[1] < patches.units else None
