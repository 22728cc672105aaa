"""FitPrune: in each layer as many tokens go as a fit to the model's attention allows (arXiv 2409.10197, AAAI 2025)."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from numbers import Integral, Real
from typing import Any, ClassVar

import torch
from torch import Tensor

from vtc.attention.scores import Attention
from vtc.method import fields
from vtc.method.base import Trials
from vtc.method.budget import Keep
from vtc.method.prune import Decision, Memory, Prune, Rows, Watch, top_visual
from vtc.method.registry import register
from vtc.prunes.profile import geometric

#: Digits of the shares in a table that is fitted.
_DIGITS = 4


def own_and_cross(attention: Attention, visual: Tensor, text: Tensor, chunk: int = 256) -> tuple[Tensor, Tensor]:
    """Attention that each token receives from visual tokens and from text, the largest over heads of each entry.

    Queries are worked through in chunks, once for both: memory stays O(chunk · S) for each head.

    Args:
        attention: q and k of a layer with n new tokens.
        visual: BoolTensor [B, n]: the visual queries.
        text: BoolTensor [B, n]: the queries of the text behind them.
        chunk: queries at a time.

    Returns:
        Two Tensors [B, n] in float32: own, the sum over visual queries divided by their number; cross, the sum over
        queries of the text.
    """
    batch, length = visual.shape
    weights = torch.stack([visual, text], dim=1).float()
    found = weights.new_zeros(batch, 2, length)
    for start in range(0, length, chunk):
        index = torch.arange(start, min(start + chunk, length), device=visual.device)
        strongest = attention.head_rows(index.expand(batch, -1)).amax(dim=1)[:, :, -length:]
        found += weights[:, :, index] @ strongest
    own, cross = found.unbind(dim=1)
    return own / visual.sum(dim=1, keepdim=True).clamp_min(1), cross


def fitted(values: Tensor, total: Tensor, alpha: float, visual: Tensor) -> Tensor:
    """The lowest visual tokens that one distribution of attention can spare.

    They go, lowest first, as long as the rest still sums to (1 - alpha) · total; one token is left at least. Computed
    in float64.

    Args:
        values: Tensor [B, n], not negative.
        total: Tensor [B], the sum of all visual tokens in the model as it is.
        alpha: the share of it that may be lost.
        visual: BoolTensor [B, n]: the tokens that are there.

    Returns:
        BoolTensor [B, n]: tokens that can go. Equal values: lowest place first.
    """
    values = values.double().nan_to_num(0.0, 0.0, 0.0)
    order = values.masked_fill(~visual, torch.inf).argsort(dim=1, stable=True)
    sorted_values = (values * visual).gather(1, order)
    rest = sorted_values.flip(1).cumsum(dim=1).flip(1)  # what is left without the tokens in front
    there = visual.sum(dim=1, keepdim=True)
    enough = (rest >= (1 - alpha) * total.double()[:, None]) & (
        torch.arange(visual.shape[1], device=rest.device) < there
    )
    count = (enough.long().cumprod(dim=1).sum(dim=1, keepdim=True) - 1).clamp_min(0)
    return visual & (order.argsort(dim=1) < torch.minimum(count, there - 1))


def lowest_go(scores: Tensor, visual: Tensor, counts: Sequence[int]) -> Tensor:
    """The visual tokens that are left, `counts` of each row, where the lowest go; of equal ones the first goes.

    NaN counts least. BoolTensor [B, n] of `scores` and `visual` [B, n].
    """
    return top_visual(scores.flip(1), visual.flip(1), counts).flip(1)


def check_table(table: object) -> tuple[Keep, ...] | None:
    """The field `table` as a tuple, or None.

    Raises:
        TypeError: neither None nor a tuple or list of numbers.
        ValueError: counts and shares together, negative, shares that sum to more than 1, or nothing that goes.
    """
    if table is None:
        return None
    way_out = "give what goes in each layer from 0 on, counts such as (0, 0, 40) or shares such as (0.0, 0.0, 0.07)"
    checked = fields.as_tuple("table", table, way_out)
    for index, value in enumerate(checked):
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"table[{index}]={value!r} is a {type(value).__name__}, not a number; {way_out}")
        if not 0 <= float(value) < math.inf:
            raise ValueError(f"table[{index}]={value!r} is no count or share; {way_out}")
    counts = all(isinstance(value, Integral) or not value for value in checked)
    if not counts and any(isinstance(value, Integral) and value for value in checked):
        raise ValueError(f"table={checked!r} mixes counts and shares; {way_out}")
    if not counts and sum(map(_exactly, checked)) > 1:
        raise ValueError(f"table={checked!r} takes more than all tokens; {way_out}")
    if not any(checked):
        raise ValueError(f"table={checked!r} takes no token; {way_out}, or None")
    return checked


def _exactly(value: Keep) -> Fraction:
    return Fraction(str(value))


@register("fitprune")
@dataclass
class FitPrune(Prune):
    """Drop a few visual tokens behind every layer of a table: those with the least attention in that layer.

    A token's score is the attention that it receives from visual tokens times what it receives from the text behind
    them, each entry of the map the largest over heads. The official code cuts between a layer's attention and its MLP;
    here the tokens go in front of the next layer, so that the MLP of one layer more sees them, and what a table has for
    the last layer does nothing. Survivors keep their position ids. The rule needs the whole attention map of each layer
    that cuts, which is computed once more, a few queries at a time: deciding in 23 of 24 layers takes 3.4 % of a
    decoder's prefill at 576 tokens and 19 % at 2,880. https://arxiv.org/abs/2409.10197

    Budget: how many go in which layer is fitted to a model on a few prompts, until its tokens meet a target:
    `vtc.calibrate(model, "fitprune", "table", batches, tokens=…)` writes the table; the published ones, literals for
    LLaVA-1.5-7B, can be given as `table`. It is fitted without other prunes, which are added then. Without one `keep`
    is what is left in front of the last layer, each layer leaving the same share of what it finds: keep=0.125 is 245 of
    576 tokens on average over 32 layers.

    Attributes:
        keep: share in (0, 1] or count of the row's visual tokens that is left in front of the last layer; each layer
            from 0 on leaves the same share of what it finds. Rounded down, and can be 0. Not used with a table.
        table: what goes in each layer, from 0 on: counts, or shares of the row's visual tokens, which are added up and
            then rounded half to even. Layers behind its end cut nothing; one token stays. None: as `keep` says.
    """

    signals: ClassVar[tuple[str, ...]] = ("attention",)
    keep: Keep = 0.125
    table: tuple[Keep, ...] | None = None
    positions: ClassVar[str] = "original"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.table = check_table(self.table)
        self._stages = 0

    def split(self) -> "tuple[FitPrune, ...]":
        return (copy.copy(self),)  # `schedule` notes how many layers there are, so each model has its own

    def schedule(self, num_layers: int) -> tuple[int, ...]:
        """Layers (index from 0, ascending) in front of which tokens are removed: those behind the ones that choose.

        Raises:
            ValueError: the table is of a deeper model, or takes tokens in the last layer alone.
        """
        if self.table is None:
            self._stages = num_layers - 1
            return tuple(range(1, num_layers))
        if len(self.table) > num_layers:
            raise ValueError(
                f"{self.name}: table has {len(self.table)} entries, and the model {num_layers} layers; calibrate one "
                'for this model: vtc.calibrate(model, "fitprune", "table", batches)'
            )
        layers = tuple(layer + 1 for layer, gone in enumerate(self.table) if gone and layer + 1 < num_layers)
        if not layers:
            raise ValueError(
                f"{self.name}: table={self.table!r} takes tokens in the last layer alone; give earlier ones"
            )
        return layers

    def count(self, present: int) -> int:
        if self.table is None:
            return geometric(self.keep, present, 0, 1)
        return self._left(sum(map(_exactly, self.table), Fraction()), present)

    def count_at(self, stage: int, present: int) -> int:
        if self.table is None:
            if not self._stages:
                raise ValueError("fitprune.count_at depends on the model's depth; call schedule(num_layers) first")
            return geometric(self.keep, present, stage, self._stages)
        gone = [_exactly(value) for value in self.table if value]
        return self._left(list(accumulate(gone))[stage], present)

    def _left(self, gone: Fraction, present: int) -> int:
        """Tokens left of `present` when so many, or such a share, have gone."""
        shares = any(not isinstance(value, Integral) for value in self.table or () if value)
        return max(present - round(gone * present if shares else gone), min(present, 1))

    def watch(self, num_layers: int) -> Watch:
        return Watch(attention=tuple(layer - 1 for layer in self.schedule(num_layers)))

    def on_attention(self, rows: Rows, attention: Attention, memory: Memory) -> None:
        memory["own"], memory["cross"] = own_and_cross(attention, rows.visual, rows.instruction)

    def score(self, rows: Rows, memory: Memory) -> Tensor:
        return memory["own"] * memory["cross"]

    def decide(self, rows: Rows, counts: Sequence[int], memory: Memory) -> Decision:
        return Decision(lowest_go(self.score(rows, memory), rows.visual, counts))

    def dial(self, field: str, trials: Trials) -> Callable[[float], Any] | None:
        if field != "table":
            return None
        fitting = _Fitting()
        trials.tokens(fitting)  # the totals of the model as it is

        def table(alpha: float) -> tuple[float, ...]:
            left = trials.tokens(fitting.at(alpha)).double()
            shares = ((left[:-1] - left[1:]) / left[:1]).mean(dim=1)
            return tuple(math.floor(share * 10**_DIGITS + 1e-6) / 10**_DIGITS for share in shares.tolist())

        return table


class _Fitting(FitPrune):
    """Removes in each layer what both of its distributions of attention can spare: one pass of the fit.

    Its first run over the batches removes nothing, and notes the totals of attention that later ones are held to.
    """

    def __init__(self) -> None:
        super().__init__()
        self._alpha: float | None = None
        self._totals: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self._call = 0

    def at(self, alpha: float) -> "_Fitting":
        """Ready for another run over the same batches, in which a share `alpha` of each total may be lost."""
        self._alpha, self._call = alpha, 0
        return self

    @property
    def adaptive(self) -> bool:
        return True

    def split(self) -> "tuple[FitPrune, ...]":
        return (self,)

    def watch(self, num_layers: int) -> Watch:
        return Watch(attention=tuple(range(num_layers - 1)), entry=True)

    def on_entry(self, rows: Rows, memory: Memory) -> None:
        self._call += 1

    def decide(self, rows: Rows, counts: Sequence[int], memory: Memory) -> Decision:
        key, parts = (self._call, rows.layer), (memory["own"], memory["cross"])
        if self._alpha is None:
            self._totals[key] = (parts[0] * rows.visual).sum(dim=1), (parts[1] * rows.visual).sum(dim=1)
            return Decision(rows.visual)
        own, cross = (
            fitted(values, total, self._alpha, rows.visual)
            for values, total in zip(parts, self._totals[key], strict=True)
        )
        return Decision(rows.visual & ~(own & cross))
