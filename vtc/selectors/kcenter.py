"""k-center: a greedy cover of the visual tokens that starts where CLS looks; stage 1 of ToDRE (arXiv 2505.18757)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vtc import ops
from vtc.method import fields
from vtc.method.budget import Keep
from vtc.method.reduction import Reduction, top_k
from vtc.method.registry import register
from vtc.method.selector import Selector
from vtc.method.visual_tokens import Needs, VisualTokens
from vtc.model.parts import Parts
from vtc.ops.host import on
from vtc.ops.similarity import as_float
from vtc.selectors.centering import blocks_to_centre, centred_tokens
from vtc.selectors.divprune import centred_order
from vtc.selectors.places import candidates


def k_center_order(features: Tensor, pivot: Tensor, k: int, rule: str = "max-min") -> Tensor:
    """Greedy order from a pivot under cosine distance (eq. 4-6 of version 2 for "max-sum").

    Args:
        features: [G, N, D].
        pivot: LongTensor [G], the first token.
        k: tokens to choose, 1 <= k <= N.
        rule: next comes the token with the largest distance to its nearest chosen one ("max-min", greedy k-center), or
            with the largest sum of distances to all chosen ones ("max-sum").

    Returns:
        LongTensor [G, k] in the order of choice.
    """
    return ops.max_min(features, k, seed=pivot, rule=rule)


def cls_pivot(cls_attention: Tensor, allowed: Tensor | None = None) -> Tensor:
    """The token that CLS attends to most; for a video this is the best of the frames' best.

    Args:
        cls_attention: [G, N]; NaN counts as lowest.
        allowed: BoolTensor [N]: tokens that may be the pivot.

    Returns:
        LongTensor [G].
    """
    if allowed is not None:
        cls_attention = cls_attention.masked_fill(~allowed, float("nan"))
    return top_k(cls_attention, 1)[:, 0]


def mean_pivot(features: Tensor) -> Tensor:
    """The token that is nearest to the mean token by cosine similarity; [G, N, D] -> LongTensor [G]."""
    unit = torch.nn.functional.normalize(as_float(features), dim=-1)
    return top_k((unit @ unit.mean(dim=1)[:, :, None])[:, :, 0], 1)[:, 0]


@register("kcenter")
@dataclass
class KCenter(Selector):
    """Keep a greedy cover of the image's tokens, grown from the one token that CLS attends to most.

    Of a video the cover spans all frames. With tiles, the pivot is sought in the thumbnail alone. Separators are no
    candidates; they fill up only where keep asks for more tokens than the picture has. Stage 1 of ToDRE; version 1 of
    the paper calls it greedy k-center, version 2, whose tables these are, max-sum. https://arxiv.org/abs/2505.18757

    Budget: the paper's retention ratios, 0.25 and 0.1 of all visual tokens of a sample, are `keep` as they are; here
    each image has its own.

    Attributes:
        keep: share in (0, 1] or count of the visual tokens of an image. Default 0.1 (288 of LLaVA-NeXT's 2880).
        rule: "max-min" (k-center, version 1) or "max-sum" (version 2).
        pivot: "cls", or "mean" (the token nearest to the mean) for towers without CLS.
        layer: tower block whose CLS attention is read, negative from the end. Default -1, the last.
        centering: compare tokens without what all of them share, and weigh them by how far they stand from the others
            (Cen-Prune, arXiv 2608.30263); with rule="max-min". The pivot stays. Default False, as published.
    """

    signals: ClassVar[tuple[str, ...]] = ("diversity",)
    keep: Keep = 0.1
    rule: Literal["max-min", "max-sum"] = "max-min"
    pivot: Literal["cls", "mean"] = "cls"
    layer: int = -1
    centering: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        fields.check_bool("centering", self.centering)
        if self.centering and self.rule != "max-min":
            raise ValueError(f"centering=True is not defined for rule={self.rule!r}; use rule='max-min'")
        fields.check_int("layer", self.layer, "give a block of the vision tower such as -1, the last")

    def needs(self, parts: Parts) -> Needs:
        hidden = blocks_to_centre(parts, f"{self.name}:centering=True") if self.centering else ()
        if self.pivot == "mean":
            return Needs(hidden=hidden)
        if not parts.has_cls:
            raise ValueError(
                f"kcenter: pivot='cls' needs a vision tower with a CLS token, which {parts.family} lacks; "
                "use pivot='mean'"
            )
        return Needs(cls=(parts.block(self.layer, self.name),), hidden=hidden)

    def select(self, visual: VisualTokens, k: int) -> Reduction:
        places = on(visual.features.device, candidates(visual, k))
        features = visual.features[:, places]
        if self.pivot == "mean":
            pivot = mean_pivot(features)
        else:
            (attention,) = visual.cls.values()
            pivot = cls_pivot(attention[:, places], on(places.device, _pivot_places(visual))[places])
        if self.centering:
            return Reduction.of(places[centred_order(centred_tokens(visual, places), k, pivot)])
        return Reduction.of(places[k_center_order(features, pivot, k, self.rule)])


def _pivot_places(visual: VisualTokens) -> Tensor:
    """BoolTensor [N]: the tokens of the thumbnail; of all grids where there is none."""
    thumbnails = [grid for grid in visual.grids if grid.kind == "thumbnail"]
    places = torch.zeros_like(visual.separators)
    for grid in thumbnails or visual.grids:
        places[grid.places()] = True
    return places
