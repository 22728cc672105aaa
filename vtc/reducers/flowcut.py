"""FlowCut: prune patches layer by layer while the vision tower runs, then tokens in the language model.

arXiv 2505.19536, NeurIPS 2025.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vtc import ops
from vtc.attention.scores import Attention
from vtc.method import fields
from vtc.method.base import Method
from vtc.method.budget import Keep
from vtc.method.patches import Patches
from vtc.method.prune import Memory, Prune, Rows, Watch
from vtc.method.reducer import Reducer
from vtc.method.reduction import Reduction
from vtc.method.registry import register
from vtc.model.parts import Parts
from vtc.ops.similarity import as_float

#: The decoder layer, from 0, in front of which the second stage prunes: it reads layer 1.
_LLM_LAYER = 2


def flow_score(attention: Tensor, strength: Tensor, semantic: Tensor | None = None) -> Tensor:
    """Information flow to each token: (a / sum a + b / sum b) · n (Sec. 3.3).

    Args:
        attention: a, Tensor [G, N]: attention that the token gets from CLS (or from the last text token).
        strength: n, Tensor [G, N]: L1 norm of its value, mean over heads first.
        semantic: b, Tensor [G, N]: the same as a, of values; None: towers without CLS have none.

    Returns:
        Tensor [G, N] in float32; NaN and Inf in what is given count as 0.
    """
    score = _share(attention)
    if semantic is not None:
        score = score + _share(semantic)
    return score * as_float(strength)


def prune_number(attention: Tensor, target: int, remaining: int) -> int:
    """Tokens that a layer drops: round((N - target) / sqrt(L) · (1 - e²)), all of N - target where L is 0 (eq. 6).

    e is the entropy of the attention over ln N: the more even it is, the fewer go. With several sequences the largest
    number counts for all, as in the released code.

    Args:
        attention: Tensor [G, N], N >= 2; 0 · log 0 counts as 0, where the released code fails.
        target: tokens that are left in the end, below N.
        remaining: L, layers until the last one that prunes.
    """
    tokens = attention.shape[1]
    if remaining == 0:
        return tokens - target
    entropy = torch.special.entr(_share(attention)).sum(dim=1) / math.log(tokens)
    ratio = float((1 - entropy.square()).max())
    return min(max(round((tokens - target) / math.sqrt(remaining) * ratio), 0), tokens - target)


def value_attention(query: Tensor, value: Tensor) -> Tensor:
    """Semantic attention of one token: softmax over all rows of its value times theirs, not scaled; mean over heads.

    Args:
        query: Tensor [G, H, 1, d], value of the token.
        value: Tensor [G, H, P, d].

    Returns:
        Tensor [G, P].
    """
    return ops.attention_rows(ops.AttentionArguments(query, value, 1.0)).mean(dim=1)[:, 0]


def tower_flow(patches: Patches) -> tuple[Tensor, Tensor]:
    """Score and attention [G, U] of each unit at one block.

    With CLS: attention from CLS, semantic attention of its value, strength. Without: attention from the mean query,
    and strength, as in the released code for Qwen2-VL. A unit has the mean over its patches.
    """
    value = as_float(patches.value)
    strength = value.mean(dim=1).abs().sum(dim=-1)
    if not patches.has_cls:
        asking = as_float(patches.query).mean(dim=2, keepdim=True)
        attention = patches.attend(asking).mean(dim=1)[:, 0]
        return patches.of_units(flow_score(attention, strength)), patches.of_units(attention)
    attention = patches.attend(patches.query[:, :, :1]).mean(dim=1)[:, 0, 1:]
    semantic = value_attention(value[:, :, :1], value)[:, 1:]
    score = flow_score(attention, strength[:, 1:], semantic)
    return tuple(patches.of_units(torch.nn.functional.pad(x, (1, 0))) for x in (score, attention))  # type: ignore


def _share(attention: Tensor) -> Tensor:
    """Divided by the sum over tokens; zero where that is zero."""
    attention = as_float(attention)
    total = attention.sum(dim=-1, keepdim=True)
    return attention / torch.where(total > 0, total, 1.0)


@register("flowcut")
@dataclass
class FlowCut(Reducer):
    """Drop patches step by step in the vision tower, by the information that flows to them through CLS.

    A patch's score is (attention from CLS + the same of values) times the strength of its value, half of it from this
    block and half from what was before. How many go follows from the entropy of the CLS attention; whole units
    (the patches of one visual token) stay or go. Without CLS the mean query asks, and nothing is semantic: what the
    released code for Qwen2-VL does, which prunes single patches though. https://arxiv.org/abs/2505.19536

    Budget: T* of the paper, patches left in the end, is what `keep` makes of an image; at every second block from the
    tower's start some go, and the last time, in the block before the one that the projector reads (without CLS: in that
    block), all that are still too many. With stages="both" the tower keeps twice `keep` and the language model halves
    that: exactly `keep` of each image where a row has one. With several images in a row the second stage has one budget
    for all of them, half of what the tower left; where twice `keep` is more than an image has, that can be less than
    `keep` of each.

    Attributes:
        keep: share in (0, 1] or count of the visual tokens of an image. Default 1/3. With stages="llm": of the row.
        stages: "tower" (default, as published for LLaVA-1.5), "llm" or "both" (as published for LLaVA-NeXT, Qwen2-VL).
            "llm" prunes in front of decoder layer 2, by the last token's attention, values and strength there.
        coupled: whether all crops of an image drop equally many, the most that one of them would, as the released code
            does; default False: each crop by itself, so that its result does not depend on the others.
    """

    keep: Keep = 1 / 3
    stages: Literal["tower", "llm", "both"] = "tower"
    coupled: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        fields.check_bool("coupled", self.coupled)

    @property
    def together(self) -> str:
        """All crops of an image, or each alone: how many go depends on what they show."""
        return "image" if self.coupled else "sequence"

    def split(self) -> tuple[Method, ...]:
        prune = FlowCutPrune(keep=self.keep, halve=self.stages == "both")
        if self.stages == "llm":
            return (prune,)
        if self.stages == "tower":
            return (self,)
        return _TwiceAsMany(keep=self.keep, coupled=self.coupled), prune

    def blocks(self, parts: Parts) -> tuple[int, ...]:
        feature = parts.block(parts.feature_layer, "flowcut")
        return tuple(range(max(feature, 1) if parts.has_cls else feature + 1))

    def reduce(self, patches: Patches) -> Reduction | None:
        if patches.units <= patches.target:
            return None
        score, attention = tower_flow(patches)
        before = patches.memory.get("flow", score)
        flow = patches.memory["flow"] = (before + score) / 2
        remaining = patches.stages - 1 - patches.stage
        if remaining % 2:
            return None
        drop = prune_number(attention, patches.target, remaining)
        return Reduction.top(flow, patches.units - drop) if drop else None


class _TwiceAsMany(FlowCut):
    """The tower's part of stages="both"."""

    def count(self, present: int) -> int:
        return min(2 * super().count(present), present)


