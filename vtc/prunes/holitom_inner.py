"""HoliTom's inner merging: in one decoder layer, half of the tokens go into the other half (arXiv 2505.21334).

NeurIPS 2025. The outer stage, which merges the frames of a video in front of the decoder, is another method.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc import ops
from vtc.attention.scores import Attention
from vtc.method import fields
from vtc.method.base import resolve_layer
from vtc.method.budget import Keep
from vtc.method.prune import (
    Decision,
    Memory,
    Prune,
    Rows,
    Watch,
    top_visual,
)
from vtc.method.registry import register
from vtc.ops.host import on
from vtc.ops.mixing import Mixing
from vtc.ops.similarity import nearest, unit_rows
from vtc.prunes.attention.fastv import last_query_attention
from vtc.prunes.profile import check_layer_behind

#: Published for LLaVA-OneVision-7B and LLaVA-Video-7B: K = 18 of 28 layers.
_LAYER, _DEPTH = 18, 28


def nearest_kept(hidden: Tensor, score: Tensor, alive: Tensor, dropped: Tensor, counts: Sequence[int]) -> Tensor:
    """For each dropped token the kept one with the largest cosine similarity; of equal ones the best scored.

    Args:
        hidden: [B, n, D], as it is before any merge.
        score: [B, n], what the kept tokens were ranked by; NaN counts least.
        alive: BoolTensor [B, n]: the kept tokens.
        dropped: BoolTensor [B, n].
        counts: how many kept tokens each row has.

    Returns:
        LongTensor [B, n]: place of the kept token; -1 at tokens that were not dropped, and where none is kept.
    """
    if max(counts) == 0:
        return torch.full_like(alive, -1, dtype=torch.long)
    lowest = torch.finfo(torch.float32).min
    ranked = score.float().nan_to_num(lowest, neginf=lowest).masked_fill(~alive, float("-inf"))
    order = ranked.argsort(dim=1, descending=True, stable=True)
    kept, others = order[:, : max(counts)], order[:, min(counts) :]
    rank = torch.arange(kept.shape[1], device=kept.device)
    few = rank >= on(kept.device, counts)[:, None]
    kept = torch.where(few, kept[:, :1], kept)  # the best once more: of equal ones the first is taken
    chosen = nearest(*(unit_rows(_take(hidden, places)) for places in (others, kept)))[1]
    into = order.new_full(order.shape, -1).scatter(1, others, kept.gather(1, chosen))
    return into.masked_fill(~(dropped & alive.any(dim=1, keepdim=True)), -1)


def halve_into(hidden: Tensor, into: Tensor) -> Tensor:
    """The running halving h <- (h + h_dropped) / 2 of each target, its dropped tokens in ascending order.

    Written as a sum: of m dropped tokens the i-th, from 1, has the weight 2^-(m - i + 1), the target itself 2^-m.

    Args:
        hidden: [B, n, D]; half precision is summed in float32.
        into: LongTensor [B, n]: place of the target of each dropped token, -1 elsewhere. No target is dropped itself.

    Returns:
        Tensor [B, n, D] in the dtype of `hidden`; whatever is no target stays as it was, bit for bit.
    """
    length = hidden.shape[1]
    stays = into < 0
    place = torch.arange(length, device=into.device).expand_as(into)
    target = into.masked_fill(stays, length)
    received = into.new_zeros(len(into), length + 1).scatter_add(1, target, torch.ones_like(into))
    order = target.argsort(dim=1, stable=True)  # those of one target stand together, ascending
    behind = (
        received.cumsum(dim=1).gather(1, target.gather(1, order)) - place
    )  # itself and those of its target after it
    received = received[:, :length]
    halvings = torch.where(stays, received, torch.zeros_like(into).scatter(1, order, behind))
    mixing = Mixing(place, torch.where(stays, place, into), torch.exp2(-halvings.float()))
    return torch.where(received[:, :, None] > 0, ops.merge(hidden, mixing, length), hidden)


def _take(values: Tensor, places: Tensor) -> Tensor:
    return values.gather(1, places[:, :, None].expand(-1, -1, values.shape[2]))


@register("holitom_inner")
@dataclass
class HoliTomInner(Prune):
    """Merge, in front of one decoder layer, the visual tokens that the last one ignores into those that it looks at.

    Ranked by the last prompt token's attention in the layer before. Each token that goes is merged into the kept one
    with the most similar hidden state, by a running halving: the later of several weighs more. Done once, in prefill;
    the survivors keep their position ids. All images and videos of a row share one budget.
    https://arxiv.org/abs/2505.21334

    Budget: the paper's R is the share that goes after K layers: R=0.5 with K=18 is keep=0.5, layer=18. Its retention
    ratios (10 to 25 %) are those of the outer stage, which comes before; `keep` counts from what that leaves.

    Attributes:
        keep: share in (0, 1] or count of the row's visual tokens; a share is rounded half to even, and leaves one at
            least, for there must be one to merge into.
        layer: decoder layer, from 0, that is the first to see fewer tokens: K of the paper, so K layers run in full.
            None: the published 18 of 28, scaled to the model's depth.
        causal: whether layer K-1 runs as it is. False: without its causal mask, so that its tokens see later ones too,
            as in the released code, by which the published numbers were most likely made.
    """

    signals: ClassVar[tuple[str, ...]] = ("attention", "merging")
    keep: Keep = 0.5
    layer: int | None = None
    causal: bool = True
    positions: ClassVar[str] = "original"
    min_tokens: ClassVar[int] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        fields.check_bool("causal", self.causal)
        check_layer_behind(self.layer)

    def schedule(self, num_layers: int) -> tuple[int, ...]:
        return resolve_layer(self.layer, _LAYER, _DEPTH, num_layers)

    def watch(self, num_layers: int) -> Watch:
        before = (self.schedule(num_layers)[0] - 1,)
        return Watch(attention=before, open=() if self.causal else before)

    def on_attention(self, rows: Rows, attention: Attention, memory: Memory) -> None:
        memory["attention"] = last_query_attention(attention)

    def score(self, rows: Rows, memory: Memory) -> Tensor:
        return memory["attention"]

    def decide(self, rows: Rows, counts: Sequence[int], memory: Memory) -> Decision:
        score = self.score(rows, memory)
        alive = top_visual(score, rows.visual, counts)
        into = nearest_kept(rows.hidden, score, alive, rows.visual & ~alive, counts)
        return Decision(alive, halve_into(rows.hidden, into), into)
