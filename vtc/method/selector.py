"""The kind of method that acts once, in front of the first decoder layer."""

from abc import ABC
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from vtc.method.base import Method, Positions
from vtc.method.reduction import Reduction
from vtc.method.units import Per, Unit
from vtc.method.visual_tokens import Needs, VisualTokens
from vtc.model.parts import Parts


@dataclass(eq=False)  # methods compare by fields of their own
class Selector(Method, ABC):
    """Acts once, on the projected visual tokens, before the first decoder layer.

    A score-type method implements `score`; any other implements `select`. Every selector takes `per` and `positions`,
    by keyword; the methods themselves never see them, only the tokens that share one budget and whether they are
    numbered anew.

    Attributes:
        per: what `keep` counts in: "input" (one image, or one video over all its frames), "frame" (each frame of a
            video by itself) or "row" (all images and videos of a row together, as for videos that reach the model as
            separate images).
        positions: "packed" (survivors are numbered anew, without gaps) or "original" (each keeps the number that it
            had, by which a model may tell when and where it was seen). Models with several position axes (M-RoPE)
            always keep the original ones.
    """

    kind = "selector"
    per: Per = field(default="input", kw_only=True)
    positions: Positions = field(default="packed", kw_only=True)  # type: ignore[misc]

    def count_of(self, unit: Unit) -> int:
        """Tokens that `keep` leaves of one unit; a function of its layout alone."""
        return self.count(len(unit))

    def shortens(self, unit: Unit) -> bool:
        """Whether it may remove tokens of a unit, told from counts alone."""
        return self.adaptive or self.count_of(unit) < len(unit)

    def needs(self, parts: Parts) -> Needs:
        """What the method reads from the vision tower of this model.

        Raises:
            ValueError: the model lacks it; the message says what and the way out.
        """
        return Needs()

    def score(self, visual: VisualTokens) -> Tensor:
        """Importance [G, N]; the highest are kept."""
        raise TypeError(f"{type(self).__name__} implements neither score nor select")

    def select(self, visual: VisualTokens, k: int) -> Reduction:
        """Decide which `k` of the N tokens survive in each of the G images. 1 <= k < N.

        A method that is `adaptive` is shown one image at a time with k = N, and may keep any number from 1 to N.
        """
        return Reduction.top(self.score(visual), k)


def check_selection(selector: Selector, reduction: Any, images: int, k: int, total: int) -> None:
    """Hold a selector's decision against its contract; values only of methods from outside: that waits for the device.

    Args:
        selector: whose.
        reduction: what it decided.
        images: G, how many it was shown at once.
        k: tokens that its budget leaves of each.
        total: N, tokens of each.

    Raises:
        RuntimeError: it breaks it.
    """
    if not isinstance(reduction, Reduction):
        raise RuntimeError(f"{selector.name}.select gave a {type(reduction).__name__}; it must give a vtc.Reduction")
    shape = tuple(reduction.kept.shape)
    fewer = selector.adaptive or getattr(selector, "compat", False)
    if shape != (images, k) and not (fewer and len(shape) == 2 and shape[0] == images and 1 <= shape[1] <= k):
        raise RuntimeError(f"{selector.name} kept {shape} tokens instead of {(images, k)}, images by tokens")
    if not type(selector).__module__.startswith("vtc."):
        kept = reduction.kept.cpu()
        if (kept.diff(dim=1) <= 0).any() or kept.min() < 0 or kept.max() >= total:
            raise RuntimeError(f"{selector.name} must keep ascending positions from 0 to {total - 1}, each once")
        if reduction.mixing is not None:
            reduction.mixing.check(selector.name, k, total, "token")
