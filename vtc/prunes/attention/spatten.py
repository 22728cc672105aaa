"""SpAtten: token and head pruning in cascade, by all the attention that a token got so far (arXiv 2012.09852)."""

import copy
import math
from dataclasses import dataclass, replace
from fractions import Fraction
from numbers import Integral
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vtc.attention.heads import choose_heads
from vtc.attention.scores import Attention
from vtc.method import fields
from vtc.method.base import Method
from vtc.method.budget import Keep
from vtc.method.prune import Memory, Prune, Rows, Watch
from vtc.method.registry import register

#: Share of the layers that run before the first head goes.
_HEADS_FROM = Fraction(3, 10)


def token_importance(attention: Attention, queries: Tensor) -> Tensor:
    """Column sums of softmax(Q Kᵀ): attention probability that each new token gets, summed over heads and queries.

    Args:
        attention: q and k of one layer, with n new tokens.
        queries: BoolTensor [B, n]: which of them ask.

    Returns:
        Tensor [B, n] in float32; with all keys new it sums to heads · queries of each row.
    """
    return attention.received(queries)[:, -queries.shape[1] :] * attention.query.shape[1]


def num_queries(attention: Attention, queries: Tensor) -> Tensor:
    """How many of the `queries` [B, n] may attend to each new token; Tensor [B, n] in float32."""
    query, key = torch.zeros_like(attention.query[:, :1]), torch.zeros_like(attention.key[:, :1])
    blank = replace(attention, query=query, key=key)  # equal logits: what gets any probability may be seen
    batch, length = queries.shape
    total = torch.zeros(batch, length, device=queries.device)
    for start in range(0, length, 256):
        index = torch.arange(start, min(start + 256, length), device=queries.device)
        seen = blank.rows(index.expand(batch, -1))[:, :, -length:] > 0
        total += (queries[:, index, None] & seen).sum(dim=1)
    return total


def head_importance(output: Tensor, valid: Tensor) -> Tensor:
    """Magnitude of what each head gave: sum over tokens and channels of |E|.

    Args:
        output: [B, n, H, d], before the heads are mixed.
        valid: BoolTensor [B, n]: tokens that count.

    Returns:
        Tensor [B, H] in float32.
    """
    magnitude = output.float().nan_to_num(0.0, 0.0, 0.0).abs().sum(dim=-1)
    return magnitude.masked_fill(~valid[:, :, None], 0.0).sum(dim=1)


def top_heads(scores: Tensor, groups: int, keep: Fraction) -> Tensor:
    """The heads with the highest scores, the first of equal ones.

    With a key head for each query head all compete and floor(H · keep) stay. Grouped heads compete within their group:
    floor(g · keep) of the g that share a key head stay. One stays at least.

    Args:
        scores: [B, H].
        groups: key heads; H is a multiple.
        keep: share that stays.

    Returns:
        LongTensor [B, h], ascending.
    """
    batch, heads = scores.shape
    grouped = scores.view(batch, 1, heads) if groups == heads else scores.view(batch, groups, -1)
    size = grouped.shape[2]
    order = grouped.argsort(dim=2, descending=True, stable=True)
    kept = order[:, :, : max(math.floor(size * keep), 1)].sort(dim=2).values
    first = torch.arange(grouped.shape[1], device=scores.device)[:, None] * size
    return (kept + first).flatten(1)


