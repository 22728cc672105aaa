"""Random arguments for the operations of `vtc.ops`, as the functions of `vtc.ops.reference` take them.

A case is a name and a function of `Draw`. `CASES` are small, for an emulator too; `LARGE` ones are for a GPU.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from kernel_choosing import large_rows, small_rows
from kernel_draw import LAYOUTS, Draw, laid_out
from torch import Tensor

from vtc.ops import AttentionArguments

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
INDICES = (torch.int64, torch.int32)
TOKENS = (1, 2, 3, 31, 32, 33, 64, 65, 127, 576, 1000)
HEAD_SIZES = (8, 16, 40, 64, 72, 80, 96, 128, 256)
HEADS = ((1, 1), (4, 1), (7, 1), (14, 2), (4, 4))


class Case(NamedTuple):
    """Arguments for one operation: `build` makes the tuple."""

    op: str
    name: str
    build: Callable[[Draw], tuple[Any, ...]]


# ---------------------------------------------------------------- compact


def _compact(length: int, count: int, layout: str, index: torch.dtype, ragged: bool) -> Callable[[Draw], tuple]:
    def build(draw: Draw, batch: int = 3) -> tuple:
        tensors = [
            draw.chance(0.5, batch, length),
            draw.integers(-9, 9, batch, length),
            laid_out(draw.integers(-9, 9, batch, length, 3, dtype=torch.int32), layout),
            laid_out(draw.chance(0.5, batch, length, 3), layout),
            *(draw.normal(batch, length, width, dtype=torch.float16, layout=layout) for width in (1, 3, 8)),
            draw.normal(batch, length, 2, layout=layout),
            draw.normal(batch, length, 2, 5, dtype=torch.bfloat16, layout=layout),
            draw.normal(1, length, 4, dtype=torch.float64),
            laid_out(_behind(draw.normal(batch, length + 5, 6), length), layout),
        ]
        valid = draw.chance(0.7, batch, count) if ragged else None
        return tensors, draw.integers(0, length, batch, count, dtype=index), valid

    return build


def _behind(tensor: Tensor, length: int) -> Tensor:
    """With NaN in rows that no index names."""
    tensor[:, length:] = torch.nan
    return tensor


def _compact_cases() -> list[Case]:
    every = zip(TOKENS, itertools.cycle(LAYOUTS), itertools.cycle(INDICES), itertools.cycle((True, False)))
    cases = [Case("compact", f"{n}", _compact(n, n // 2 + 1, *kinds)) for n, *kinds in every]
    cases += [
        Case("compact", f"{layout}-{str(index)[6:]}", _compact(9, 4, layout, index, True))
        for layout, index in itertools.product(LAYOUTS, INDICES)
    ]
    return [
        *cases,
        Case("compact", "smoke", _compact(33, 20, "offset", torch.int64, True)),
        Case("compact", "no-rows", _compact(5, 0, "dense", torch.int64, True)),
        Case("compact", "37-tensors", lambda draw: (_many(draw), draw.integers(0, 7, 2, 3), None)),
        Case("compact", "8192-bytes", lambda draw: ([draw.normal(2, 40, 2048)], draw.integers(0, 40, 2, 11), None)),
        Case("compact", "index-sparse", _with_sparse_index),
    ]


def _many(draw: Draw) -> list[Tensor]:
    return [draw.normal(2, 7, i % 5 + 1) for i in range(37)]


def _with_sparse_index(draw: Draw) -> tuple:
    index, valid = draw.integers(0, 12, 3, 8), draw.chance(0.5, 3, 8)
    return [draw.normal(3, 12, 4)], laid_out(index, "sparse"), laid_out(valid, "transposed")


# ---------------------------------------------------------------- max_min


def _max_min(
    tokens: int,
    k: int,
    *,
    dim: int = 24,
    images: int = 2,
    rule: str = "max-min",
    dtype: torch.dtype = torch.float32,
    index: torch.dtype = torch.int64,
    seeded: bool = False,
    ragged: bool = False,
    layout: str = "dense",
    spoil: Callable[[Tensor], None] = lambda features: None,
) -> Callable[[Draw], tuple]:
    def build(draw: Draw) -> tuple:
        features = draw.normal(images, tokens, dim, dtype=dtype)
        spoil(features)
        counts = draw.integers(1, tokens + 1, images, dtype=index) if ragged else None
        seed = (
            draw.integers(0, 1 << 30, images, dtype=index) % (tokens if counts is None else counts) if seeded else None
        )
        return laid_out(features, layout), k, seed if seeded else None, rule, counts

    return build


def _lose(features: Tensor) -> None:
    """Rows without a direction."""
    features[0, ::3], features[1, 1::4, 0], features[1, 2::4, -1] = 0.0, torch.nan, torch.inf


def _lose_all(features: Tensor) -> None:
    features[0], features[1, :, 3] = 0.0, -torch.inf


def _repeat(features: Tensor) -> None:
    features[:, 1::2] = features[:, : features.shape[1] // 2]


def _max_min_cases() -> list[Case]:
    settings: dict[str, dict[str, Any]] = {
        "smoke": {"ragged": True},
        "lost": {"spoil": _lose},
        "lost-seeded": {"spoil": _lose, "seeded": True, "dtype": torch.float16},
        "all-lost": {"spoil": _lose_all},
        "repeated": {"spoil": _repeat},
        "ragged-seeded": {"ragged": True, "seeded": True, "index": torch.int32},
    }
    settings |= {layout: {"layout": layout, "dtype": dtype} for layout, dtype in zip(LAYOUTS[1:], FLOATS * 2)}
    settings |= {f"{dim}-wide": {"dim": dim, "dtype": torch.bfloat16, "images": 1} for dim in (1, 7, 200)}
    sizes = zip(TOKENS, itertools.cycle(FLOATS), itertools.cycle((False, True)))
    cases = [
        Case("max_min", f"{n}-{rule}", _max_min(n, min(n, 20), rule=rule, dtype=dtype, seeded=seeded))
        for (n, dtype, seeded), rule in zip(sizes, itertools.cycle(("max-min", "max-sum")))
    ]
    return cases + [
        Case("max_min", f"{name}-{rule}", _max_min(37, k, rule=rule, **setting))
        for (name, setting), (rule, k) in itertools.product(settings.items(), (("max-min", 37), ("max-sum", 12)))
    ]


# ---------------------------------------------------------------- attention

_SEEN = ("none", "bool", "bool-full", "float", "causal", "window", "masked-window", "empty")


def seen_by(draw: Draw, kind: str, batch: int, heads: int, queries: int, keys: int) -> tuple[Tensor | None, ...]:
    """The arguments mask, begin and end."""
    place = torch.arange(queries, device=draw.device).expand(batch, queries) + keys - queries
    if kind == "bool":
        return draw.chance(0.7, batch, 1, 1, keys), None, None
    if kind == "bool-full":
        return draw.chance(0.5, batch, heads, queries, keys), None, None
    if kind == "float":  # added; some infinite
        mask = draw.normal(1, 1, queries, keys).masked_fill(draw.chance(0.3, 1, 1, queries, keys), -torch.inf)
        return mask.to(torch.bfloat16), None, None
    if kind == "causal":
        return None, None, place + 1
    if kind.endswith("window"):
        mask = draw.chance(0.9, batch, 1, queries, keys) if kind == "masked-window" else None
        return mask, (place - 40).int(), (place + 3).int()
    if kind == "empty":  # some queries see nothing
        begin = draw.integers(0, keys + 1, batch, queries)
        return None, begin, begin + draw.integers(0, 2, batch, queries) * draw.integers(0, keys + 1, batch, queries)
    return None, None, None


def _attention(
    op: str,
    queries: int,
    keys: int,
    *,
    heads: tuple[int, int] = (4, 2),
    dim: int = 16,
    batch: int = 2,
    dtype: torch.dtype = torch.float32,
    kind: str = "none",
    softcap: float | None = None,
    layout: str = "dense",
    scaling: float | None = None,
    weighted: bool = False,
) -> Callable[[Draw], tuple]:
    def build(draw: Draw) -> tuple:
        query = draw.normal(batch, heads[0], queries, dim, dtype=dtype, layout=layout)
        key = draw.normal(batch, heads[1], keys, dim, dtype=dtype, layout=layout)
        seen = seen_by(draw, kind, batch, heads[0], queries, keys)
        given = AttentionArguments(query, key, dim**-0.5 if scaling is None else scaling, *seen, softcap)
        if op == "attention_rows":
            return (given,)
        return given, draw.normal(batch, queries) * draw.chance(0.8, batch, queries) if weighted else None

    return build


def _attention_cases(op: str) -> list[Case]:
    received = op == "attention_received"
    settings: dict[str, tuple[int, int, dict[str, Any]]] = {}
    for n, dtype, kind in zip(TOKENS, itertools.cycle(FLOATS), itertools.cycle(_SEEN)):
        sizes: dict[str, Any] = {"batch": 1, "heads": (1, 1)} if n > 200 else {}  # the emulator takes its time
        settings[f"{n}-{kind}"] = (n if received else min(n, 3), n, {"dtype": dtype, "kind": kind, **sizes})
    for dim, dtype in itertools.product(HEAD_SIZES, FLOATS):
        setting = {"dim": dim, "dtype": dtype, "batch": 1, "heads": (2, 1)}
        settings[f"d{dim}-{str(dtype)[6:]}"] = 70 if received else 2, 70, setting
    for kind, dtype in itertools.product(_SEEN, FLOATS[:2]):
        settings[f"{kind}-{str(dtype)[6:]}"] = (
            67 if received else 9,
            75,
            {"kind": kind, "dtype": dtype, "weighted": True},
        )
    for heads in HEADS:
        settings[f"{heads[0]}-heads-of-{heads[1]}"] = 5, 40, {"heads": heads, "dtype": torch.bfloat16}
    for layout, dtype in zip(LAYOUTS[1:], (torch.bfloat16, *FLOATS)):
        settings[layout] = 35, 66, {"layout": layout, "dtype": dtype, "dim": 40}
    settings |= {
        "smoke": (5, 70, {"kind": "masked-window", "dtype": torch.float16}),
        "smoke-bfloat16": (70, 70, {"kind": "causal", "dtype": torch.bfloat16, "heads": (2, 1)}),
        "softcap": (9, 50, {"softcap": 3.0, "scaling": 1.0, "kind": "bool", "weighted": True}),
        "sharp": (9, 50, {"scaling": 8.0, "kind": "causal", "dtype": torch.float16}),  # logits of about ±100
        "odd-head-size": (9, 50, {"dim": 13, "dtype": torch.float16}),
        "no-queries": (0, 7, {}),
    }
    return [Case(op, name, _attention(op, *sizes, **setting)) for name, (*sizes, setting) in settings.items()]


# ---------------------------------------------------------------- merge


def _merge(
    tokens: int,
    k: int,
    *,
    entries: int | None = None,
    dim: int = 24,
    dtype: torch.dtype = torch.float32,
    index: torch.dtype = torch.int64,
    weight: torch.dtype = torch.float32,
    layout: str = "dense",
    targets: int | None = None,
) -> Callable[[Draw], tuple]:
    """Of `k` new tokens the first `targets` get something."""

    def build(draw: Draw) -> tuple:
        count = tokens if entries is None else entries
        target = draw.integers(0, k if targets is None else targets, 2, count, dtype=index)
        source = draw.integers(0, tokens, 2, count, dtype=index)
        x = draw.normal(2, tokens, dim, dtype=dtype, layout=layout)
        return x, source, target, draw.normal(2, count, dtype=weight), k

    return build


def _merge_cases() -> list[Case]:
    settings: dict[str, tuple[int, int, dict[str, Any]]] = {
        f"{n}": (n, n // 3 + 1, {"dtype": dtype, "index": index, "weight": weight})
        for n, dtype, index, weight in zip(TOKENS, FLOATS * 4, INDICES * 6, (torch.float32, *FLOATS) * 3)
    }
    settings |= {layout: (33, 9, {"layout": layout, "dtype": dtype}) for layout, dtype in zip(LAYOUTS, FLOATS * 2)}
    settings |= {f"{dim}-wide": (19, 5, {"dim": dim, "dtype": torch.bfloat16}) for dim in (1, 7, 300, 2100)}
    settings |= {
        "smoke": (70, 11, {"entries": 300, "dtype": torch.float16}),
        "one-target": (300, 1, {"dtype": torch.bfloat16}),
        "empty-rows": (20, 50, {"targets": 7}),
        "many-entries": (9, 4, {"entries": 700}),
        "no-entries": (9, 4, {"entries": 0}),
    }
    cases = [Case("merge", name, _merge(*sizes, **setting)) for name, (*sizes, setting) in settings.items()]
    return [*cases, Case("merge", "two-kinds-of-integers", _with_short_targets)]


def _with_short_targets(draw: Draw) -> tuple:
    x, source, target, weight, k = _merge(12, 5)(draw)
    return x, source, target.int(), weight, k


CASES = [
    *_compact_cases(),
    *_max_min_cases(),
    *_attention_cases("attention_rows"),
    *_attention_cases("attention_received"),
    *_merge_cases(),
    *(Case(*row) for row in small_rows()),
]


def _large(op: str, name: str, queries: int, keys: int, heads: tuple[int, int], dim: int, kind: str = "none") -> Case:
    setting = {"heads": heads, "dim": dim, "kind": kind, "batch": 1, "dtype": torch.bfloat16}
    return Case(op, name, _attention(op, queries, keys, **setting))


#: The sizes of real models, and 65,536 tokens.
LARGE = [
    Case("compact", "llava-next", lambda draw: ([draw.normal(8, 2880, 4096)], draw.integers(0, 2880, 8, 320), None)),
    Case("compact", "65536", _compact(65536, 8192, "sparse", torch.int32, True)),
    Case("max_min", "llava-next", _max_min(2880, 320, dim=4096, dtype=torch.bfloat16)),
    Case("max_min", "llava-next-sum", _max_min(2880, 320, dim=1024, rule="max-sum", ragged=True, seeded=True)),
    Case("max_min", "8192", _max_min(8192, 64, dim=256, ragged=True)),
    Case("max_min", "8193", _max_min(8193, 64, dim=256, ragged=True, dtype=torch.float16)),
    Case("max_min", "65536", _max_min(65536, 128, dim=1024, images=1, dtype=torch.bfloat16)),
    _large("attention_rows", "decoder", 1, 2880, (32, 8), 128),
    _large("attention_rows", "65536", 2, 65536, (28, 4), 128, "causal"),
    _large("attention_received", "tower", 577, 577, (16, 16), 64),
    _large("attention_received", "decoder", 2880, 2880, (32, 8), 128, "causal"),
    _large("attention_received", "65536", 65536, 65536, (2, 1), 80, "causal"),
    Case("merge", "llava-next", _merge(2880, 320, dim=4096, dtype=torch.bfloat16)),
    Case("merge", "65536", _merge(65536, 4096, dim=512, dtype=torch.float16, index=torch.int32)),
    *(Case(*row) for row in large_rows()),
]
