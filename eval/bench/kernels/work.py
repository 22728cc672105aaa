"""What `vtc bench kernels` runs: each operation of `vtc.ops` at the sizes of real models, and what it is held up to."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vtc import ops
from vtc.eval.bench.kernels import loops as bench_loops
from vtc.ops.mixing import Mixing


@dataclass(frozen=True)
class Case:
    """One operation at one size, its input ready.

    Attributes:
        op: name in `vtc.ops`; shape: words for the size.
        ours: through `vtc.ops`.
        operands: arguments of the reference, by which a kernel is looked up.
        composition: the same in plain torch.
        bytes, flops: the least that must be moved, and computed.
        loop: as released; None where nothing was released that works otherwise than `composition`.
        picking: the loop's steps alone, without the matrix that they read.
        steps: each of which needs the one before.
    """

    op: str
    shape: str
    ours: Callable[[], Any]
    operands: tuple[Any, ...]
    composition: Callable[[], Any]
    bytes: int
    flops: int
    loop: Callable[[], Any] | None = None
    picking: Callable[[], Any] | None = None
    steps: int = 1


class Draw:
    """Random tensors, the same in every run.

    Args:
        device: where they are.
        dtype: of those with a point.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype):
        self.device, self.dtype = device, dtype
        self._random = torch.Generator(device).manual_seed(0)

    def normal(self, *shape: int) -> Tensor:
        """From the normal distribution."""
        return torch.randn(shape, generator=self._random, device=self.device, dtype=self.dtype)

    def subset(self, rows: int, tokens: int, k: int) -> Tensor:
        """LongTensor [rows, k], ascending, of `tokens`."""
        order = torch.rand(rows, tokens, generator=self._random, device=self.device).argsort(dim=-1)
        return order[:, :k].sort(dim=-1).values


def compact(draw: Draw, batch: int, tokens: int, dim: int, keep: float) -> Case:
    """What a prune takes along: hidden states, rotary cos and sin that rows share, positions and mask."""
    index = draw.subset(batch, tokens, round(keep * tokens))
    hidden, angles = draw.normal(batch, tokens, dim), [draw.normal(1, tokens, 128) for _ in range(2)]
    positions = torch.arange(tokens, device=draw.device).repeat(batch, 1)
    tensors = [hidden, *angles, positions, torch.ones_like(positions, dtype=torch.bool)]
    moved = _bytes(index)
    for tensor in tensors:
        row = _bytes(tensor[0, 0])
        moved += row * (index.numel() + min(index.numel(), len(tensor) * tokens))
    return Case(
        "compact",
        f"[{batch}, {tokens}, {dim}] keep {keep:g}",
        lambda: ops.compact(tensors, index),
        (tensors, index, None),
        lambda: bench_loops.gathered(tensors, index),
        moved,
        0,
        loop=(lambda: bench_loops.row_by_row(tensors, index)) if batch > 1 else None,
    )


def max_min(draw: Draw, tokens: int, k: int, dim: int, seeded: bool = False, rank: int | None = None) -> Case:
    """A greedy selection; with a `rank`, of tokens that mostly lie in so many directions, as those of a picture do."""
    features = draw.normal(1, tokens, dim)
    if rank is not None:
        weights = draw.normal(tokens, rank) * torch.arange(1, rank + 1, device=draw.device).pow(-0.5).to(draw.dtype)
        features = weights @ draw.normal(rank, dim) + 0.25 * features
    seed = torch.zeros(1, dtype=torch.long, device=draw.device) if seeded else None
    image = features[0]
    loop = picking = None
    if not seeded:
        distances = bench_loops.released_distances(image)
        loop = lambda: bench_loops.released_picks(bench_loops.released_distances(image), k)  # noqa: E731
        picking = lambda: bench_loops.released_picks(distances, k)  # noqa: E731
    kind = "given the first" if seeded else "random" if rank is None else f"rank {rank}"
    return Case(
        "max_min",
        f"[{tokens}, {dim}] k {k} {kind}",
        lambda: ops.max_min(features, k, seed),
        (features, k, seed, "max-min", None),
        lambda: bench_loops.running_minimum(image, k, seed),
        _bytes(features) + 8 * k,
        2 * k * tokens * dim,  # each pick against all tokens; how the first is found comes on top
        loop,
        picking,
        steps=k,
    )


