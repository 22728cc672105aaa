"""DyCoke in decode steps: attend to the visual tokens that the new token attends to (arXiv 2411.15024, CVPR 2025)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, pad

from vtc.attention.scores import Attention
from vtc.method import fields
from vtc.method.budget import Keep
from vtc.method.prune import Memory, Prune, Watch, top_visual
from vtc.method.registry import register
from vtc.prunes.attention.fastv import last_query_row
from vtc.prunes.profile import rounded_down

_ALIKE = 0.9


@register("dycoke_decode")
@dataclass
class DyCokeDecode(Prune):
    """In decode steps, let the later layers attend to those visual tokens alone that the new token attends to most.

    Read is the attention of the new token in the layer before, mean over heads. As long as it is like that of the step
    before (cosine of 0.9 or more over the visual tokens) the last choice holds; else it is made anew, from all. Keys of
    the others stay in the cache: prefill, memory and what the layers compute are as without; fewer keys are attended
    to. https://arxiv.org/abs/2411.15024

    Budget: the paper's P is the share that a step leaves out: keep = 1 - P, rounded down, of the visual tokens that
    reach the decoder.

    Attributes:
        layer: first decoder layer, from 0, that sees fewer; the attention of the one before decides.
        keep: share in (0, 1] or count of the row's visual tokens. Default 0.3, as in the paper's main row.
        reuse: False: as released, where a step that does not choose anew sees all tokens.
    """

    signals: ClassVar[tuple[str, ...]] = ("attention",)
    layer: int = 3
    keep: Keep = 0.3
    reuse: bool = True
    positions: ClassVar[str] = "original"
    revives: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        fields.check_int("layer", self.layer, "DyCoke reads the attention of the layer before, so give 1 or more", 1)
        fields.check_bool("reuse", self.reuse)

    @property
    def unrevived(self) -> str:
        return "leave dycoke_decode out (dycoke: decode=False)"

    def schedule(self, num_layers: int) -> tuple[int, ...]:
        return (self.layer,)

    def count(self, present: int) -> int:
        return present

    def seen_at(self, stage: int, present: int) -> int:
        return rounded_down(self.keep, present)

    def watch(self, num_layers: int) -> Watch:
        return Watch()

    def recall(self, attention: Attention) -> Tensor:
        return last_query_row(attention)

    def choose(self, scores: Tensor, visual: Tensor, counts: Sequence[int], memory: Memory) -> Tensor:
        seen = torch.where(visual & scores.isfinite(), scores, 0.0)
        chosen = top_visual(scores, visual, counts)
        if memory:
            before, last = (
                pad(memory[name], (0, scores.shape[1] - memory[name].shape[1])) for name in ("seen", "chosen")
            )
            alike = cosine_similarity(seen, before, dim=1) >= _ALIKE
            chosen = torch.where(alike[:, None], last if self.reuse else visual, chosen)
        memory.update(seen=seen, chosen=chosen)
        return chosen
