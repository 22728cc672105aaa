"""What `vtc bench kernels` runs: each operation of `vtc.ops` at the sizes of real models, and what it is held up to."""

from collections.abc import Callable
from functools import partial

import torch

from vtc import ops
from vtc.eval.bench.kernels import loops as bench_loops
from vtc.eval.bench.kernels.case import Case, Draw, bytes_of
from vtc.eval.bench.kernels.choosing import coverage, density_peaks, dpp_map, facility_location
from vtc.ops.mixing import Mixing


def compact(draw: Draw, batch: int, tokens: int, dim: int, keep: float) -> Case:
    """What a prune takes along: hidden states, rotary cos and sin that rows share, positions and mask."""
    index = draw.subset(batch, tokens, round(keep * tokens))
    hidden, angles = draw.normal(batch, tokens, dim), [draw.normal(1, tokens, 128) for _ in range(2)]
    positions = torch.arange(tokens, device=draw.device).repeat(batch, 1)
    tensors = [hidden, *angles, positions, torch.ones_like(positions, dtype=torch.bool)]
    moved = bytes_of(index)
    for tensor in tensors:
        row = bytes_of(tensor[0, 0])
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
    features = draw.tokens(tokens, dim, rank)
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
        bytes_of(features) + 8 * k,
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
        bytes_of(query) + bytes_of(key) + 4 * images * tokens,
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
        bytes_of(query) + bytes_of(key) + 4 * heads[0] * tokens,
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
        bytes_of(x) + k * dim * x.element_size() + bytes_of(source) + bytes_of(target) + bytes_of(weight),
        2 * tokens * dim,
    )


Plan = Callable[[Draw], Case]

#: Tokens and picks.
_SIZES = ((1024, 128), (2880, 320))

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
    "facility_location": [partial(facility_location, tokens=n, k=k, dim=256, rank=64) for n, k in _SIZES],
    "coverage": [partial(coverage, tokens=n, k=k, dim=1024, rank=64) for n, k in _SIZES],
    "dpp_map": [partial(dpp_map, tokens=2880, k=k, dim=dim, rank=64) for k, dim in ((320, 1024), (64, 4096))],
    "density_peaks": [
        partial(density_peaks, groups=1, tokens=1440, dim=256, count=144, neighbours=7),
        partial(density_peaks, groups=16, tokens=196, dim=1024, count=20, neighbours=7),
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