def attention_received(draw: Draw, kind: str, images: int, heads: tuple[int, int], tokens: int, dim: int) -> Case:
    """What keys receive: "whole" images, two images "packed" into one row, or "causal"."""
    query, key = draw.normal(images, heads[0], tokens, dim), draw.normal(images, heads[1], tokens, dim)
    place = torch.arange(tokens, device=draw.device)
    mask, pairs, share = None, tokens**2, torch.full((tokens, 1), 1 / tokens, device=draw.device)
    begin = end = cu_seqlens = None
    if kind == "packed":
        cut = tokens // 3
        cu_seqlens = torch.tensor([0, cut, tokens], device=draw.device)
        mask, pairs = (place < cut) == (place < cut)[:, None], cut**2 + (tokens - cut) ** 2
        share = 1 / mask.sum(dim=-1, keepdim=True)
    elif kind == "causal":
        begin, end = torch.zeros(images, tokens, dtype=torch.long, device=draw.device), (place + 1).repeat(images, 1)
        mask, pairs = place <= place[:, None], tokens * (tokens + 1) // 2
    scaling = dim**-0.5
    given = ops.AttentionArguments(query, key, scaling, begin=begin, end=end)
    return Case(
        "attention_received",
        f"{[images, *heads, tokens, dim]} {kind}",
        lambda: ops.attention_received(given, cu_seqlens=cu_seqlens),
        (given, None),
        lambda: (bench_loops.probabilities(query, key, scaling, mask).mean(dim=1) * share).sum(dim=1),
        _bytes(query) + _bytes(key) + 4 * images * tokens,
        2 * images * heads[0] * pairs * dim,
    )


def attention_rows(draw: Draw, heads: tuple[int, int], tokens: int, dim: int) -> Case:
    """What the last query attends to."""
    query, key = draw.normal(1, heads[0], 1, dim), draw.normal(1, heads[1], tokens, dim)
    scaling = dim**-0.5
    given = ops.AttentionArguments(query, key, scaling)
    return Case(
        "attention_rows",
        f"{[1, *heads, tokens, dim]} last query",
        lambda: ops.attention_rows(given),
        (given,),
        lambda: bench_loops.probabilities(query, key, scaling, None),
        _bytes(query) + _bytes(key) + 4 * heads[0] * tokens,
        2 * heads[0] * tokens * dim,
    )


def merge(draw: Draw, tokens: int, k: int, dim: int) -> Case:
    """Every token goes into one of k averages."""
    x = draw.normal(1, tokens, dim)
    source = torch.arange(tokens, device=draw.device)[None]
    target = source % k
    weight = 1 / torch.bincount(target[0], minlength=k)[target].float()
    return Case(
        "merge",
        f"[{tokens}, {dim}] into {k}",
        lambda: ops.merge(x, Mixing(source, target, weight), k),
        (x, source, target, weight, k),
        lambda: bench_loops.densely_merged(x, source, target, weight, k),
        _bytes(x) + k * dim * x.element_size() + _bytes(source) + _bytes(target) + _bytes(weight),
        2 * tokens * dim,
    )


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


Plan = Callable[[Draw], Case]

_ON_BOTH: dict[str, list[Plan]] = {
    "compact": [
        partial(compact, batch=b, tokens=2880, dim=4096, keep=keep) for b in (1, 8) for keep in (0.1, 0.25)
    ],
    "max_min": [
        partial(max_min, tokens=576, k=64, dim=4096),
        partial(max_min, tokens=1024, k=128, dim=4096),
        partial(max_min, tokens=2880, k=320, dim=1024),
        partial(max_min, tokens=2880, k=320, dim=4096),
        partial(max_min, tokens=2880, k=320, dim=1024, rank=64),
        partial(max_min, tokens=2880, k=320, dim=4096, rank=64),
        partial(max_min, tokens=2880, k=320, dim=4096, seeded=True),
    ],
    "attention_received": [
        partial(attention_received, kind="whole", images=5, heads=(16, 16), tokens=577, dim=64),
    ],
    "attention_rows": [partial(attention_rows, heads=(32, 8), tokens=2880, dim=128)],
    "merge": [partial(merge, tokens=2880, k=320, dim=4096)],
}  # fmt: skip
_ON_CPU: dict[str, list[Plan]] = {
    "attention_received": [
        partial(attention_received, kind="packed", images=1, heads=(16, 16), tokens=1440, dim=80),
        partial(attention_received, kind="causal", images=1, heads=(32, 8), tokens=1440, dim=128),
    ],
}
_ON_CUDA: dict[str, list[Plan]] = {
    "max_min": [
        *(partial(max_min, tokens=576, k=k, dim=4096) for k in (128, 320)),
        *(partial(max_min, tokens=1024, k=k, dim=4096) for k in (64, 320, 640)),
        *(partial(max_min, tokens=2880, k=k, dim=4096) for k in (64, 128, 640)),
    ],
    "attention_received": [
        partial(attention_received, kind="packed", images=1, heads=(16, 16), tokens=2880, dim=80),
        partial(attention_received, kind="causal", images=1, heads=(32, 8), tokens=2880, dim=128),
    ],
}
OPS = tuple(_ON_BOTH)


def plans(device: torch.device) -> dict[str, list[Plan]]:
    """The cases of each operation; a CPU is spared those of which a single run takes seconds."""
    more = _ON_CUDA if device.type == "cuda" else _ON_CPU
    return {op: [*_ON_BOTH[op], *more.get(op, [])] for op in OPS}
