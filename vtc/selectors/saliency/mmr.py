"""Maximal marginal relevance (Carbonell and Goldstein, 1998): saliency minus similarity to what is kept already."""

from dataclasses import dataclass
from numbers import Real
from typing import ClassVar

import torch
from torch import Tensor

from vtc import ops
from vtc.method.budget import Keep
from vtc.method.reduction import Reduction, top_k
from vtc.method.registry import register
from vtc.method.selector import Selector
from vtc.method.visual_tokens import Needs, VisualTokens
from vtc.model.parts import Parts
from vtc.ops.similarity import as_float
from vtc.selectors.crops import pick_in_crops
from vtc.selectors.saliency.attended import attended, needs_attended


def marginal_relevance_order(features: Tensor, importance: Tensor, k: int, penalty: float = 1.0) -> Tensor:
    """Greedy order by importance - penalty · largest cosine similarity to a chosen token; the first by importance.

    Importance is scaled to 0…1 over the tokens; where all are equal it is 0. Ties: lowest index. A smaller k gives a
    prefix.

    Args:
        features: [G, N, D].
        importance: [G, N]; NaN counts as lowest.
        k: tokens to choose, 1 <= k <= N.
        penalty: weight of the similarity, above 0.

    Returns:
        LongTensor [G, k] in the order of choice.
    """
    told = as_float(torch.where(importance.isnan(), torch.inf, importance).amin(dim=1, keepdim=True))
    importance = torch.where(importance.isnan(), told, as_float(importance))
    scale = importance.amax(dim=1, keepdim=True) - told
    importance = (importance - told) / torch.where(scale > 0, scale, 1.0)
    return ops.weighted_max_min(features, k, top_k(importance, 1)[:, 0], bonus=importance / penalty)


@register("mmr")
@dataclass
class MMR(Selector):
    """Keep tokens that the vision tower attends to, each only as far as it is unlike those that are kept already.

    Maximal marginal relevance: importance - penalty · greatest similarity. The untrained form of IDPruner (AngelSlim),
    which has a trained network in place of attention: here importance is the attention of CLS in the block that the
    projector reads, scaled to 0…1, similarity is that of the tower's features in that block. Each crop (thumbnail,
    tile, frame) is chosen in alone. Towers without CLS: the projected tokens, and the attention that each receives in
    the last block. Needs no text. https://arxiv.org/abs/2602.13315

    Budget: the share or number of tokens that stay is `keep` as it is.

    Attributes:
        keep: share in (0, 1] or count of the visual tokens of an image. Default 0.25, IDPruner's larger one.
        penalty: what similarity counts beside importance. Default 1: IDPruner's λ of 0.5 for both.
    """

    signals: ClassVar[tuple[str, ...]] = ("saliency", "diversity")
    keep: Keep = 0.25
    penalty: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        way_out = "give what similarity counts beside importance, above 0, such as 1.0"
        if isinstance(self.penalty, bool) or not isinstance(self.penalty, Real):
            raise TypeError(f"penalty={self.penalty!r} is a {type(self.penalty).__name__}, not a number; {way_out}")
        if not 0 < self.penalty < float("inf"):
            raise ValueError(f"penalty={self.penalty!r} is not above 0 and finite; {way_out}")

    def needs(self, parts: Parts) -> Needs:
        return needs_attended(parts, "mmr")

    def select(self, visual: VisualTokens, k: int) -> Reduction:
        features, saliency = attended(visual)
        return pick_in_crops(
            visual, k, lambda of, part: marginal_relevance_order(of(features), of(saliency), part, self.penalty)
        )
