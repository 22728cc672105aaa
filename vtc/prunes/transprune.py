"""TransPrune: keep the visual tokens that layers still change, and that the instruction looks at (arXiv 2507.20630)."""

import math
from dataclasses import dataclass
from fractions import Fraction
from numbers import Integral
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vtc.attention.scores import Attention
from vtc.method.base import resolve_layers
from vtc.method.budget import Keep
from vtc.method.prune import Memory, Prune, Rows, Watch
from vtc.method.registry import register
from vtc.prunes.profile import check_keeps, check_layers, rounded_down

#: Published for LLaVA-1.5: prune after 7, 9 and 12 of 32 layers, where 1/7, 3/7 and all of what is to go has gone.
_LAYERS, _DEPTH, _GONE = (7, 9, 12), 32, (Fraction(1, 7), Fraction(3, 7), Fraction(1))


def transition(before: Tensor, after: Tensor, valid: Tensor | None = None, direction: str = "code") -> Tensor:
    """Token transition variation of one module: how much it changes the length and the direction of each token.

    |after| / |before| · softmax over tokens of (1 - cos(before, after)) (Sec. 3.2).

    Args:
        before: [B, n, D], input of the module, after the norm.
        after: [B, n, D], its output, before the residual is added.
        valid: BoolTensor [B, n]: tokens of each row that the softmax is over; None: all.
        direction: "code": 1 - cos, as released; "paper": 1 - |cos|. They differ where a token is turned round.

    Returns:
        Tensor [B, n] in float32; Inf where `before` is zero.
    """
    before, after = before.float(), after.float()
    cosine = torch.cosine_similarity(before, after, dim=-1).nan_to_num(1.0)
    turn = 1 - (cosine if direction == "code" else cosine.abs())
    if valid is not None:
        turn = turn.masked_fill(~valid, float("-inf"))
    return after.norm(dim=-1) / before.norm(dim=-1) * torch.softmax(turn, dim=-1)


def instruction_attention(attention: Attention, instruction: Tensor) -> Tensor:
    """Instruction-guided attention: what each new token gets from the instruction's tokens, mean over them and heads.

    Args:
        attention: q and k of the layer about to run, with n new tokens.
        instruction: BoolTensor [B, t], t <= n: which of the last t queries count.

    Returns:
        Tensor [B, n] in float32.
    """
    count = instruction.sum(dim=1, keepdim=True).clamp_min(1)
    return attention.received(instruction / count)[:, -attention.query.shape[2] :]


def share_of_visual(values: Tensor, visual: Tensor) -> Tensor:
    """`values` [B, n] divided by their sum over the visual tokens; 0 at others, and where not finite."""
    values = values.nan_to_num(0.0, 0.0, 0.0) * visual
    return values / (values.sum(dim=-1, keepdim=True) + 1e-8)


@register("transprune")
@dataclass
class TransPrune(Prune):
    """Drop, in front of three decoder layers, the visual tokens that change least and that the instruction ignores.

    Adds two scores, each normalised over the visual tokens: the transition variation of attention and MLP modules,
    summed over the layers from the one before the first prune point on, and the attention from the instruction in the
    layer about to run. Needs no attention matrix. Survivors are numbered anew. https://arxiv.org/abs/2507.20630

    Budget: the paper gives a share for each of its three layers, of the tokens at the first; the last one is `keep`
    here, and `keeps` takes all three.

    Attributes:
        keep: share in (0, 1] or count of the row's visual tokens that is left in the end. Of what is to go, 1/7, 3/7
            and all has gone after the three layers: 0.125 gives the published 0.875, 0.625, 0.125. Shares round down,
            and can leave 0.
        layers: decoder layers, from 0, in front of which tokens go (n of them have run then). None: the published
            7, 9, 12 of 32, scaled to the model's depth.
        keeps: what is left after each of the layers, shares or counts of the tokens at the first; in place of `keep`.
        direction: "code" (1 - cos) or "paper" (1 - |cos|).
    """

    signals: ClassVar[tuple[str, ...]] = ("change", "attention")
    keep: Keep = 0.125
    layers: tuple[int, ...] | None = None
    keeps: tuple[Keep, ...] | None = None
    direction: Literal["code", "paper"] = "code"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.layers = check_layers(self.layers, _LAYERS)
        self.keeps = check_keeps(self.keeps, self.layers or _LAYERS, (0.875, 0.625, 0.125))
        if self.keeps is None and len(self.layers or _LAYERS) != len(_GONE):
            raise ValueError(
                f"keeps=None does not fit layers={self.layers!r}; give keeps with {len(self.layers or _LAYERS)} entries"
            )

    def schedule(self, num_layers: int) -> tuple[int, ...]:
        return resolve_layers(self.layers, _LAYERS, _DEPTH, num_layers)

    def count(self, present: int) -> int:
        return self.count_at(len(self.layers or _LAYERS) - 1, present)

    def count_at(self, stage: int, present: int) -> int:
        if self.keeps is not None:
            counts = [rounded_down(keep, present) for keep in self.keeps[: stage + 1]]
            return min(counts)
        if isinstance(self.keep, Integral):
            return math.floor(present - _GONE[stage] * (present - min(int(self.keep), present)))
        return rounded_down(float(1 - _GONE[stage] * (1 - Fraction(str(float(self.keep))))), present)

    def watch(self, num_layers: int) -> Watch:
        schedule = self.schedule(num_layers)
        return Watch(modules=tuple(range(schedule[0] - 1, schedule[-1])), probe=True)

    def on_modules(self, rows: Rows, module: str, before: Tensor, after: Tensor, memory: Memory) -> None:
        change = transition(before, after, rows.valid, self.direction)
        memory["transition"] = memory["transition"] + change if "transition" in memory else change

    def score(self, rows: Rows, memory: Memory) -> Tensor:
        asked = rows.instruction & rows.visual.any(dim=1, keepdim=True)
        attended = instruction_attention(rows.probe(), asked[:, -rows.tail :])
        return share_of_visual(memory["transition"], rows.visual) + share_of_visual(attended, rows.visual)
