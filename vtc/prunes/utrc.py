"""UTRC: between state-space blocks, fuse the less important visual tokens into those most like them.

Unified token reduction for state-space language models, arXiv 2410.14725 (EMNLP 2024); the importance is also that of
arXiv 2409.18962 (NeurIPS 2024). The paper is followed: the code released beside it sorts every channel on its own, so
that what it removes does not depend on which token holds what.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from numbers import Integral
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vtc.method import fields
from vtc.method.base import resolve_layers
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
from vtc.ops.similarity import as_float, nearest, unit_rows
from vtc.prunes.profile import check_layers, geometric

#: Published, by depth: these blocks run in full, and tokens go behind them.
_ANCHORS = {64: (12, 17, 22, 27, 32, 37, 42), 48: (10, 15, 20, 25, 30, 35)}


def token_importance(y: Tensor, importance: str = "clipped") -> Tensor:
    """Importance of each token, in float32; NaN and Inf count as 0.

    Args:
        y: [..., D], what a mixer gave.
        importance: "clipped": mean of max(0, y) over channels, as both papers choose; "l1": mean of |y|; "l2": length
            of y; "plain": mean of y.

    Returns:
        Tensor [...].
    """
    y = as_float(y)
    if importance == "l2":
        return y.norm(dim=-1)
    return {"clipped": y.clamp_min(0), "l1": y.abs(), "plain": y}[importance].mean(dim=-1)


@dataclass(frozen=True)
class Edges:
    """Each token of the less important half with the token that it would go into, the most similar pair first.

    Attributes:
        source: LongTensor [B, E], tokens of the less important half.
        target: LongTensor [B, E], the token that each is most similar to.
        there: BoolTensor [B, E]: False behind the last pair of a row.
    """

    source: Tensor
    target: Tensor
    there: Tensor


def pair(y: Tensor, eligible: Tensor, targets: Tensor, importance: str = "clipped") -> Edges:
    """Split the tokens by importance, and pair each of the less important half with its most similar among the rest.

    Equal importance: lowest index first into the less important half; equal similarity: lowest index; equally similar
    pairs: the less important first.

    Args:
        y: [B, n, D], what the mixer gave: importance and cosine similarity are taken of it.
        eligible: BoolTensor [B, n]: tokens that may go; floor(half) of them make the less important half.
        targets: BoolTensor [B, n]: tokens that others may go into, where they are not in that half themselves.
        importance: see `token_importance`.
    """
    half = eligible.sum(dim=1, keepdim=True) // 2
    ascending = token_importance(y, importance).masked_fill(~eligible, torch.inf).argsort(dim=1, stable=True)
    less = ascending[:, : y.shape[1] // 2]
    there = torch.arange(less.shape[1], device=y.device) < half
    allowed = targets & ~torch.zeros_like(eligible).scatter(1, less, there)
    unit = unit_rows(y)
    # One more channel puts every token that is no target below all that are.
    rows = torch.nn.functional.pad(unit.gather(1, _wide(less, y)), (0, 1), value=1.0)
    among = torch.cat([unit, allowed[:, :, None].to(unit.dtype) * 4 - 4], dim=2)
    similarity, partner = nearest(rows, among)
    best_first = similarity.masked_fill(~there, -torch.inf).argsort(dim=1, descending=True, stable=True)
    return Edges(less.gather(1, best_first), partner.gather(1, best_first), there)


def fuse(branch: Tensor, edges: Edges, chosen: Tensor) -> Tensor:
    """`branch` with the mean of each target and the sources that go into it, at the target, in float32.

    Args:
        branch: [B, n, D].
        edges: the pairs.
        chosen: BoolTensor [B, E]: the pairs whose source goes into their target; the others are left alone.
    """
    branch = branch if branch.dtype == torch.float64 else branch.float()
    sources = branch.gather(1, _wide(edges.source, branch)).masked_fill(~chosen[:, :, None], 0.0)
    total = branch.scatter_add(1, _wide(edges.target, branch), sources)
    count = torch.ones_like(branch[:, :, 0]).scatter_add(1, edges.target, chosen.to(branch.dtype))[:, :, None]
    return torch.where(count > 1, total / count, branch)


def unified_reduction(
    mixer: Tensor, residual: Tensor, edges: Edges, remove: Tensor, pruned: float = 0.5
) -> tuple[Tensor, Tensor, Tensor]:
    """Remove tokens from both branches of a block; the same from both, or they could not be added again.

    Of the most similar `remove` pairs, the first floor(pruned · remove) sources leave the mixer's branch without a
    trace and the others are merged into their targets; in the residual branch all are merged.

    Args:
        mixer: [B, n, D], what the mixer gave.
        residual: [B, n, D], what it is added to.
        edges: pairs of `mixer`.
        remove: LongTensor [B], tokens of each row that go; no more than it has pairs go.
        pruned: q of the paper.

    Returns:
        Mixer branch and residual branch [B, n, D] in float32, to be read at the tokens that stay; BoolTensor [B, E]:
        the pairs whose source goes.
    """
    rank = torch.arange(edges.source.shape[1], device=mixer.device)
    remove = torch.minimum(remove, edges.there.sum(dim=1))[:, None]
    gone = rank < remove
    traceless = rank < (pruned * remove.double() + 1e-9).floor()
    return fuse(mixer, edges, gone & ~traceless), fuse(residual, edges, gone), gone


@register("utrc")
@dataclass
class UTRC(Prune):
    """Remove, behind a few blocks of the decoder, visual tokens that are unimportant and much like an important one.

    Made for Mamba and Mamba-2. A token's importance is the mean over channels of what the block's mixer gave, clipped
    at 0: of the mixer's output, where the paper takes the scan's output inside it, which modules don't hand out. The
    less important half is paired with its most similar tokens (cosine of the mixer's output) of the other half; the
    most similar pairs go. What the mixer gave is pruned in part and merged in part, the residual that it is added to is
    merged. Text never goes and takes nothing in. In layers with attention and MLP, "what the mixer gave" is the sum of
    both. https://arxiv.org/abs/2410.14725

    Budget: each layer leaves the same share of what it finds. The paper's 0.905 behind each of seven of 64 blocks is
    keep=0.5, which it calls 30 %: the mean over all blocks of what is missing. Counts are of the tokens at the first
    layer, rounded up. Half of the tokens can go at each layer at most, so more is left where `keep` is below
    0.5 ** layers.

    Attributes:
        keep: share in (0, 1] or count of the row's visual tokens that is left after the last of the layers.
        layers: decoder layers, from 0, in front of which tokens go: the paper's anchors, which run in full, plus one.
            None: the published anchors 12, 17, …, 42 of 64 or 10, 15, …, 35 of 48 (the nearer depth), scaled to the
            model's depth.
        pruned: q of the paper: share of the removed tokens, the most similar first, that leave no trace in the mixer's
            branch; 0 merges all.
        importance: "clipped", "l1", "l2" or "plain" (not clipped): how channels make it.
        rule: "pairs": as above. "score": what arXiv 2409.18962 does in vision towers: the least important tokens go,
            nothing is merged, and more than half can go at once.
    """

    signals: ClassVar[tuple[str, ...]] = ("change",)
    keep: Keep = 0.5
    layers: tuple[int, ...] | None = None
    pruned: float = 0.5
    importance: Literal["clipped", "l1", "l2", "plain"] = "clipped"
    rule: Literal["pairs", "score"] = "pairs"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.layers = check_layers(self.layers, tuple(anchor + 1 for anchor in _ANCHORS[64]))
        fields.check_share("pruned", self.pruned, "give the share that is pruned, e.g. 0.5; 0 merges all")
        self._stages = len(self.layers or ())

    def split(self) -> "tuple[UTRC, ...]":
        return (copy.copy(self),)  # `schedule` notes how many layers there are, so each model has its own

    def schedule(self, num_layers: int) -> tuple[int, ...]:
        layers = self.layers
        if layers is None:
            depth = min(_ANCHORS, key=lambda of: abs(of - num_layers))
            anchors = resolve_layers(None, _ANCHORS[depth], depth, num_layers)
            layers = tuple(anchor + 1 for anchor in anchors if anchor + 1 < num_layers)
        self._stages = len(layers)
        return layers

    def count(self, present: int) -> int:
        return self.count_at(self._stages - 1, present)

    def count_at(self, stage: int, present: int) -> int:
        if not self._stages:
            raise ValueError("utrc.count depends on the model's depth; call schedule(num_layers) first, or give layers")
        left = present
        for earlier in range(stage + 1):
            fewest = left - left // 2 if self.rule == "pairs" else 0
            left = min(left, max(_rounded_up(self.keep, present, earlier, self._stages), fewest))
        return left

    def watch(self, num_layers: int) -> Watch:
        return Watch(modules=tuple(layer - 1 for layer in self.schedule(num_layers)))

    def on_modules(self, rows: Rows, module: str, before: Tensor, after: Tensor, memory: Memory) -> None:
        given = memory.get(name := _name(rows.layer))
        if given is None:
            memory.clear()
        with torch.set_grad_enabled(after.requires_grad):  # it is merged, and gradients flow through that
            memory[name] = after if given is None else given + after

    def decide(self, rows: Rows, counts: Sequence[int], memory: Memory) -> Decision:
        mixer = memory.pop(_name(rows.layer - 1))
        if self.rule == "score":
            return Decision(top_visual(token_importance(mixer, self.importance), rows.visual, counts))
        place = (~rows.visual).to(torch.uint8).argsort(dim=1, stable=True)[:, : self._most(rows)]
        visual = rows.visual.gather(1, place)
        if rows.hidden.shape[2] != mixer.shape[2]:
            raise ValueError(
                f"utrc: a token has several streams in front of layer {rows.layer}, and what the mixer gave "
                "can't be told apart in them; choose another prune, such as 'fastv'"
            )
        hidden, mixer = (value.gather(1, _wide(place, value)) for value in (rows.hidden, mixer))
        edges = pair(mixer, visual, visual, self.importance)
        remove = visual.sum(dim=1) - on(visual.device, counts)
        residual = hidden.float() - mixer.float()
        mixed, rest, gone = unified_reduction(mixer, residual, edges, remove, self.pruned)
        source, target = place.gather(1, edges.source), place.gather(1, edges.target)
        # Sources that stay write to a place behind the last, which is cut off again.
        length = rows.visual.shape[1]
        into = torch.full_like(rows.visual, -1, dtype=torch.long)
        into = torch.cat([into, into[:, :1]], dim=1).scatter(1, source.masked_fill(~gone, length), target)[:, :length]
        taken = torch.zeros_like(place).scatter_add(1, edges.target, gone.long())
        hidden = torch.where(taken[:, :, None] > 0, (mixed + rest).to(hidden.dtype), hidden)
        return Decision(rows.visual & (into < 0), rows.hidden.scatter(1, _wide(place, hidden), hidden), into)

    def _most(self, rows: Rows) -> int:
        """No row has more visual tokens; known without asking the device."""
        if not rows.images:
            return rows.visual.shape[1]
        given = [0] * len(rows.visual)
        for image in rows.images:
            given[image.row] += len(image)
        most = max(given)
        return self.count_at(rows.stage - 1, most) if rows.stage else most


def _rounded_up(keep: Keep, present: int, stage: int, stages: int) -> int:
    """As `geometric`, but rounded up: the smallest count that is at least present · share ** ((stage + 1) / stages)."""
    down = geometric(keep, present, stage, stages)
    share = Fraction(int(keep), max(present, 1)) if isinstance(keep, Integral) else Fraction(str(float(keep)))
    return min(down + (down**stages < present**stages * share ** (stage + 1)), present)


def _name(layer: int) -> str:
    return f"layer{layer}"


def _wide(index: Tensor, like: Tensor) -> Tensor:
    """`index` [B, k] for `gather` on `like` [B, n, D]."""
    return index[:, :, None].expand(-1, -1, like.shape[2])
