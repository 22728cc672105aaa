"""PruneVid's inner stage: in each frame, and of each segment's static tokens, what the question attends to.

arXiv 2412.16117, ACL 2025. The outer stage, which merges in front of the decoder, is another method.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import ClassVar

import torch
from torch import Tensor

from vtc.attention.scores import Attention
from vtc.method import budget
from vtc.method.base import resolve_layer
from vtc.method.budget import Keep
from vtc.method.prune import Decision, Memory, Prune, Rows, Watch
from vtc.method.registry import register
from vtc.ops.host import on
from vtc.prunes.profile import check_layer_behind

#: Published: behind layer 10 of 32, from 0.
_LAYER, _DEPTH = 11, 32
#: Queries whose attention is looked at together.
_CHUNK = 64


@register("prunevid_inner")
@dataclass
class PruneVidInner(Prune):
    """Keep, in front of one decoder layer, the visual tokens of each frame that the question attends to most.

    A token's score is the largest attention probability that it gets in the layer before, over heads and over all text
    behind the row's last visual token. Tokens are ranked within their frame; behind PruneVid's outer stage within the
    static tokens of a segment, and within the others of a frame. A picture, or each of its crops, is a frame. Newlines
    and CLS tokens of frames stay. Done once, in prefill; the survivors keep their position ids. The released code
    also cuts the keys of the layers in front, so that decoding sees the same tokens in all layers; here these keep
    theirs, as in the prefill. https://arxiv.org/abs/2412.16117

    Budget: the paper's alpha is `keep`; it is taken in each group, rounded down, so that a few fewer stay in all, and
    none of a group too small for one.

    Attributes:
        keep: share in (0, 1] of each group, or count of the row's visual tokens, met roughly: the share that it is.
        layer: decoder layer, from 0, that is the first to see fewer tokens; the attention of the one before is read.
            None: the published 11 of 32, scaled to the model's depth.
    """

    signals: ClassVar[tuple[str, ...]] = ("attention", "question")
    keep: Keep = 0.4
    layer: int | None = None
    positions: ClassVar[str] = "original"

    def __post_init__(self) -> None:
        budget.check_keep(self.keep)
        check_layer_behind(self.layer)

    @property
    def adaptive(self) -> bool:
        """Whether groups decide how many tokens stay: not where all do."""
        return not (isinstance(self.keep, float) and self.keep == 1)

    def schedule(self, num_layers: int) -> tuple[int, ...]:
        return resolve_layer(self.layer, _LAYER, _DEPTH, num_layers)

    def watch(self, num_layers: int) -> Watch:
        return Watch(attention=(self.schedule(num_layers)[0] - 1,))

    def on_attention(self, rows: Rows, attention: Attention, memory: Memory) -> None:
        memory["score"] = strongest(attention, rows.instruction, rows.tail)

    def score(self, rows: Rows, memory: Memory) -> Tensor:
        return memory["score"]

    def decide(self, rows: Rows, counts: Sequence[int], memory: Memory) -> Decision:
        groups = frames_of(rows)
        if rows.groups is not None:
            groups = torch.where(rows.groups < 0, groups, rows.groups)
        share: Tensor | float = self.keep
        if isinstance(self.keep, Integral):
            share = (int(self.keep) / rows.visual.sum(dim=1, keepdim=True).clamp(min=1)).clamp(max=1)
        return Decision(rows.visual & best_of_groups(self.score(rows, memory), groups, share))


def strongest(attention: Attention, text: Tensor, tail: int) -> Tensor:
    """The largest attention probability that each new token gets from some queries, over heads, in float32.

    Args:
        attention: of a layer with n new tokens.
        text: BoolTensor [B, n]: the queries, all among the last `tail`.
        tail: how many queries are looked at.

    Returns:
        Tensor [B, n].
    """
    batch, length = text.shape
    best = torch.zeros(batch, length, device=attention.query.device)
    for start in range(length - tail, length, _CHUNK):
        index = torch.arange(start, min(start + _CHUNK, length), device=best.device)
        found = attention.head_rows(index.expand(batch, -1)).amax(dim=1)[:, :, -length:]
        best = best.maximum(found.where(text[:, index, None], 0.0).amax(dim=1))
    return best


def frames_of(rows: Rows) -> Tensor:
    """LongTensor [B, n]: the frame of each visual token, called after the place of its first; -1 elsewhere."""
    assert rows.origin is not None
    end = 1 + max((int(image.positions[-1]) for image in rows.images), default=0)
    frames = torch.full((len(rows.visual), end + 1), -1)
    for image in rows.images:
        for grid in image.grids:
            cells = image.positions[grid.places().view(grid.t, -1)]
            frames[image.row, cells] = cells[:, :1]
    return on(rows.origin.device, frames).gather(1, rows.origin.clamp(max=end)).masked_fill(~rows.visual, -1)


def best_of_groups(score: Tensor, groups: Tensor, share: Tensor | float) -> Tensor:
    """The tokens with the highest scores of each group, of n int(n · share); of equal ones the first.

    Args:
        score: [B, n]; NaN counts least.
        groups: LongTensor [B, n]: any number for each group; below 0: tokens of none, which all stay.
        share: in [0, 1], for all rows or [B, 1].

    Returns:
        BoolTensor [B, n].
    """
    order = score.nan_to_num(-torch.inf).argsort(dim=1, descending=True, stable=True)
    order = order.gather(1, groups.gather(1, order).argsort(dim=1, stable=True))
    name, place = groups.gather(1, order), torch.arange(groups.shape[1], device=groups.device).expand_as(groups)
    starts = torch.ones_like(name, dtype=torch.bool)
    starts[:, 1:] = name[:, 1:] != name[:, :-1]
    number = starts.long().cumsum(dim=1) - 1
    size = torch.zeros_like(name).scatter_add(1, number, torch.ones_like(name)).gather(1, number)
    rank = place - torch.where(starts, place, 0).cummax(dim=1).values
    best = (name < 0) | (rank < (size.double() * share).floor())
    return torch.empty_like(best).scatter(1, order, best)
