"""What every method is to be compared with: nothing, chance, a uniform grid, downsampling."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from vtc.method import fields
from vtc.method.base import Positions
from vtc.method.budget import Keep
from vtc.method.reduction import Reduction
from vtc.method.registry import register
from vtc.method.selector import Selector
from vtc.method.units import Per
from vtc.method.visual_tokens import VisualTokens
from vtc.model.layout import Grid
from vtc.ops.host import on
from vtc.ops.mixing import Mixing
from vtc.selectors.places import boxes, candidates


def random_positions(tokens: int, k: int, seed: int) -> Tensor:
    """`k` of `tokens` positions, LongTensor [k] in random order; a smaller k gives a prefix.

    They depend on nothing but the arguments: not on the batch, the image, its place in a chat, the device or torch's
    global generator.
    """
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed},{tokens},0".encode()))
    return torch.randperm(tokens, generator=generator)[:k]


def stride_positions(grids: tuple[Grid, ...], k: int) -> Tensor:
    """`k` positions spread evenly over the grids: the centres of equal boxes. LongTensor [k], ascending."""
    return boxes(grids, k)[2]


def frame_stride_positions(grids: tuple[Grid, ...], k: int) -> Tensor:
    """`k` tokens of evenly spaced frames, the last of these thinned. LongTensor [k], ascending.

    Several grids are no video: they are thinned together.
    """
    if len(grids) > 1:
        return stride_positions(grids, k)
    frames = grids[0].tokens().flatten(1)
    total, length = frames.shape
    count = -(-k // length)
    chosen = [(2 * i + 1) * total // (2 * count) for i in range(count)]
    whole = frames[chosen[:-1]].flatten()
    last = stride_positions((replace(grids[0], start=0, t=1, row_end=0, end=0, front=0),), k - len(whole))
    return torch.cat([whole, frames[chosen[-1], last]])


def pool_mixing(grids: tuple[Grid, ...], k: int) -> tuple[Tensor, Mixing]:
    """Average-pool the grids into `k` tokens: the mean of each of k boxes, at the box's centre.

    Returns:
        LongTensor [k], the centres, ascending, and the Mixing for one image (tensors [1, M]) whose rows sum to 1.
    """
    tokens, box_of, centres = boxes(grids, k)
    weight = 1.0 / torch.bincount(box_of, minlength=k)[box_of].float()
    return centres, Mixing(tokens[None], box_of[None], weight[None])


@register("none")
@dataclass
class NoCompression(Selector):
    """Keep every visual token: the row that a table starts with.

    Attributes:
        keep: always 1.0; not to be given.
        per: says nothing here; not to be given.
        positions: says nothing here; not to be given.
    """

    keep: Keep = field(default=1.0, init=False, repr=False)
    per: Per = field(default="input", init=False, repr=False)
    positions: Positions = field(default="packed", init=False, repr=False)  # type: ignore[misc]


@register("random")
@dataclass
class Random(Selector):
    """Keep tokens at random.

    The positions are a function of (seed, N) alone: every image of N tokens keeps the same ones, so that a row of a
    batch gets what it gets by itself, and an image in a second turn what it gets in one prompt with the first.

    Attributes:
        keep: share in (0, 1] or count of the visual tokens of an image.
        seed: any int.
    """

    keep: Keep = 0.25
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        fields.check_int("seed", self.seed, "give an int such as 0")

    def select(self, visual: VisualTokens, k: int) -> Reduction:
        tokens = visual.features.shape[1]
        return Reduction.of(_for_each(random_positions(tokens, k, self.seed), visual))


@register("stride")
@dataclass
class Stride(Selector):
    """Keep tokens on a uniform grid.

    Exactly k tokens, spread over the grids of the image in proportion to their size, over all frames of a video;
    separators only when k is more than the grids have.

    Attributes:
        keep: share in (0, 1] or count of the visual tokens of an image.
    """

    signals: ClassVar[tuple[str, ...]] = ("place",)
    keep: Keep = 0.25

    def select(self, visual: VisualTokens, k: int) -> Reduction:
        return _spread(visual, k, stride_positions)


@register("frame_stride")
@dataclass
class FrameStride(Selector):
    """Keep whole frames of a video, evenly spaced: what sampling fewer frames would cost.

    Exactly k tokens: the last of the chosen frames is thinned to a uniform grid where k is no multiple of a frame.
    Separators only when k is more than the frames have. On images it is `stride`.

    Attributes:
        keep: share in (0, 1] or count of the visual tokens of a video.
    """

    signals: ClassVar[tuple[str, ...]] = ("place",)
    keep: Keep = 0.25

    def select(self, visual: VisualTokens, k: int) -> Reduction:
        return _spread(visual, k, frame_stride_positions)


@register("pool")
@dataclass
class Pool(Selector):
    """Average-pool the visual tokens: what a lower resolution would cost.

    Each new token is the mean of one of k boxes that tile the grids, and sits at the box's centre. In a video boxes
    stay within a frame (a quarter: 2 × 2 cells of each), unless k is below the number of frames. Separators are dropped
    (where k is more than the grids have, nothing is pooled and the first separators fill up).

    Attributes:
        keep: share in (0, 1] or count of the visual tokens of an image.
    """

    signals: ClassVar[tuple[str, ...]] = ("place", "merging")
    keep: Keep = 0.25

    def select(self, visual: VisualTokens, k: int) -> Reduction:
        places = candidates(visual, k)
        if len(places) == k:
            return Reduction.of(_for_each(places, visual))
        kept, mixing = pool_mixing(visual.grids, k)
        each = (_for_each(part[0], visual) for part in (mixing.source, mixing.target, mixing.weight))
        return Reduction(_for_each(kept, visual), Mixing(*each))


def _spread(visual: VisualTokens, k: int, positions: Callable[[tuple[Grid, ...], int], Tensor]) -> Reduction:
    """Keep `positions(grids, k)`; where k is more than the grids have, all of them and the first separators."""
    places = candidates(visual, k)
    return Reduction.of(_for_each(places if len(places) == k else positions(visual.grids, k), visual))


def _for_each(values: Tensor, visual: VisualTokens) -> Tensor:
    """[M] as [G, M] on the device of the features."""
    return on(visual.features.device, values).expand(visual.features.shape[0], -1)
