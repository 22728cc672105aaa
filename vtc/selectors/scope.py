"""SCOPE: cover the picture with tokens that the vision tower attends to (arXiv 2510.24214, NeurIPS 2025)."""

from dataclasses import dataclass
from numbers import Real
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vtc import ops
from vtc.method.budget import Keep
from vtc.method.reduction import Reduction
from vtc.method.registry import register
from vtc.method.selector import Selector
from vtc.method.visual_tokens import Needs, VisualTokens
from vtc.model.parts import Parts
from vtc.ops.similarity import as_float
from vtc.selectors.crops import pick_in_crops
from vtc.selectors.saliency.attended import attended, needs_attended


def scope_order(
    features: Tensor,
    saliency: Tensor | None,
    k: int,
    alpha: float = 1.0,
    combine: Literal["product", "sum"] = "product",
) -> Tensor:
    """Greedy saliency-weighted coverage (Algorithm 1).

    How well a token is covered is its largest cosine similarity to a chosen one, and 0 at first. Next comes the token
    that adds most to the sum over all tokens, times its saliency to the power of alpha. A smaller k gives a prefix.

    Where saliency is 0, or all is covered, coverage decides, then saliency, then the lowest index. Rows without a
    direction are like nothing.

    Args:
        features: [G, N, D], in front of the projector.
        saliency: [G, N], attention from CLS or received, NaN counts as 0; None: coverage alone.
        k: tokens to choose, 1 <= k <= N.
        alpha: power of the saliency.
        combine: gain times saliency, or plus it.

    Returns:
        LongTensor [G, k] in the order of choice.
    """
    if saliency is None:
        return ops.coverage(features, k, None, combine)
    saliency = as_float(saliency)
    if combine == "product":  # a factor for all changes no choice, and keeps powers of small numbers above 0
        largest = saliency.amax(dim=1, keepdim=True)
        saliency = saliency / torch.where(largest > 0, largest, 1.0)
    weight = saliency**alpha
    return ops.coverage(features, k, weight, combine)


@register("scope")
@dataclass
class Scope(Selector):
    """Keep the tokens that cover the picture best, weighted by what the vision tower attends to.

    Covering is measured on what the tower gives the projector, saliency is the attention of CLS in that block. Each
    crop (thumbnail, tile, frame) is chosen in alone. Towers without CLS: on the projected tokens, with the attention
    that each receives in the last block. Needs no text. https://arxiv.org/abs/2510.24214

    Budget: the paper's, tokens in all: 192, 128 or 64 of LLaVA-1.5's 576, 640, 320 or 160 for all crops of LLaVA-NeXT.
    The released code gives each crop int(budget / crops) and loses the remainder; here the first crops have it.

    Attributes:
        keep: share in (0, 1] or count of the visual tokens of an image. Default 1/9 (64 of LLaVA-1.5's 576).
        alpha: power of the saliency. Default 1, as in every released script; the paper's ablation has 0.5 best.
        combine: "product" of gain and saliency, or "sum" (a switch of the released code, behind no published number).
    """

    signals: ClassVar[tuple[str, ...]] = ("saliency", "coverage")
    keep: Keep = 1 / 9
    alpha: float = 1.0
    combine: Literal["product", "sum"] = "product"

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.alpha, bool) or not isinstance(self.alpha, Real):
            raise TypeError(
                f"alpha={self.alpha!r} is a {type(self.alpha).__name__}, not a number; give one such as 1.0"
            )
        if not 0 <= self.alpha < float("inf"):
            raise ValueError(f"alpha={self.alpha!r} is not a number from 0 on; 0 leaves saliency out, 1 is published")

    def needs(self, parts: Parts) -> Needs:
        return needs_attended(parts, "scope")

    def select(self, visual: VisualTokens, k: int) -> Reduction:
        features, saliency = attended(visual)
        return pick_in_crops(
            visual, k, lambda of, part: scope_order(of(features), of(saliency), part, self.alpha, self.combine)
        )