@register("spatten")
@dataclass
class SpAtten(Prune):
    """Drop visual tokens in front of most decoder layers, those that got least attention in all layers before.

    The attention that a token gets is summed over heads, queries and layers, in float32; fewer tokens are left with
    every layer. Heads can go as well: those whose outputs, summed over layers, are smallest. Survivors keep their
    position ids. The paper prunes all tokens of a fine-tuned text model; that only visual tokens compete, and the
    linear schedule with its warm-up, are choices made here. Tokens are chosen in prefill alone: new ones are text, so
    decode steps have nothing to remove. https://arxiv.org/abs/2012.09852

    Budget: `keep` is what the last layer sees. Layers of the warm-up see all tokens, each later one equally many fewer:
    over those that is about (1 + keep) / 2 of the tokens on average.

    Attributes:
        keep: share in (0, 1] or count of the row's visual tokens that enter the last layer. Shares are rounded half to
            even and can leave 0.
        warm_up: share of the layers that run before the first tokens go, rounded up; three at least, where the model
            has more than three.
        keep_heads: share in (0, 1] of the heads that the last layer computes; 1.0: all. Falls linearly after 30 % of
            the layers, and is rounded down; equally many stay of each group that shares a key head, one at least. Heads
            that went stay away, in decode steps too. A head can mean something else in each layer of a model that was
            not trained for this.
        accumulate: True: the scores of tokens add up over layers, as in the paper. False: the layer before decides
            alone. Those of heads always add up.
        normalise: "none" (as in the paper), or "num_queries": each layer's sum is divided by the number of queries that
            may attend to the token. Under a causal mask early tokens have more of these.
        query_rows: "all" (as in the paper), or "text": the attention of text tokens alone counts.
    """

    signals: ClassVar[tuple[str, ...]] = ("attention",)
    keep: Keep = 0.25
    warm_up: float = 0.15
    keep_heads: float = 1.0
    accumulate: bool = True
    normalise: Literal["none", "num_queries"] = "none"
    query_rows: Literal["all", "text"] = "all"
    positions: ClassVar[str] = "original"

    def __post_init__(self) -> None:
        super().__post_init__()
        fields.check_share("warm_up", self.warm_up, "give the share of layers that run in full first, such as 0.15")
        way_out = "give the share of heads that stays, such as 0.9, or 1.0 for all"
        fields.check_share("keep_heads", self.keep_heads, way_out)
        if not self.keep_heads:
            raise ValueError(f"keep_heads={self.keep_heads!r} keeps no head; {way_out}")
        fields.check_bool("accumulate", self.accumulate)
        self._depth = 0

    def split(self) -> tuple[Method, ...]:
        return (copy.copy(self),)  # `schedule` notes the depth, so each model has its own

    def schedule(self, num_layers: int) -> tuple[int, ...]:
        self._depth = num_layers
        first = max(3, math.ceil(_exact(self.warm_up) * num_layers))
        return tuple(range(max(min(first, num_layers - 1), 1), num_layers))

    def count_at(self, stage: int, present: int) -> int:
        if not self._depth:
            raise ValueError("spatten.count_at depends on the model's depth; call schedule(num_layers) first")
        gone, left = Fraction(stage + 1, len(self.schedule(self._depth))), self.count(present)
        if gone == 1:
            return left
        if isinstance(self.keep, Integral):
            return round(present - gone * (present - left))
        return max(round(present * (1 - gone * (1 - _exact(self.keep)))), left)

    def watch(self, num_layers: int) -> Watch:
        schedule = self.schedule(num_layers)
        if not schedule:
            return Watch()
        attention = range(0 if self.accumulate else schedule[0] - 1, schedule[-1])
        if isinstance(self.keep, float) and self.keep == 1:
            attention = range(0)
        if self.keep_heads == 1:
            return Watch(attention=tuple(attention))
        return Watch(attention=(0, *(layer for layer in attention if layer)), heads=tuple(range(num_layers)))

    def on_attention(self, rows: Rows, attention: Attention, memory: Memory) -> None:
        memory["groups"] = torch.tensor(attention.key.shape[1], device="cpu")
        heads = self.heads(rows, memory)
        if heads is not None:
            query, key, _ = choose_heads(attention.query, attention.key, attention.key, heads)
            attention = replace(attention, query=query, key=key)
        queries = rows.valid if self.query_rows == "all" else rows.valid & ~rows.visual
        received = token_importance(attention, queries)
        if self.normalise == "num_queries":
            received = received / num_queries(attention, queries).clamp_min(1)
        memory["received"] = memory["received"] + received if self.accumulate and "received" in memory else received

    def score(self, rows: Rows, memory: Memory) -> Tensor:
        return memory["received"]

    def on_heads(self, rows: Rows, output: Tensor, memory: Memory) -> None:
        importance = head_importance(output, rows.valid).flatten()  # one dimension: it is not cut with the sequence
        memory["heads"] = memory["heads"] + importance if "heads" in memory else importance

    def heads(self, rows: Rows, memory: Memory) -> Tensor | None:
        if self.keep_heads == 1:
            return None
        first = max(min(math.ceil(_HEADS_FROM * self._depth), self._depth - 1), 1)
        if rows.layer < first:
            return None
        gone = Fraction(rows.layer - first + 1, self._depth - first)
        scores = memory["heads"].view(len(rows.visual), -1)
        kept = top_heads(scores, int(memory["groups"]), 1 - gone * (1 - _exact(self.keep_heads)))
        return kept if kept.shape[1] < scores.shape[1] else None


def _exact(share: float) -> Fraction:
    """The decimal number that was written, so that 0.15 of 20 layers are 3."""
    return Fraction(str(float(share)))
