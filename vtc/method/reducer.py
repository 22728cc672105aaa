"""The kind of method that acts between blocks of the vision tower."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from vtc.method.base import Method
from vtc.method.patches import Patches
from vtc.method.reduction import Reduction
from vtc.model.parts import Parts


class Reducer(Method, ABC):
    """Acts between blocks of the vision tower: its later blocks, the projector and the language model get fewer rows.

    What is removed or merged are units: the patches that make one visual token (one patch for LLaVA, four for
    Qwen-VL), so that every token that is left is whole. `keep` holds per image; with several crops each gets its part
    in proportion to its tokens. A video of a packed tower (Qwen-VL) is one sequence with one budget.

    Class attributes:
        acts: "entry": on what a block is given; "attention": between its attention and its MLP; "block": on its output.
        proportional: whether later blocks add the logarithm of a unit's size to the logits of its keys, once units have
            been merged.
        sees_pixels: whether it is shown the pixels; towers that are not given them patch by patch can't be used then.
    """

    kind = "reducer"
    acts: ClassVar[str] = "block"
    proportional: ClassVar[bool] = False
    sees_pixels: ClassVar[bool] = False

    @property
    def together(self) -> str:
        """Which sequences of one length are shown at once: "all", "image" or "sequence".

        "all": the method decides for each alone and removes equally many of each. For counts that depend on the
        content: "image" shows the crops of one image at once, "sequence" one crop at a time.
        """
        return "all"

    def shortens(self, tokens: int) -> bool:
        """Whether it may remove tokens of an image that has so many, told from counts alone."""
        return self.adaptive or self.count(tokens) < tokens

    @abstractmethod
    def blocks(self, parts: Parts) -> tuple[int, ...]:
        """Tower blocks (index from 0, ascending) at which `reduce` is called, none behind `parts.feature_layer`.

        Raises:
            ValueError: the model lacks what the method needs.
        """

    @abstractmethod
    def reduce(self, patches: Patches) -> Reduction | None:
        """Decide which units survive a block; None: all. After the last block `patches.target` must be left.

        A method that is `adaptive` has a target of 1, and may leave any number from it on.

        The reduction's `kept` may be in any order: the rows of the tower then stand in that order. Packed towers with
        rotary positions or windows keep theirs ascending.
        """


def check_reduction(reducer: Reducer, reduction: Any, patches: Patches) -> None:
    """Hold a reducer's decision against its contract; values only of methods from outside: that waits for the device.

    Raises:
        RuntimeError: it breaks it.
    """
    name, images, now = reducer.name, len(patches.sizes), patches.units
    if not isinstance(reduction, Reduction):
        raise RuntimeError(f"{name}.reduce gave a {type(reduction).__name__}; it must give a vtc.Reduction or None")
    shape = tuple(reduction.kept.shape)
    if len(shape) != 2 or shape[0] != images or not patches.target <= shape[1] <= now:
        raise RuntimeError(
            f"{name} left {shape} units, sequences by units; it must leave {patches.target} to {now} of each of the "
            f"{images} sequences"
        )
    if reduction.features is not None:
        raise RuntimeError(f"{name} gave features, which a reducer can't; give a mixing")
    if reduction.sizes is not None and tuple(reduction.sizes.shape) != shape:
        raise RuntimeError(f"{name} gave sizes of shape {tuple(reduction.sizes.shape)} for {shape} units")
    if type(reducer).__module__.startswith("vtc."):
        return
    kept = reduction.kept.cpu()
    if ((ordered := kept.sort(dim=1).values).diff(dim=1) <= 0).any() or ordered.min() < 0 or ordered.max() >= now:
        raise RuntimeError(f"{name} must keep units from 0 to {now - 1}, each once")
    if reduction.mixing is not None:
        reduction.mixing.check(name, shape[1], now, "unit")
