"""ATP-LLaVA's scores and grid without its learned thresholds, a variant of ours (arXiv 2412.00447)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc.method import fields
from vtc.method.budget import Keep
from vtc.method.prune import Decision, Memory, Rows
from vtc.method.registry import register
from vtc.ops.host import on
from vtc.prunes.attention.atp_scores import LAYERS, ATPModules, cells_of, grid_points, stride_for
from vtc.prunes.profile import check_layers, geometric
from vtc.prunes.transprune import share_of_visual


def enough(scores: Tensor, visual: Tensor, mass: float, least: float, most: float) -> Tensor:
    """The fewest tokens whose scores make up the share `mass` of all, within limits.

    Args:
        scores: Tensor [B, n], not negative.
        visual: BoolTensor [B, n].
        mass: rho, in [0, 1].
        least: share of the visual tokens below which the count does not fall, rounded up.
        most: share that it does not exceed, rounded down; the other limit comes first.

    Returns:
        LongTensor [B].
    """
    present = visual.sum(dim=1)
    ordered = (scores.float().nan_to_num(0.0) * visual).sort(dim=1, descending=True).values
    gathered = ordered.cumsum(dim=1)
    count = (gathered < mass * gathered[:, -1:]).sum(dim=1) + 1
    return count.minimum((most * present).floor().long()).maximum((least * present).ceil().long())


def ranked(scores: Tensor, first: Tensor, visual: Tensor) -> Tensor:
    """Rank of each token, from 0: visual ones before others, `first` before other visual ones, then by score.

    Args:
        scores: Tensor [B, n].
        first: BoolTensor [B, n].
        visual: BoolTensor [B, n].

    Returns:
        LongTensor [B, n]; of equal ones the first has the lower rank.
    """
    order = scores.float().nan_to_num(0.0).argsort(dim=1, descending=True, stable=True)
    group = (first & visual).long() + visual.long()
    order = order.gather(1, group.gather(1, order).argsort(dim=1, descending=True, stable=True))
    return order.argsort(dim=1)


@register("atp_tf")
@dataclass
class ATPTrainingFree(ATPModules):
    """Drop, in front of three decoder layers, the visual tokens that visual tokens and instruction look at least.

    The score is the mean of two shares: the attention in the layer before that a token receives from the visual
    tokens that may see it, and from the instruction, each divided by its sum over the visual tokens. About a quarter
    of what stays is a uniform grid of points of the picture, as far as they are still there; the rest goes by score.
    Survivors keep their position ids. In place of the learned thresholds of the paper there is a count, or with
    keep=None the mass that the scores of the kept tokens must reach. https://arxiv.org/abs/2412.00447

    Budget: a share or count is what is left behind the last of the three layers; each leaves the same share of what
    it finds. With keep=None flat scores keep many tokens and peaked ones few, in each layer anew, plus the grid.

    Attributes:
        keep: share in (0, 1] or count of the row's visual tokens; shares round down. None: the scores decide.
        mass: rho: share of the sum of the scores that the best tokens must reach, with keep=None. The default leaves a
            quarter of the tokens on average over the layers of the package's embedded model; other models want others.
        min_share: share of the tokens found that the best tokens must at least be, with keep=None.
        max_share: share that they may at most be, with keep=None; the grid comes on top.
        layers: decoder layers, from 0, in front of which tokens go. None: the published 5, 15, 25 of 32, scaled to the
            model's depth.
    """

    keep: Keep | None = 0.25
    mass: float = 0.57
    min_share: float = 0.05
    max_share: float = 0.9
    layers: tuple[int, ...] | None = None
    positions: ClassVar[str] = "original"
    may_adapt: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        fields.check_share("mass", self.mass, "give the share of the scores' sum that stays, such as 0.57")
        way_out = "give a share of the tokens such as 0.05"
        fields.check_share("min_share", self.min_share, way_out)
        fields.check_share("max_share", self.max_share, way_out)
        if self.min_share > self.max_share:
            raise ValueError(f"min_share={self.min_share!r} is above max_share={self.max_share!r}; swap them")
        self.layers = check_layers(self.layers, LAYERS)

    def count(self, present: int) -> int:
        stages = len(self.layers or LAYERS)
        return self.count_at(stages - 1, present)

    def count_at(self, stage: int, present: int) -> int:
        return present if self.keep is None else geometric(self.keep, present, stage, len(self.layers or LAYERS))

    def decide(self, rows: Rows, counts: Sequence[int], memory: Memory) -> Decision:
        scores = share_of_visual(memory["self"], rows.visual) + share_of_visual(memory["cross"], rows.visual)
        if not self.adaptive:
            rank = ranked(scores, self._grid(rows, counts), rows.visual)
            return Decision(rows.visual & (rank < on(rank.device, counts)[:, None]))
        best = enough(scores, rows.visual, self.mass, self.min_share, self.max_share)
        rank = ranked(scores, torch.zeros_like(rows.visual), rows.visual)
        return Decision(rows.visual & ((rank < best[:, None]) | self._grid(rows, best.tolist())))

    def _grid(self, rows: Rows, counts: Sequence[int]) -> Tensor:
        """About a quarter of `counts` points of each row's pictures: BoolTensor [B, n]."""
        assert rows.origin is not None
        wanted = [count // 4 for count in counts]
        strides = [stride_for(cells_of(rows.images, row), count) if count else 0 for row, count in enumerate(wanted)]
        return grid_points(rows.images, rows.origin, strides)
