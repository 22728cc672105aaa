"""VTW: from one decoder layer on, no visual token goes on (arXiv 2405.05803, AAAI 2025)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vtc.method import fields
from vtc.method.base import Trials, resolve_layer
from vtc.method.prune import Decision, Memory, Prune, Rows
from vtc.method.registry import register

#: Published for LLaVA-1.5-7B: the layer K, and the first one that the search tries, of 32.
_LAYER, _FIRST, _DEPTH = 15, 5, 32


def divergence(full: Tensor, cut: Tensor) -> Tensor:
    """KL divergence of the next token's distribution with the cut from the untouched one, mean over prompts.

    Args:
        full: Tensor [P, V], logits of the untouched model behind each prompt.
        cut: Tensor [P, V], those with the cut, over whose distribution the mean is.

    Returns:
        Tensor [] in float32, in nats.
    """
    full, cut = full.float().log_softmax(dim=-1), cut.float().log_softmax(dim=-1)
    share = cut.exp()
    return torch.where(share > 0, share * (cut - full), 0.0).sum(dim=-1).mean()


@register("vtw")
@dataclass
class VTW(Prune):
    """Drop all visual tokens in front of one decoder layer; what they said has gone over into the text by then.

    Later layers, and later tokens in them, see text alone, at its old position ids; up to that layer the visual tokens
    stay in the cache. Nothing is computed to decide. https://arxiv.org/abs/2405.05803

    Budget: none but the layer: of 32 layers 15 see every token, so 576 tokens are 270 on average over all. The paper
    chooses the first layer at which the next token's distribution hardly changes on a few samples:
    `vtc.planning.fit.fit_vtw` does. `vtc.calibrate(model, "vtw", "layer", batches, tokens=…)` chooses by tokens.

    Attributes:
        layer: decoder layer, from 0, that is the first without visual tokens: K of the paper, so K layers run in full.
            None: the published 15 of 32, scaled to the model's depth.
    """

    layer: int | None = None
    positions: ClassVar[str] = "original"
    keep = None

    def __post_init__(self) -> None:
        if self.layer is not None:
            fields.check_int("layer", self.layer, "give 1 or more, or None for 15/32 of the depth", 1)

    def schedule(self, num_layers: int) -> tuple[int, ...]:
        return resolve_layer(self.layer, _LAYER, _DEPTH, num_layers)

    def count(self, present: int) -> int:
        return 0

    def decide(self, rows: Rows, counts: Sequence[int], memory: Memory) -> Decision:
        return Decision(torch.zeros_like(rows.visual))

    def dial(self, field: str, trials: Trials) -> Callable[[float], Any] | None:
        depth = trials.num_layers
        return (lambda share: min(max(round(share * depth), 1), depth - 1)) if field == "layer" else None


def candidates(num_layers: int) -> range:
    """The layers that the search for K tries: from the published 5 of 32 on, scaled to the depth."""
    (first,) = resolve_layer(None, _FIRST, _DEPTH, num_layers)
    return range(first, num_layers)
