"""Tokens that skip layers: a training-free relative of FTP (arXiv 2412.11494), for visual tokens."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc.attention.scores import Attention
from vtc.method import fields
from vtc.method.budget import Keep
from vtc.method.prune import Memory, Prune, Rows, Watch
from vtc.method.registry import register
from vtc.prunes.attention.fastv import last_query_attention


@register("token_skip")
@dataclass
class TokenSkip(Prune):
    """Let the visual tokens that the last token ignores skip a layer: they pass it unchanged and come back behind it.

    Each layer between the first and the last few chooses anew. A visual token is ranked by the attention that it got
    from the last token in the layer before, or, where it skipped that one, in the last layer that it was part of. Text
    is always computed. A token that skips a layer has no query, key or value there; later tokens can't see it in that
    layer, in decode steps neither. The sequence never gets shorter, and all tokens keep their position ids. Where fewer
    are computed each gets more attention, so those that were chosen tend to be chosen again.

    This is not the rule of FTP (arXiv 2412.11494), from which the idea of skipping is: the paper trains a router for
    text tokens, or ranks them by place alone, and searches a share for each layer. https://arxiv.org/abs/2412.11494

    Budget: `keep` is what each of the layers in between computes; the first and last `dense` layers compute all.

    Attributes:
        keep: share in (0, 1] or count of the row's visual tokens that a layer in between computes. Shares are rounded
            half to even and can leave 0.
        dense: how many of the first layers, and of the last, compute all tokens; fewer in models with less than
            2 · dense + 1 layers, but one.
    """

    signals: ClassVar[tuple[str, ...]] = ("attention",)
    keep: Keep = 0.5
    dense: int = 3
    positions: ClassVar[str] = "original"
    returns: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        fields.check_int("dense", self.dense, "the first layer's attention ranks the tokens, so give 1 or more", 1)

    def schedule(self, num_layers: int) -> tuple[int, ...]:
        dense = max(min(self.dense, (num_layers - 1) // 2), 1)
        return tuple(range(dense, num_layers - dense))

    def watch(self, num_layers: int) -> Watch:
        return Watch(attention=tuple(layer - 1 for layer in self.schedule(num_layers)))

    def on_attention(self, rows: Rows, attention: Attention, memory: Memory) -> None:
        table = memory.get("table")
        if table is None:
            table = torch.zeros(len(rows.visual) * _width(rows), device=rows.visual.device)
        memory["table"] = table.scatter(0, _cells(rows), last_query_attention(attention).flatten())

    def score(self, rows: Rows, memory: Memory) -> Tensor:
        return memory["table"][_cells(rows)].view(rows.visual.shape)


def _width(rows: Rows) -> int:
    """Cells of a row of the table: one for each place up to the last visual token's, and one for all other tokens."""
    return 2 + max(int(image.positions[-1]) for image in rows.images)


def _cells(rows: Rows) -> Tensor:
    """LongTensor [B · n]: the cell of each token in the table, which is flat so that it is not cut with a sequence."""
    assert rows.origin is not None
    width = _width(rows)
    column = torch.where(rows.visual, rows.origin, width - 1)
    return (column + torch.arange(len(column), device=column.device)[:, None] * width).flatten()
