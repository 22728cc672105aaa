"""What all methods have in common. A dataclass is config, repr and command line at once."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from vtc.method import budget, fields
from vtc.method.budget import Keep

if TYPE_CHECKING:
    from torch import Tensor


#: How survivors are numbered: anew without gaps, or as they were.
Positions = Literal["packed", "original"]


class Trials(Protocol):
    """A model and batches of prompts on which one method of a spec is calibrated; the others are as they are.

    Attributes:
        num_layers: of the decoder.
    """

    num_layers: int

    def tokens(self, method: "Method") -> "Tensor":
        """Visual tokens that enter each layer, with `method` in the calibrated one's place.

        Returns:
            LongTensor [layers, prompts], of the prompts that show an image, always in the same order.
        """


class Method:
    """Base of all methods.

    Class attributes:
        name: the registry's name, set by `@register`.
        kind: "selector", "prune" or "reducer".
        positions: "packed" (survivors are renumbered without gaps) or "original" (they keep their position ids).
            Models with several position axes (M-RoPE) always keep the original ones. Of selectors it is a field.
        min_tokens: the fewest tokens that a share rounds down to.
        may_adapt: whether `keep=None` lets the method decide by the picture how many tokens stay.
        signals: what decides, in one word each, for tables: "saliency" (what the vision tower attends to), "question",
            "diversity" (tokens unlike each other), "coverage" (tokens that stand for others), "merging", "place",
            "time", "attention" (of the decoder), "change" (what layers do to a token).
    """

    name: ClassVar[str]
    kind: ClassVar[str]
    positions: ClassVar[str] = "packed"
    min_tokens: ClassVar[int] = 1
    may_adapt: ClassVar[bool] = False
    signals: ClassVar[tuple[str, ...]] = ()
    keep: Keep | None

    def __post_init__(self) -> None:
        fields.check_choices(self)
        if not self.adaptive:
            budget.check_keep(self.keep)

    @property
    def adaptive(self) -> bool:
        """Whether the picture decides how many tokens stay: `keep=None`, for methods that `may_adapt`."""
        return self.may_adapt and self.keep is None

    def count(self, present: int) -> int:
        """Tokens that `keep` leaves of `present` tokens of one image; all of them where the picture decides."""
        return present if self.keep is None else budget.resolve(self.keep, present, self.min_tokens)

    def dial(self, field: str, trials: Trials) -> Callable[[float], Any] | None:
        """How `vtc.calibrate` sets a field that is no plain number: what it is at a number in [0, 1].

        Args:
            field: of this method.
            trials: what the field may be fitted to.

        Returns:
            What gives the field's value, with which the tokens rise or fall steadily; None: the field is the number.
        """
        return None

    def split(self) -> "tuple[Method, ...]":
        """The methods of a single kind that this one is made of: itself, for all but those that act in two places."""
        return (self,)


def resolve_layers(
    layers: tuple[int, ...] | None, published: tuple[int, ...], of: int, num_layers: int
) -> tuple[int, ...]:
    """Layer indices: those given, else the `published` ones for a depth `of`, scaled to `num_layers`, kept distinct."""
    if layers is not None:
        return tuple(layers)
    scaled: list[int] = []
    for layer in published:
        scaled.append(max(round(layer * num_layers / of), scaled[-1] + 1 if scaled else 1))
    return tuple(scaled)


def resolve_layer(layer: int | None, published: int, of: int, num_layers: int) -> tuple[int]:
    """The same for a single layer, in a tuple as a schedule has it."""
    return (layer if layer is not None else resolve_layers(None, (published,), of, num_layers)[0],)
