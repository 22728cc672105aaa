"""DivPrune: keep the visual tokens that are most unlike each other (arXiv 2503.02175, CVPR 2025)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vtc import ops
from vtc.method import fields
from vtc.method.budget import Keep
from vtc.method.reduction import Reduction
from vtc.method.registry import register
from vtc.method.selector import Selector
from vtc.method.visual_tokens import Needs, VisualTokens
from vtc.model.parts import Parts
from vtc.selectors.centering import Centred, blocks_to_centre, centred_tokens


def max_min_order(features: Tensor, k: int) -> Tensor:
    """The greedy solution of the max-min diversity problem under cosine distance (Algorithm 1).

    The first token is the one whose nearest other token is farthest away; each next one is the one whose nearest
    chosen token is farthest away. A smaller k gives a prefix.

    Chosen tokens are no candidates any more, as in the paper (the released code relies on their distance 0 and
    repeats tokens once only duplicates are left). Ties: lowest index. Tokens without a direction (zero, NaN) come last.

    Args:
        features: [G, N, D], the visual tokens as the language model sees them.
        k: tokens to choose, 1 <= k <= N.

    Returns:
        LongTensor [G, k] in the order of choice.
    """
    return ops.max_min(features, k)


def centred_order(tokens: Centred, k: int, first: Tensor | None = None) -> Tensor:
    """The same among centred tokens, a distance times the token's weight (Cen-Prune): LongTensor [G, k].

    The first token is `first` [G], by default Algorithm 1's own in the raw space.
    """
    first = max_min_order(tokens.raw, 1)[:, 0] if first is None else first
    return ops.weighted_max_min(tokens.rows, k, first, weight=tokens.weight)


@register("divprune")
@dataclass
class DivPrune(Selector):
    """Keep the tokens that cover the image best: the largest smallest cosine distance between any two of them.

    Needs neither attention nor text. One joint selection over thumbnail, tiles and newline tokens, or over all frames
    of a video. https://arxiv.org/abs/2503.02175

    Budget: the paper's ratio r is `keep` as it is: round half to even of r times the tokens of the image, newlines
    counted, of which at least one is kept.

    Attributes:
        keep: share in (0, 1] or count of the visual tokens of an image; a share is rounded half to even.
            Default 0.098: 56 of LLaVA-1.5's 576.
        centering: compare tokens without what all of them share, and weigh them by how far they stand from the others
            (Cen-Prune, arXiv 2608.30263). Default False: the published numbers of DivPrune are without.
    """

    signals: ClassVar[tuple[str, ...]] = ("diversity",)
    keep: Keep = 0.098
    centering: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        fields.check_bool("centering", self.centering)

    def needs(self, parts: Parts) -> Needs:
        return Needs(hidden=blocks_to_centre(parts, "divprune:centering=True") if self.centering else ())

    def select(self, visual: VisualTokens, k: int) -> Reduction:
        if self.centering:
            return Reduction.of(centred_order(centred_tokens(visual), k))
        return Reduction.of(max_min_order(visual.features, k))
