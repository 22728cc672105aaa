"""DivPrune: keep the visual tokens that are most unlike each other (arXiv 2503.02175, CVPR 2025)."""

from dataclasses import dataclass

from torch import Tensor

from vtc import ops
from vtc.method.budget import Keep
from vtc.method.reduction import Reduction
from vtc.method.registry import register
from vtc.method.selector import Selector
from vtc.method.visual_tokens import VisualTokens


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
    """

    keep: Keep = 0.098

    def select(self, visual: VisualTokens, k: int) -> Reduction:
        return Reduction.of(max_min_order(visual.features, k))
