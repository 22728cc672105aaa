"""EVS: the parts of a video that change from frame to frame (arXiv 2510.14624)."""

from dataclasses import dataclass
from numbers import Integral
from typing import ClassVar

import torch
from torch import Tensor

from vtc.method.budget import Keep
from vtc.method.reduction import Reduction
from vtc.method.registry import register
from vtc.method.selector import Selector
from vtc.method.units import Unit
from vtc.method.visual_tokens import VisualTokens
from vtc.model.layout import Grid
from vtc.ops.host import on
from vtc.ops.similarity import as_float

_FIRST = 255.0  # above any dissimilarity


def temporal_change(features: Tensor) -> Tensor:
    """How much each token differs from the one at its place in the frame before: 1 - cosine, in float32.

    Taken as half the squared distance of the unit vectors, which is exactly 0 where nothing changes.

    Args:
        features: [..., T, S, D].

    Returns:
        Tensor [..., T, S]; 255 in the first frame.
    """
    unit = torch.nn.functional.normalize(as_float(features), dim=-1)
    change = unit.diff(dim=-3).square().sum(dim=-1) / 2
    return torch.cat([torch.full_like(unit[..., :1, :, 0], _FIRST), change], dim=-2)


@register("evs")
@dataclass
class EVS(Selector):
    """Keep the first frame of a video whole, and elsewhere what changes most from the frame before.

    Efficient Video Sampling: the dissimilarities of all frames are ranked together, of equal ones the earliest wins, so
    that frames may end up without a token. Compared is with the frame before, not with what was kept last: slow change
    may never be seen. Images are left as they are, so that per="frame" removes nothing. Written from the public
    description of the rule.
    https://arxiv.org/abs/2510.14624

    Budget: with the paper's pruning rate q, keep = 1 - q; T·H·W·keep is rounded down, and at least one frame is kept.
    Separators (newlines, CLS tokens of frames) stay and are not counted.

    Attributes:
        keep: share in (0, 1] or count of the tokens of a video, separators left out.
    """

    signals: ClassVar[tuple[str, ...]] = ("time",)
    keep: Keep = 0.25

    def count_of(self, unit: Unit) -> int:
        videos = _videos(unit.grids)
        frame = sum(grid.h * grid.w for grid in videos)
        cells = sum(grid.t * grid.h * grid.w for grid in videos)
        wanted = int(self.keep) if isinstance(self.keep, Integral) else int(cells * float(self.keep))
        return min(max(frame, wanted), cells) + len(unit) - cells

    def select(self, visual: VisualTokens, k: int) -> Reduction:
        device, tokens = visual.features.device, visual.features.shape[1]
        frames = [grid.tokens().flatten(1) for grid in _videos(visual.grids)]
        cells = torch.cat([each.flatten() for each in frames])
        others = on(device, torch.ones(tokens, dtype=torch.bool).index_fill_(0, cells, False).nonzero()[:, 0])
        change = [temporal_change(visual.features[:, on(device, each)]).flatten(1) for each in frames]
        order = torch.cat(change, dim=1).argsort(dim=1, descending=True, stable=True)[:, : k - len(others)]
        kept = torch.cat([on(device, cells)[order], others.expand(len(order), -1)], dim=1)
        return Reduction.of(kept)


def _videos(grids: tuple[Grid, ...]) -> list[Grid]:
    """The grids of two frames or more: with `per="row"` there may be several, and images beside them."""
    return [grid for grid in grids if grid.t > 1]
