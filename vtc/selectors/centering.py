"""Centring: tokens of one image without what all of them share (Cen-Prune, arXiv 2608.30263)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vtc.method.visual_tokens import VisualTokens
from vtc.model.parts import Parts
from vtc.ops.similarity import as_float, unit_rows

#: Under the root of a dimension's variance.
_EPS = 1e-6
#: What is no more than this share of what it comes from is rounding: the length of a centred row, of the longest row;
#: the spread of distinctiveness, of 1.
_ROUNDING = 1e-6
#: Families whose tokens are compared in front of the merger, each dimension by its spread over the image.
SCALED = ("qwen2_5_vl",)


@dataclass(frozen=True)
class Centred:
    """The tokens of G images, each image by itself.

    Attributes:
        raw: Tensor [G, N, D] in float32: what the first pick of a method and the weights are read from.
        rows: Tensor [G, N, D]: `raw` minus the image's mean; zero where nothing but rounding is left.
        weight: Tensor [G, N]: how far a token stands from the others, 0 to 1.
    """

    raw: Tensor
    rows: Tensor
    weight: Tensor


def distinctiveness(features: Tensor) -> Tensor:
    """Minus the mean cosine similarity of each token to the others: [G, N, D] -> [G, N]; 0 where there is one token."""
    unit = unit_rows(features)
    own = unit.square().sum(dim=-1)
    total = torch.einsum("gnd,gd->gn", unit, unit.sum(dim=1))
    return (own - total) / max(features.shape[1] - 1, 1)


def centred(features: Tensor, scaled: bool = False) -> Centred:
    """Centre the tokens of each image, and weigh them by how distinct they are in the raw space (Sec. 4.3).

    Args:
        features: [G, N, D], after the projector; with `scaled` in front of the merger.
        scaled: divide each dimension by its standard deviation over the image first, and weigh by the sigmoid of the
            z-score instead of between the least and the most distinct token.
    """
    raw = as_float(features)
    if scaled:
        raw = raw / (raw.var(dim=1, correction=0, keepdim=True) + _EPS).sqrt()
    rows = raw - raw.mean(dim=1, keepdim=True)
    longest = raw.norm(dim=-1, keepdim=True).amax(dim=1, keepdim=True)
    rows = rows.masked_fill(rows.norm(dim=-1, keepdim=True) <= _ROUNDING * longest, 0.0)
    told = distinctiveness(raw)
    if scaled:
        spread = told.std(dim=1, correction=0, keepdim=True)
        z = (told - told.mean(dim=1, keepdim=True)) / torch.where(spread > _ROUNDING, spread, 1.0)
        return Centred(raw, rows, z.sigmoid())
    least, most = told.amin(dim=1, keepdim=True), told.amax(dim=1, keepdim=True)
    alike = most - least <= _ROUNDING
    weight = (told - least) / torch.where(alike, 1.0, most - least)
    return Centred(raw, rows, weight.masked_fill(alike, 1.0))


def blocks_to_centre(parts: Parts, wanted_by: str) -> tuple[int, ...]:
    """The tower block whose output is centred in place of the projected tokens: that of the `SCALED` families."""
    return (parts.block(-1, wanted_by),) if parts.family in SCALED else ()


def centred_tokens(visual: VisualTokens, places: Tensor | None = None) -> Centred:
    """`centred` of what `blocks_to_centre` asked for, or else of the projected tokens; of some `places` [M] alone."""
    scaled = bool(visual.hidden)
    features = next(iter(visual.hidden.values())).nan_to_num(0.0) if scaled else visual.features
    return centred(features if places is None else features[:, places], scaled)
