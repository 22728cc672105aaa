"""FastV: after a few layers, drop the visual tokens that the last token ignores (arXiv 2403.06764, ECCV 2024)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc.attention.scores import Attention
from vtc.method import fields
from vtc.method.budget import Keep
from vtc.method.prune import Memory, Prune, Rows, Watch
from vtc.method.registry import register


def last_query_row(attention: Attention) -> Tensor:
    """Attention probability that each key gets from the last query, mean over heads; Tensor [B, S] in float32."""
    batch, _, queries, _ = attention.query.shape
    return attention.rows(torch.full((batch, 1), queries - 1, device=attention.query.device))[:, 0]


def last_query_attention(attention: Attention) -> Tensor:
    """Attention probability that each new token gets from the last one, mean over heads; Tensor [B, n] in float32.

    The row is a softmax over all keys (text, visual, cached). The paper writes of attention from all tokens; the code
    behind its numbers takes the last query.
    """
    return last_query_row(attention)[:, -attention.query.shape[2] :]


@register("fastv")
@dataclass
class FastV(Prune):
    """Drop, in front of one decoder layer, the visual tokens that got least attention in the layer before it.

    Attention is that of the last prompt token. Done once, in prefill; the survivors keep their position ids. Several
    images of a row share one budget. https://arxiv.org/abs/2403.06764

    Budget: the paper's R is the share that goes after K layers: R=0.5 with K=2 is keep=0.5, layer=2. Counted over all
    layers that is more than `keep`: the layers before see every token.

    Attributes:
        layer: decoder layer, from 0, that is the first to see fewer tokens: K of the paper, so K layers run in full.
        keep: share in (0, 1] or count of the row's visual tokens; a share is rounded half to even and can leave 0.
    """

    signals: ClassVar[tuple[str, ...]] = ("attention",)
    layer: int = 2
    keep: Keep = 0.5
    positions: ClassVar[str] = "original"

    def __post_init__(self) -> None:
        super().__post_init__()
        fields.check_int("layer", self.layer, "FastV reads the attention of the layer before, so give 1 or more", 1)

    def schedule(self, num_layers: int) -> tuple[int, ...]:
        return (self.layer,)

    def watch(self, num_layers: int) -> Watch:
        return Watch(attention=(self.layer - 1,))

    def on_attention(self, rows: Rows, attention: Attention, memory: Memory) -> None:
        memory["attention"] = last_query_attention(attention)

    def score(self, rows: Rows, memory: Memory) -> Tensor:
        return memory["attention"]