@dataclass
class FlowCutPrune(Prune):
    """The second stage of FlowCut: in the language model, in front of layer 2, by what the last token takes in layer 1.

    Score: (softmax over visual keys of q_last · k + the same of values) · strength, shares of the row's visual tokens.

    Attributes:
        keep: share in (0, 1] or count of the row's visual tokens.
        halve: whether the tower has left twice as many as shall stay: half of what comes (`keep`, where that is more).
    """

    keep: Keep = 1 / 3
    halve: bool = False
    name: ClassVar[str] = "flowcut"
    min_tokens: ClassVar[int] = 1

    def count(self, present: int) -> int:
        count = super().count(present)
        return max(present // 2, count) if self.halve else count

    def schedule(self, num_layers: int) -> tuple[int, ...]:
        return (_LLM_LAYER,)

    def watch(self, num_layers: int) -> Watch:
        return Watch(attention=(_LLM_LAYER - 1,))

    def on_attention(self, rows: Rows, attention: Attention, memory: Memory) -> None:
        memory["relation"], memory["semantic"], memory["strength"] = last_token_logits(attention)

    def score(self, rows: Rows, memory: Memory) -> Tensor:
        attention, semantic = (over_visual(memory[name], rows.visual) for name in ("relation", "semantic"))
        return flow_score(attention, memory["strength"], semantic)


def last_token_logits(attention: Attention) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [B, n, H] from the last token's query and [B, n, H'] from its value, and strength [B, n] of all tokens.

    Raises:
        ValueError: the attention has no values.
    """
    if attention.value is None:
        raise ValueError("flowcut: the values of the watched layer are missing; hand them over in Attention.value")
    length = attention.query.shape[2]
    query, key = as_float(attention.query[:, :, -1:]), as_float(attention.key[:, :, -length:])
    value = as_float(attention.value[:, :, -length:])
    groups = key.shape[1]
    relation = (query.unflatten(1, (groups, -1))[:, :, :, 0] @ key.transpose(2, 3)).flatten(1, 2) * attention.scaling
    if attention.softcap is not None:
        relation = attention.softcap * torch.tanh(relation / attention.softcap)
    semantic = (value[:, :, -1:] @ value.transpose(2, 3))[:, :, 0] * value.shape[-1] ** -0.5
    return relation.transpose(1, 2), semantic.transpose(1, 2), value.mean(dim=1).abs().sum(dim=-1)


def over_visual(logits: Tensor, visual: Tensor) -> Tensor:
    """Softmax of `logits` [B, n, H] over the `visual` [B, n] tokens alone, mean over heads: Tensor [B, n]."""
    return torch.softmax(logits.masked_fill(~visual[:, :, None], -torch.inf), dim=1).nan_to_num(0.0).mean(dim=2)
