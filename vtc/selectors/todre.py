"""ToDRE: a diverse selection in front of the decoder, and late in it no visual tokens at all (arXiv 2505.18757)."""

from dataclasses import dataclass
from typing import Literal

from vtc.method.base import Method
from vtc.method.budget import Keep
from vtc.method.registry import register
from vtc.prunes.todre_stage2 import TodreStage2
from vtc.selectors.kcenter import KCenter


@register("todre")
@dataclass
class Todre(KCenter):
    """Keep a diverse part of each image's tokens, and drop that too where the late decoder hardly attends to it.

    Both stages of the paper: `kcenter`, by default with the rule of the paper's version 2, and `todre_stage2`.
    https://arxiv.org/abs/2505.18757

    Budget: the paper's retention ratios, 0.25 and 0.1 of all visual tokens of a sample, are `keep` as they are; here
    each image has its own. What stage 2 drops comes on top. keep=1.0 leaves everything as it is: for stage 2 alone take
    `todre_stage2`.

    Attributes:
        keep: share in (0, 1] or count of the visual tokens of an image. Default 0.25 (720 of LLaVA-NeXT's 2880).
        rule: "max-sum" (version 2) or "max-min" (k-center, version 1).
        pivot: "cls", or "mean" (the token nearest to the mean) for towers without CLS.
        layer: tower block whose CLS attention is read, negative from the end. Default -1, the last.
        centering: as in `kcenter`; with rule="max-min". Default False, as published.
        threshold: tau of stage 2; 0 leaves stage 2 out.
        layers: decoder layers, from 0, in whose attention stage 2 decides. None: 7/8 of the depth.
    """

    keep: Keep = 0.25
    rule: Literal["max-min", "max-sum"] = "max-sum"
    threshold: float = 0.1
    layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.layers = self._second().layers

    def split(self) -> tuple[Method, ...]:
        whole = isinstance(self.keep, float) and self.keep == 1
        return (self,) if whole or self.threshold == 0 else (self, self._second())

    def _second(self) -> TodreStage2:
        return TodreStage2(threshold=self.threshold, layers=self.layers)
