"""The three kinds of method. A dataclass is config, repr and command line at once."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from vtc import budget
from vtc.budget import Keep
from vtc.layout import Grid
from vtc.parts import Parts
from vtc.reduction import Reduction
from vtc.scores import Attention


class Method:
    """Base of all methods.

    Class attributes:
        name: the registry's name, set by `@register`.
        kind: "selector", "prune" or "reducer".
        positions: "packed" (survivors are renumbered without gaps) or "original" (they keep their position ids).
            Models with several position axes (M-RoPE) always keep the original ones.
        min_tokens: the fewest tokens that a share rounds down to.
    """

    name: ClassVar[str]
    kind: ClassVar[str]
    positions: ClassVar[str] = "packed"
    min_tokens: ClassVar[int] = 1
    keep: Keep

    def __post_init__(self) -> None:
        budget.check_keep(self.keep)

    def count(self, present: int) -> int:
        """Tokens that `keep` leaves of `present` tokens of one image."""
        return budget.resolve(self.keep, present, self.min_tokens)


@dataclass(frozen=True)
class Needs:
    """What a selector reads from the vision tower; only this is captured.

    Attributes:
        received: tower blocks (index, negative from the end) whose attention received per token is wanted.
        cls: tower blocks whose attention from the CLS token to each token is wanted.
    """

    received: tuple[int, ...] = ()
    cls: tuple[int, ...] = ()


@dataclass(frozen=True)
class VisualTokens:
    """G images of N visual tokens each, laid out alike, as the language model will see them.

    Attributes:
        features: Tensor [G, N, D], after the projector.
        grids: the blocks that make up the N tokens.
        separators: BoolTensor [N] on the CPU: newline tokens.
        kind: "image" or "video".
        ordinals: for each of the G images, how many images stand before it in its row.
        received: tower block from 0 -> Tensor [G, N], mean attention probability that each token receives.
        cls: tower block from 0 -> Tensor [G, N], attention probability from the CLS token, mean over heads.
            Both are NaN at separators.
    """

    features: Tensor
    grids: tuple[Grid, ...]
    separators: Tensor
    kind: str = "image"
    ordinals: tuple[int, ...] = (0,)
    received: Mapping[int, Tensor] = field(default_factory=dict)
    cls: Mapping[int, Tensor] = field(default_factory=dict)


class Selector(Method, ABC):
    """Acts once, on the projected visual tokens, before the first decoder layer.

    A score-type method implements `score`; any other implements `select`.
    """

    kind = "selector"

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
        """Decide which `k` of the N tokens survive in each of the G images. 1 <= k < N."""
        return Reduction.top(self.score(visual), k)


@dataclass
class Rows:
    """The sequence in front of a decoder layer, during prefill.

    Rows of the batch are right-aligned: the last token of each row is at index n-1, padding on the left.

    Attributes:
        layer: index from 0 of the layer that is about to run.
        hidden: Tensor [B, n, D], its input.
        visual: BoolTensor [B, n]: visual tokens.
        valid: BoolTensor [B, n]: tokens that are not padding.
        instruction: BoolTensor [B, n]: text after the last visual token of the row (its last token at least).
        probe: call it to get the `Attention` of the layer that is about to run; costs that layer's q/k/v projection.
    """

    layer: int
    hidden: Tensor
    visual: Tensor
    valid: Tensor
    instruction: Tensor
    probe: Any


@dataclass(frozen=True)
class Watch:
    """What a prune observes while layers run in prefill.

    Attributes:
        attention: layers whose q, k are handed to `on_attention`.
        modules: layers whose attention and MLP inputs and outputs are handed to `on_modules`.
        probe: whether `score` calls `rows.probe()`.
    """

    attention: tuple[int, ...] = ()
    modules: tuple[int, ...] = ()
    probe: bool = False


class Prune(Method, ABC):
    """Acts in front of chosen decoder layers during prefill. Text is never removed.

    The budget holds per row of the batch, over the union of its visual tokens. `keep` counts from the tokens that
    reach the method's first layer.
    """

    kind = "prune"
    min_tokens = 0

    @abstractmethod
    def schedule(self, num_layers: int) -> tuple[int, ...]:
        """Layers (index from 0, ascending) in front of which tokens are removed."""

    def count_at(self, stage: int, present: int) -> int:
        """Tokens left after the `stage`-th layer of the schedule, of `present` that reached the first."""
        return self.count(present)

    def watch(self, num_layers: int) -> Watch:
        """What is to be observed."""
        return Watch()

    def on_attention(self, layer: int, attention: Attention, memory: dict[str, Tensor]) -> None:
        """Called when watched `layer` has computed its q and k."""

    def on_modules(self, layer: int, module: str, before: Tensor, after: Tensor, valid: Tensor, memory: dict) -> None:
        """Called when the `module` ("attention" or "mlp") of watched `layer` has run.

        Args:
            layer: index from 0.
            module: which of the two.
            before: Tensor [B, n, D], its input, after the norm.
            after: Tensor [B, n, D], its output, before the residual is added.
            valid: BoolTensor [B, n].
            memory: this call's own store; its tensors of shape [B, n] are cut together with the sequence.
        """

    @abstractmethod
    def score(self, rows: Rows, memory: dict[str, Tensor]) -> Tensor:
        """Importance [B, n] of every token of the sequence; only visual tokens are compared."""


class Reducer(Method, ABC):
    """Acts between blocks of the vision tower. The base of a later release's methods; none is registered yet."""

    kind = "reducer"


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


def as_float(features: Tensor) -> Tensor:
    """`features` in float32 (float64 stays), with NaN and Inf replaced by 0, for comparisons that must not overflow."""
    features = features if features.dtype == torch.float64 else features.float()
    return features.nan_to_num(0.0, 0.0, 0.0)
