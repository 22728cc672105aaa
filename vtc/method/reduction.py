"""What a method decided: the surviving positions, and how old tokens mix into new ones."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vtc.ops.mixing import Mixing


@dataclass(frozen=True)
class Reduction:
    """The decision for G images of N visual tokens each.

    Attributes:
        kept: LongTensor [G, k]: surviving positions within the image, ascending. A merged token sits at the position
            of its centre.
        mixing: how the old tokens make up the new ones; None means that each survivor stays as it is.
        features: Tensor [G, k, D]: the new tokens themselves, in the order in which they stand in the sequence, where
            they are no mixture of the old ones (VisionZip's CLS token and what it merges before the projector).
            `mixing` then only tells the trace what went into what.
        sizes: Tensor [G, k]: how many original tokens each new one stands for. Only reducers give it; None: merged
            tokens add up theirs.
        order: LongTensor [G, k]: at the place of the i-th survivor stands, in the sequence, the new token order[:, i]
            of the mixing (HoliTom's merged tokens stand in front of others); None: each at its own place.
        groups: LongTensor [G, k]: one of the old tokens, after which the group of each new one is called: what a later
            prune ranks together (see `Rows.groups`); -1 for tokens of none. None: nothing is said.
    """

    kept: Tensor
    mixing: Mixing | None = None
    features: Tensor | None = None
    sizes: Tensor | None = None
    order: Tensor | None = None
    groups: Tensor | None = None

    def ascending(self) -> "Reduction":
        """The same decision with `kept` ascending."""
        kept, order = self.kept.sort(dim=1)
        mixing, sizes = self.mixing, self.sizes
        if mixing is not None:
            mixing = Mixing(mixing.source, order.argsort(dim=1).gather(1, mixing.target), mixing.weight)
        return Reduction(kept, mixing, sizes=None if sizes is None else sizes.gather(1, order))

    @classmethod
    def of(cls, picks: Tensor) -> "Reduction":
        """Keep the tokens `picks` [G, k] (any order, no duplicates)."""
        return cls(picks.sort(dim=-1).values)

    @classmethod
    def top(cls, scores: Tensor, k: int) -> "Reduction":
        """Keep the `k` highest of `scores` [G, N]; equal scores: lowest index first; NaN counts as lowest."""
        return cls.of(top_k(scores, k))


def top_k(scores: Tensor, k: int) -> Tensor:
    """Indices [.., k] of the k highest of `scores` [.., N], best first; stable: the lowest index wins a tie.

    NaN counts as the lowest score, so the result never holds a duplicate or an index out of range.
    """
    scores = torch.where(scores.isnan(), float("-inf"), scores)
    return scores.argsort(dim=-1, descending=True, stable=True)[..., :k]
