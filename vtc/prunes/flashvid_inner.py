"""FlashVID's inner stage: late in the decoder, the visual tokens that the last one attends to (arXiv 2602.08024)."""

import math
from dataclasses import dataclass
from numbers import Integral
from typing import ClassVar

from torch import Tensor

from vtc.attention.scores import Attention
from vtc.method import budget
from vtc.method.base import resolve_layer
from vtc.method.budget import Keep
from vtc.method.prune import Memory, Prune, Rows, Watch
from vtc.method.registry import register
from vtc.prunes.attention.fastv import last_query_attention
from vtc.prunes.profile import check_layer_behind

#: Published for models of 28 layers.
_LAYER, _DEPTH = 20, 28


@register("flashvid_inner")
@dataclass
class FlashVIDInner(Prune):
    """Drop, in front of a late decoder layer, the visual tokens that got least attention in the layer before it.

    FastV, only later, and with a share that is rounded up: attention is that of the last prompt token, the survivors
    keep their position ids, several images of a row share one budget. The outer stage, which compresses videos in front
    of the decoder, is `flashvid`. https://arxiv.org/abs/2602.08024

    Budget: as published, of what the outer stage leaves, separators included: 0.3 in front of layer 20 of 28 (0.1 in
    front of layer 28 of 36).

    Attributes:
        keep: share in (0, 1] or count of the row's visual tokens; a share is rounded up.
        layer: decoder layer, from 0, that is the first to see fewer tokens. None: the published 20 of 28, scaled to the
            model's depth.
    """

    signals: ClassVar[tuple[str, ...]] = ("attention",)
    keep: Keep = 0.3
    layer: int | None = None
    positions: ClassVar[str] = "original"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_layer_behind(self.layer)

    def count(self, present: int) -> int:
        wanted = self.keep if isinstance(self.keep, Integral) else math.ceil(present * self.keep)
        return budget.resolve(wanted, present, self.min_tokens)

    def schedule(self, num_layers: int) -> tuple[int, ...]:
        return resolve_layer(self.layer, _LAYER, _DEPTH, num_layers)

    def watch(self, num_layers: int) -> Watch:
        return Watch(attention=(self.schedule(num_layers)[0] - 1,))

    def on_attention(self, rows: Rows, attention: Attention, memory: Memory) -> None:
        memory["attention"] = last_query_attention(attention)

    def score(self, rows: Rows, memory: Memory) -> Tensor:
        return memory["attention"]
