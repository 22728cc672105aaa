"""The kind of method that acts in front of chosen decoder layers, and what it is shown."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vtc.attention.scores import Attention
from vtc.method.base import Method
from vtc.model.layout import VisualInput
from vtc.ops.host import on


@dataclass
class Rows:
    """The sequence in a decoder layer, during prefill, as one prune sees it.

    Rows of the batch are right-aligned: the last token of each row is at index n-1, padding on the left.

    Attributes:
        layer: index from 0 of the layer that is about to run, or runs.
        hidden: Tensor [B, n, D], its input.
        visual: BoolTensor [B, n]: visual tokens.
        valid: BoolTensor [B, n]: tokens that are not padding.
        instruction: BoolTensor [B, n]: text after the last visual token of the row (its last token at least).
        probe: call it to get the `Attention` of the layer that is about to run; costs that layer's q/k/v projection.
        stage: how many layers of the method's schedule lie before it.
        tail: all instruction tokens are among the last `tail` of the n (known without asking the device).
        images: the images and videos of the call, in the places that they had before anything was removed.
        origin: LongTensor [B, n]: place of each token before anything was removed.
        packed: whether the survivors will be numbered anew, in the order in which they stand.
        rotary: the rotary tables (cos, sin), each [B or 1, n, d], that the layer is called with; None where there are
            none, or others.
        groups: LongTensor [B, n]: the group of each token by what the selector said (see `Reduction.groups`), called
            after a place as in `origin`; -1 for tokens of none. None: it said nothing.
    """

    layer: int
    hidden: Tensor
    visual: Tensor
    valid: Tensor
    instruction: Tensor
    probe: Any = None
    stage: int = 0
    tail: int = 0
    images: tuple[VisualInput, ...] = ()
    origin: Tensor | None = None
    packed: bool = True
    rotary: tuple[Tensor, Tensor] | None = None
    groups: Tensor | None = None

    def __post_init__(self) -> None:
        self.tail = self.tail or self.visual.shape[1]


@dataclass(frozen=True)
class Decision:
    """What a prune decided in front of a layer.

    Attributes:
        alive: BoolTensor [B, n]: visual tokens that go on (what it says of text and padding is not read).
        hidden: Tensor [B, n, D]: the layer's input after merging, read at the tokens that go on; None: as it was.
        into: LongTensor [B, n]: for each visual token that was merged, the place of the survivor that it went into;
            -1 elsewhere. None: nothing was merged.
        source: LongTensor [B, n]: for each place that goes on, the place of the token that stands there from now on (of
            a merged one its centre's); only where tokens are numbered anew. None: all stay where they are.
    """

    alive: Tensor
    hidden: Tensor | None = None
    into: Tensor | None = None
    source: Tensor | None = None


@dataclass(frozen=True)
class Watch:
    """What a prune observes while layers run in prefill.

    Attributes:
        attention: layers whose q, k, v are handed to `on_attention`.
        modules: layers whose attention (or other mixer) and MLP inputs and outputs are handed to `on_modules`.
        entry: whether `on_entry` is called.
        probe: whether `score` or `decide` calls `rows.probe()`.
        open: layers whose attention sees every token, also later ones.
        heads: layers whose heads' outputs are handed to `on_heads`, and for which `heads` is asked.
    """

    attention: tuple[int, ...] = ()
    modules: tuple[int, ...] = ()
    entry: bool = False
    probe: bool = False
    open: tuple[int, ...] = ()
    heads: tuple[int, ...] = ()


Memory = dict[str, Tensor]


class Prune(Method, ABC):
    """Acts in front of chosen decoder layers during prefill. Text is never removed.

    The budget holds per row of the batch, over the union of its visual tokens. `keep` counts from the tokens that
    reach the method's first layer.

    A method that ranks implements `score`; one that merges, or lets the picture decide how many stay, implements
    `decide`. Each call of the model has its own `memory`; its tensors of shape [B, n, ...] are cut with the sequence.

    Class attributes:
        returns: whether what is left out of a layer comes back, unchanged, behind it: tokens skip layers.
        revives: whether each decode step chooses anew, from all tokens of the prompt, what its layers see.
    """

    kind = "prune"
    min_tokens = 0
    returns: ClassVar[bool] = False
    revives: ClassVar[bool] = False

    @property
    def unrevived(self) -> str:
        """What to do, for messages, where decode steps can't choose anew."""
        return f"give {self.name} revive=False"

    @abstractmethod
    def schedule(self, num_layers: int) -> tuple[int, ...]:
        """Layers (index from 0, ascending) in front of which tokens are removed."""

    def count_at(self, stage: int, present: int) -> int:
        """Tokens left after the `stage`-th layer of the schedule, of `present` that reached the first."""
        return self.count(present)

    def seen_at(self, stage: int, present: int) -> int:
        """Of as many, those that a decode step sees behind that layer; of methods that revive."""
        return self.count_at(stage, present)

    def left_at(self, stage: int, reached: int, there: int) -> int:
        """The same of a row of which `there` are still there, as other prunes may have left of those that reached."""
        return min(self.count_at(stage, reached), there) if reached else 0

    def watch(self, num_layers: int) -> Watch:
        """What is to be observed."""
        return Watch()

    def on_entry(self, rows: Rows, memory: Memory) -> None:
        """Called in front of layer 0; `rows.hidden` are the embeddings."""

    def on_attention(self, rows: Rows, attention: Attention, memory: Memory) -> None:
        """Called when the watched layer `rows.layer` has computed its q, k and v."""

    def on_modules(self, rows: Rows, module: str, before: Tensor, after: Tensor, memory: Memory) -> None:
        """Called when the `module` ("attention" or "mlp") of the watched layer `rows.layer` has run.

        Args:
            rows: the sequence.
            module: which of the two.
            before: Tensor [B, n, D], its input, after the norm.
            after: Tensor [B, n, D], its output, before the residual is added.
            memory: this call's own store.
        """

    def on_heads(self, rows: Rows, output: Tensor, memory: Memory) -> None:
        """Called with what the heads of the watched layer `rows.layer` gave: [B, n, H, d], before they are mixed."""

    def heads(self, rows: Rows, memory: Memory) -> Tensor | None:
        """Heads that the watched layer `rows.layer` computes; the others give zero, in decode steps too.

        Rows of the batch without an image compute all, whatever is said of them here.

        Returns:
            LongTensor [B, h], ascending; equally many of each group that shares a key head. None: all.
        """
        return None

    def score(self, rows: Rows, memory: Memory) -> Tensor:
        """Importance [B, n] of every token of the sequence; only visual tokens are compared."""
        raise TypeError(f"{type(self).__name__} implements neither score nor decide")

    def recall(self, attention: Attention) -> Tensor:
        """Importance [B, S] of every key in a decode step, in the layer before a stage; of methods that revive."""
        raise TypeError(f"{type(self).__name__} revives tokens, so it must implement recall")

    def choose(self, scores: Tensor, visual: Tensor, counts: Sequence[int], memory: Memory) -> Tensor:
        """Which visual tokens a decode step sees behind a stage; of methods that revive.

        Args:
            scores: [B, n], what `recall` gave; -inf where the layer has no key.
            visual: BoolTensor [B, n]: the visual tokens that the layer before saw.
            counts: how many of each row are seen by its budget.
            memory: of this stage, from step to step; its tensors [B, ...] follow the rows of the batch. It is empty
                where the step before had other images, or there was none. Places only grow.

        Returns:
            BoolTensor [B, n].
        """
        return top_visual(scores, visual, counts)

    def decide(self, rows: Rows, counts: Sequence[int], memory: Memory) -> Decision:
        """Decide which visual tokens go on, and what they are then.

        Args:
            rows: the sequence.
            counts: visual tokens that must be left in each row, below what is there in one of them at least. A method
                that is `adaptive` is given what is there, and may leave any number.
            memory: this call's own store.
        """
        return Decision(top_visual(self.score(rows, memory), rows.visual, counts))


def top_visual(scores: Tensor, visual: Tensor, counts: Sequence[int]) -> Tensor:
    """The visual tokens with the highest scores, the first of equal ones; NaN counts least.

    Args:
        scores: [B, n].
        visual: BoolTensor [B, n].
        counts: how many of each row.

    Returns:
        BoolTensor [B, n].

    Raises:
        ValueError: the scores are not one for each token.
    """
    if scores.shape != visual.shape:
        raise ValueError(f"scores of shape {tuple(scores.shape)}, not {tuple(visual.shape)}: give one for each token")
    scores = scores.float()
    limits = torch.finfo(scores.dtype)
    scores = scores.nan_to_num(limits.min, limits.max, limits.min).masked_fill(~visual, float("-inf"))
    rank = scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return visual & (rank < on(rank.device, counts)[:, None])


def check_decision(prune: Prune, decision: Any, rows: Rows) -> None:
    """Hold a prune's decision against its contract; by shapes alone: values would wait for the device.

    Raises:
        RuntimeError: it breaks it.
    """
    if not isinstance(decision, Decision):
        raise RuntimeError(f"{prune.name}.decide gave a {type(decision).__name__}; it must give a vtc.Decision")
    wanted = {"alive": rows.visual.shape, "hidden": rows.hidden.shape, "into": rows.visual.shape}
    for name, shape in wanted.items():
        value = getattr(decision, name)
        if value is not None and value.shape != shape:
            raise RuntimeError(f"{prune.name}: {name} has shape {tuple(value.shape)}; it must have {tuple(shape)}")
    if decision.alive.dtype != torch.bool:
        raise RuntimeError(f"{prune.name}: alive is {decision.alive.dtype}; it must be a BoolTensor")
