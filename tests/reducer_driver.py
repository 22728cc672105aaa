"""A vision tower in plain torch that plays the seam: it shows patches to a reducer, and does what the reducer says."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import odd_values
import torch
from odd_values import rows_of
from torch import Tensor
from torch.nn.functional import layer_norm, linear

from vtc import ops
from vtc.method.patches import Patches, take
from vtc.method.reducer import Reducer
from vtc.method.reduction import Reduction
from vtc.model.parts import Parts
from vtc.ops.mixing import Mixing

Weights = tuple[Tensor, Tensor | None]


@dataclass
class Block:
    """A pre-norm transformer block; every weight is (weight, bias)."""

    norm1: Weights
    query: Weights
    key: Weights
    value: Weights
    out: Weights
    norm2: Weights
    fc1: Weights
    fc2: Weights
    heads: int
    activation: Callable[[Tensor], Tensor] = torch.nn.functional.gelu
    eps: float = 1e-6

    def project(self, hidden: Tensor, rotary: Tensor | None) -> list[Tensor]:
        x = layer_norm(hidden, hidden.shape[-1:], *self.norm1, self.eps)
        split = [
            linear(x, *w).unflatten(-1, (self.heads, -1)).transpose(1, 2) for w in (self.query, self.key, self.value)
        ]
        return split if rotary is None else [rotate(split[0], rotary), rotate(split[1], rotary), split[2]]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        logits = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        logits = logits if bias is None else logits + bias
        return linear((torch.softmax(logits, dim=-1) @ value).transpose(1, 2).flatten(2), *self.out)

    def mlp(self, hidden: Tensor) -> Tensor:
        x = layer_norm(hidden, hidden.shape[-1:], *self.norm2, self.eps)
        return linear(self.activation(linear(x, *self.fc1)), *self.fc2)


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def rotate(x: Tensor, angle: Tensor) -> Tensor:
    """Rotary embedding of [G, H, P, d] by [G, P, d/2], first half against second."""
    cos, sin = (torch.cat([f(angle)] * 2, dim=-1)[:, None] for f in (torch.cos, torch.sin))
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-right, left], dim=-1) * sin


def random_blocks(depth: int, dim: int, heads: int, seed: int = 0) -> list[Block]:
    generator = torch.Generator().manual_seed(seed)

    def weight(out: int, into: int) -> Weights:
        return torch.randn(out, into, generator=generator) / into**0.5, torch.randn(out, generator=generator) * 0.1

    def norm() -> Weights:
        return torch.ones(dim), torch.zeros(dim)

    return [
        Block(
            norm(), weight(dim, dim), weight(dim, dim), weight(dim, dim), weight(dim, dim), norm(),
            weight(2 * dim, dim), weight(dim, 2 * dim), heads,
        )
        for _ in range(depth)
    ]  # fmt: skip


def parts_of(depth: int, feature_layer: int = -1, has_cls: bool = True) -> Parts:
    blocks: Any = tuple(SimpleNamespace() for _ in range(depth))
    none: Any = None
    return Parts("tiny", none, none, (), blocks, has_cls, feature_layer)


@dataclass
class Run:
    """What a tower did.

    Attributes:
        outputs: output of each block [G, P, D].
        sizes: sizes of the units after each block [G, U].
        ids: LongTensor [G, U], original unit at whose place each unit stands after each block.
        source: Tensor [G, U, N], after each block: share of each original unit in each unit.
        units: how many there were after each block.
        calls: the patches that the reducer saw, and what it said.
        bias: what was added to the logits of each key in each block, or None.
    """

    outputs: list[Tensor] = field(default_factory=list)
    sizes: list[Tensor] = field(default_factory=list)
    ids: list[Tensor] = field(default_factory=list)
    source: list[Tensor] = field(default_factory=list)
    units: list[int] = field(default_factory=list)
    calls: list[tuple[Patches, Reduction | None]] = field(default_factory=list)
    bias: list[Tensor | None] = field(default_factory=list)


@dataclass
class State:
    """The units of the sequence, between two blocks."""

    hidden: Tensor
    sizes: Tensor
    ids: Tensor
    source: Tensor
    segments: Tensor | None
    rotary: Tensor | None
    memory: dict[str, Tensor]
    prefix: int
    cell: int
    merged: bool = False

    def units(self, rows: Tensor) -> Tensor:
        return rows[:, self.prefix :].unflatten(1, (-1, self.cell))

    def apply(self, reduction: Reduction) -> None:
        kept, mixing, k = reduction.kept, reduction.mixing, reduction.kept.shape[1]
        assert reduction.features is None

        def rows(values: Tensor | None) -> Tensor | None:
            return None if values is None else self.with_prefix(values, take(self.units(values), kept))

        units = self.units(self.hidden)
        if mixing is None:
            hidden, sizes, source = take(units, kept), take(self.sizes, kept), take(self.source, kept)
        else:
            new = ops.merge(units.float().flatten(2), mixing, k).to(units.dtype)
            hidden, source = new.unflatten(2, units.shape[2:]), ops.merge(self.source, mixing, k)
            counted = Mixing(mixing.source, mixing.target, (mixing.weight > 0).float())
            sizes = ops.merge(self.sizes[:, :, None], counted, k)[:, :, 0]
        self.hidden = self.with_prefix(self.hidden, hidden)
        self.sizes = sizes if reduction.sizes is None else reduction.sizes
        self.source, self.ids = source, take(self.ids, kept)
        self.segments, self.rotary = rows(self.segments), rows(self.rotary)
        for name, value in self.memory.items():
            self.memory[name] = take(value, kept)

    def with_prefix(self, rows: Tensor, units: Tensor) -> Tensor:
        return torch.cat([rows[:, : self.prefix], units.flatten(1, 2)], dim=1)


def run_tower(
    blocks: Sequence[Block],
    hidden: Tensor,
    method: Reducer,
    target: int,
    *,
    feature_layer: int = -1,
    prefix: int = 1,
    cell: int = 1,
    segments: Tensor | None = None,
    rotary: Tensor | None = None,
) -> Run:
    """Run `hidden` [G, P, D] through the blocks, with a reducer that is to leave `target` units."""
    images, start = len(hidden), (hidden.shape[1] - prefix) // cell
    at = method.blocks(parts_of(len(blocks), feature_layer, prefix > 0))
    everything = torch.eye(start).expand(images, -1, -1)
    ids = torch.arange(start).expand(images, -1)
    state = State(hidden, torch.ones(images, start), ids, everything, segments, rotary, {}, prefix, cell)
    run = Run()
    proportional = getattr(method, "proportional", False)

    def call(index: int, qkv: list[Tensor], rows: Tensor, bias: Tensor | None) -> Tensor:
        state.hidden = rows
        if index not in at:
            return rows
        patches = Patches(
            index, at.index(index), len(at), start, target, state.units(rows), *qkv, qkv[0].shape[-1] ** -0.5,
            state.sizes, prefix, bias, state.segments, state.memory, len(blocks),
        )  # fmt: skip
        reduction = method.reduce(patches)
        run.calls.append((patches, reduction))
        if reduction is not None:
            state.apply(reduction)
        return state.hidden

    for index, block in enumerate(blocks):
        bias = None
        if proportional and (state.sizes != 1).any():
            logs = state.sizes.log().repeat_interleave(cell, dim=1)
            bias = torch.cat([torch.zeros(images, prefix), logs], dim=1)
        run.bias.append(bias)
        qkv = block.project(state.hidden, state.rotary)
        wall = None if bias is None else bias[:, None, None]
        if state.segments is not None:
            apart = (state.segments[:, :, None] != state.segments[:, None, :])[:, None]
            wall = torch.zeros(apart.shape).masked_fill_(apart, -torch.inf) + (0 if wall is None else wall)
        rows = state.hidden + block.attend(*qkv, wall)
        if method.acts == "attention":
            rows = call(index, qkv, rows, bias)
        rows = rows + block.mlp(rows)
        if method.acts == "block":
            rows = call(index, qkv, rows, bias)
        state.hidden = rows
        run.outputs.append(rows)
        run.sizes.append(state.sizes)
        run.ids.append(state.ids)
        run.source.append(state.source)
        run.units.append(state.ids.shape[1])
    return run


#: Not "half": what is decided in half precision has a test of its own.
KINDS = tuple(kind for kind in odd_values.KINDS if kind != "half")


def patches_of(
    units: int, *, images: int = 2, cell: int = 1, prefix: int = 1, kind: str = "random", seed: int = 0, **fields: Any
) -> Patches:
    """Patches with heads and hidden states that have nothing to do with each other."""
    rows, heads, dim = prefix + units * cell, 3, 8
    query, key, value = (
        rows_of(kind, images, rows, heads * dim, seed + i).unflatten(-1, (heads, dim)).transpose(1, 2) for i in range(3)
    )
    hidden = rows_of(kind, images, units * cell, 12, seed + 3).unflatten(1, (units, cell))
    sizes = 1.0 + torch.arange(units).expand(images, -1) % 3
    given_fields = {"block": 5, "stage": 0, "stages": 1, "start": units, "target": max(units // 2, 1), **fields}
    return Patches(
        hidden=hidden, query=query, key=key, value=value, scaling=dim**-0.5, sizes=sizes, prefix=prefix, **given_fields
    )


def windows(images: int, prefix: int, units: int, cell: int) -> Tensor:
    own = (torch.arange(units) // 3).repeat_interleave(cell)
    return torch.cat([torch.zeros(prefix, dtype=torch.long), own]).expand(images, -1)
