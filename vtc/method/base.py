"""What all methods have in common. A dataclass is config, repr and command line at once."""

from typing import ClassVar

from vtc.method import budget, fields
from vtc.method.budget import Keep


class Method:
    """Base of all methods.

    Class attributes:
        name: the registry's name, set by `@register`.
        kind: "selector", "prune" or "reducer".
        positions: "packed" (survivors are renumbered without gaps) or "original" (they keep their position ids).
            Models with several position axes (M-RoPE) always keep the original ones.
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
