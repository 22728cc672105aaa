"""VScan, stage 2: in the middle of the decoder, the visual tokens that the last one attends to (arXiv 2505.22654)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vtc.method import fields
from vtc.method.base import resolve_layer
from vtc.method.budget import Keep
from vtc.method.prune import Memory, Prune, Rows, Watch
from vtc.method.registry import register
from vtc.prunes.attention.fastv import last_query_attention

#: Published for LLaVA-1.5: in front of layer 16 of 32.
_LAYER, _DEPTH = 16, 32


@register("vscan_stage2")
@dataclass
class VScanStage2(Prune):
    """Keep, in front of one decoder layer, the visual tokens that the last token of the prompt attends to.

    A token's score is the attention probability from the last token, a softmax over all keys, mean over heads, with q
    and k of the layer about to run. Survivors are numbered anew. That is the released form for LLaVA; the one for
    Qwen2.5-VL differs: it leaves the rotary embedding out of q and k. Here q and k have their positions in all
    families. https://arxiv.org/abs/2505.22654

    Budget: the paper's counts and shares, of what reaches the layer: 32 of the 96 tokens that stage 1 leaves of
    LLaVA-1.5's 576 (64 on average over all layers), a third for Qwen2.5-VL. Here it is of all visual tokens of a row.

    Attributes:
        keep: share in (0, 1] or count of the row's visual tokens; a share is rounded half to even and can leave 0.
        layer: decoder layer, from 0, that is the first to see fewer tokens. None: the published 16 of 32, scaled to the
            model's depth.
    """

    signals: ClassVar[tuple[str, ...]] = ("attention",)
    keep: Keep = 1 / 3
    layer: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layer is not None:
            fields.check_int("layer", self.layer, "give a decoder layer from 1 on, or None for half of the depth", 1)

    def schedule(self, num_layers: int) -> tuple[int, ...]:
        return resolve_layer(self.layer, _LAYER, _DEPTH, num_layers)

    def watch(self, num_layers: int) -> Watch:
        return Watch(probe=True)

    def score(self, rows: Rows, memory: Memory) -> Tensor:
        return last_query_attention(rows.probe())
