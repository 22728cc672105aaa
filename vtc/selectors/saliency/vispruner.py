"""VisPruner: what CLS attends to, and of the rest what is not a duplicate; FasterVLM is its special case.

arXiv 2412.01818 (version 1 is FasterVLM; ICCV 2025).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc.method import fields
from vtc.method.budget import Keep
from vtc.method.reduction import Reduction, top_k
from vtc.method.registry import register
from vtc.method.selector import Selector
from vtc.method.visual_tokens import Needs, VisualTokens
from vtc.model.parts import Parts
from vtc.ops.similarity import unit_rows
from vtc.selectors.crops import pick_in_crops
from vtc.selectors.saliency.attended import attended, needs_attended

#: Most tokens that a round drops.
_DROPPED = 8
#: Up to this many entries (of float32: 256 MiB) all similarities are kept; beyond, each round computes those it reads.
_ENTRIES = 2**26


def vispruner(features: Tensor, saliency: Tensor, k: int, important: float) -> Tensor:
    """The tokens with the highest saliency, and of the others those that are left when duplicates are dropped.

    Of the others, sorted by saliency, every second one is compared with the ones between; up to 8 that have the most
    similar partner are dropped, the rest of that half goes to the front in the order of its similarity, and so on until
    as many are left as are wanted (Sec. 3.3). Rounds that the released code can't do drop fewer.

    Args:
        features: [G, N, D], in front of the projector.
        saliency: [G, N]; NaN counts as lowest.
        k: tokens to keep, 1 <= k <= N.
        important: share of them that saliency alone decides, rounded down.

    Returns:
        LongTensor [G, k]: the important ones by saliency, then the others.
    """
    order = top_k(saliency, saliency.shape[1])
    first = int(k * important)
    return torch.cat([order[:, :first], without_duplicates(features, order[:, first:], k - first)], dim=1)


def without_duplicates(features: Tensor, tokens: Tensor, count: int) -> Tensor:
    """Of `tokens` [G, R] of `features` [G, N, D], drop duplicates until `count` are left: LongTensor [G, count]."""
    if not count:
        return tokens[:, :0]
    unit = unit_rows(features)
    fits = unit.shape[0] * unit.shape[1] ** 2 <= _ENTRIES
    if fits:
        unit = unit @ unit.mT  # rows of similarities

    def rows(of: Tensor) -> Tensor:
        return unit.gather(1, of[:, :, None].expand(-1, -1, unit.shape[2]))

    def nearest(some: Tensor, others: Tensor) -> Tensor:
        if fits:
            return rows(some).gather(2, others[:, None].expand(-1, some.shape[1], -1)).amax(dim=2)
        return torch.cat([(part @ rows(others).mT).amax(dim=2) for part in rows(some).split(512, dim=1)], dim=1)

    while (left := tokens.shape[1]) > count:
        even, odd = tokens[:, ::2], tokens[:, 1::2]
        fewer = min(_DROPPED, left - count, even.shape[1])
        by_similarity = even.gather(1, top_k(nearest(even, odd), even.shape[1]))
        tokens = torch.cat([by_similarity[:, fewer:], odd], dim=1)
    return tokens


@register("vispruner")
@dataclass
class VisPruner(Selector):
    """Keep what CLS attends to, and beside it tokens that are no duplicates of each other.

    Both are read in the block that the projector reads. Each crop (thumbnail, tile, frame) is decided alone. The rounds
    follow one another, about one for every eight tokens that go. Towers without CLS: the projected tokens, and the
    attention that each receives in the last block. Needs no text. https://arxiv.org/abs/2412.01818

    important=1 is FasterVLM: the highest attention alone.

    Budget: the paper's, tokens in all: 192, 128 or 64 of LLaVA-1.5's 576, 640, 320 or 160 for all crops of LLaVA-NeXT,
    a share for Qwen2.5-VL.

    Attributes:
        keep: share in (0, 1] or count of the visual tokens of an image. Default 1/9 (64 of LLaVA-1.5's 576).
        important: share of these that attention alone decides, rounded down. Default 0.5; published runs took 0.75 for
            some benchmarks.
    """

    signals: ClassVar[tuple[str, ...]] = ("saliency", "diversity")
    keep: Keep = 1 / 9
    important: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        fields.check_share("important", self.important, "give the share of important tokens, e.g. 0.5; 1 is FasterVLM")

    def needs(self, parts: Parts) -> Needs:
        return needs_attended(parts, "vispruner")

    def select(self, visual: VisualTokens, k: int) -> Reduction:
        features, saliency = attended(visual)
        return pick_in_crops(visual, k, lambda of, part: vispruner(of(features), of(saliency), part, self.important))
