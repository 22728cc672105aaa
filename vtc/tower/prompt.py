"""What the hooks see of a call before the decoder is entered."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from vtc.model.layout import Layout
from vtc.ops.host import EarlyCopies
from vtc.tower.features import Features


@dataclass
class Prompt:
    """What was seen of one call of the model before its decoder is entered.

    Attributes:
        open: whether the call's begin was seen.
        shows: whether it brings pixels, or features made of some.
        entered: whether the decoder was entered since.
        mask: the 2-D attention mask that the composite model was given, if any.
        blocks: the mask of queries by keys, or one for each kind of layer, that it was given, if any.
        ids: the prompt's ids that it was given, if any.
        labels: LongTensor [B, L], what it is trained for, if given.
        ends: (row, sample within it) -> the place where its prompt ends; None where nothing stands behind any, or
            nobody tells.
        asked: BoolTensor [B, L] on the host: placeholders among the ids, of a call that shows; None where unknown.
        placeholders: (kind, BoolTensor [B, L]) of each visual input that was put into the sequence.
        features: kind -> the call that made the features.
        earlier: the same of features that were made in front of this call, for it or not.
        early: copies on the host of the call's ids, masks and grids.
    """

    open: bool = False
    shows: bool = False
    entered: bool = False
    mask: Tensor | None = None
    blocks: Any = None
    ids: Tensor | None = None
    labels: Tensor | None = None
    ends: dict[tuple[int, int], int] | None = None
    asked: Tensor | None = None
    placeholders: list[tuple[str, Tensor]] = field(default_factory=list)
    features: dict[str, Features] = field(default_factory=dict)
    earlier: dict[str, Features] = field(default_factory=dict)
    early: EarlyCopies = field(default_factory=EarlyCopies)

    def lost(self, layout: Layout, fresh: bool) -> bool:
        """Whether the call shows pictures, and none was found in its sequence.

        Args:
            layout: what was found.
            fresh: whether the call has nothing before it.
        """
        if not self.shows or layout.images:
            return False
        return fresh if self.asked is None else bool(self.asked.any())

    def features_of(self, kind: str) -> Features:
        """The features of a kind; empty where nothing is known."""
        return self.features.get(kind) or Features(kind)
