"""Random arguments for operations that cover, span or cluster: rows of operation, name, and a function of `Draw`."""

import itertools
from collections.abc import Callable
from typing import Any

import torch
from kernel_draw import LAYOUTS, Draw, laid_out
from torch import Tensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
TOKENS = (1, 2, 3, 31, 33, 64, 127, 576)

Row = tuple[str, str, Callable[[Draw], tuple]]


def _lose(features: Tensor) -> None:
    """Rows without a direction."""
    features[0, ::3], features[1, 1::4, 0], features[1, 2::4, -1] = 0.0, torch.nan, torch.inf


def _repeat(features: Tensor) -> None:
    features[:, 1::2] = features[:, : features.shape[1] // 2]


def _cover(
    demands: int,
    tokens: int,
    k: int,
    *,
    dtype: torch.dtype = torch.float32,
    combine: str = "product",
    weighted: bool = True,
    layout: str = "dense",
    tolerance: float = 0.0,
    spoil: Callable[[Tensor], None] = lambda values: None,
) -> Callable[[Draw], tuple]:
    def build(draw: Draw) -> tuple:
        values = draw.normal(2, demands, tokens, dtype=dtype)
        spoil(values)
        weight = draw.normal(2, tokens).abs() * draw.chance(0.9, 2, tokens) if weighted else None
        return laid_out(values, layout), k, weight, combine, tolerance

    return build


def _clear(values: Tensor) -> None:
    values.abs_().neg_()


def cover_rows() -> list[Row]:
    settings: dict[str, tuple[int, int, int, dict[str, Any]]] = {
        f"{n}-{kind}": (n + 5, n, min(n, 12), {"dtype": dtype, "combine": kind, "weighted": weighted})
        for n, dtype, kind, weighted in zip(TOKENS, FLOATS * 3, ("product", "sum", "sum") * 3, (True, False) * 4)
    }
    settings |= {layout: (29, 37, 20, {"layout": layout, "dtype": dtype}) for layout, dtype in zip(LAYOUTS, FLOATS * 2)}
    settings |= {
        "smoke": (37, 41, 20, {"dtype": torch.bfloat16}),
        "smoke-float16": (300, 24, 24, {"dtype": torch.float16, "combine": "sum"}),
        "one-demand": (1, 50, 50, {}),
        "all-covered": (9, 40, 40, {"tolerance": 0.5}),
        "repeated": (30, 40, 40, {"spoil": lambda values: _repeat(values.mT)}),
        "negative": (30, 40, 40, {"spoil": _clear}),
        "lost": (30, 40, 25, {"spoil": lambda values: _lose(values), "combine": "sum"}),
    }
    return [("facility_location", name, _cover(*sizes, **setting)) for name, (*sizes, setting) in settings.items()]


def _features(
    tokens: int,
    k: int,
    *rest: Any,
    dim: int = 24,
    dtype: torch.dtype = torch.float32,
    weighted: bool = True,
    layout: str = "dense",
    images: int = 2,
    spoil: Callable[[Tensor], None] = lambda features: None,
) -> Callable[[Draw], tuple]:
    """Arguments of `coverage` and `dpp_map`."""

    def build(draw: Draw) -> tuple:
        features = draw.normal(images, tokens, dim, dtype=dtype)
        spoil(features)
        weight = draw.normal(images, tokens).abs() * draw.chance(0.9, images, tokens) if weighted else None
        return laid_out(features, layout), k, weight, *rest

    return build


def _feature_rows(op: str, rests: tuple[Any, ...]) -> list[Row]:
    settings: dict[str, tuple[int, int, dict[str, Any]]] = {
        f"{n}": (n, min(n, 12), {"dtype": dtype, "weighted": weighted})
        for n, dtype, weighted in zip(TOKENS, FLOATS * 3, (True, False) * 4)
    }
    settings |= {layout: (37, 20, {"layout": layout, "dtype": dtype}) for layout, dtype in zip(LAYOUTS, FLOATS * 2)}
    settings |= {f"{dim}-wide": (33, 20, {"dim": dim, "dtype": torch.bfloat16}) for dim in (1, 7, 200)}
    settings |= {
        "smoke": (37, 20, {}),
        "smoke-bfloat16": (41, 30, {"dtype": torch.bfloat16, "dim": 64}),
        "lost": (37, 37, {"spoil": _lose}),
        "repeated": (37, 37, {"spoil": _repeat, "dtype": torch.float16}),
        "more-than-rank": (40, 40, {"dim": 6}),
    }
    pairs = zip(settings.items(), itertools.cycle(rests))
    return [(op, name, _features(*sizes, rest, **setting)) for (name, (*sizes, setting)), rest in pairs]


def _weighted(
    tokens: int,
    k: int,
    *,
    dim: int = 24,
    dtype: torch.dtype = torch.float32,
    index: torch.dtype = torch.int64,
    weighted: bool = True,
    with_bonus: bool = True,
    layout: str = "dense",
    images: int = 2,
    spoil: Callable[[Tensor], None] = lambda features: None,
) -> Callable[[Draw], tuple]:
    def build(draw: Draw) -> tuple:
        features = draw.normal(images, tokens, dim, dtype=dtype)
        spoil(features)
        weight = draw.normal(images, tokens).abs() * draw.chance(0.8, images, tokens) if weighted else None
        bonus = draw.normal(images, tokens) if with_bonus else None
        return laid_out(features, layout), k, draw.integers(0, tokens, images, dtype=index), weight, bonus

    return build


def weighted_rows() -> list[Row]:
    settings: dict[str, tuple[int, int, dict[str, Any]]] = {
        f"{n}": (n, min(n, 20), {"dtype": dtype, "weighted": weighted, "with_bonus": not weighted})
        for n, dtype, weighted in zip(TOKENS, FLOATS * 3, (True, False) * 4)
    }
    settings |= {layout: (37, 20, {"layout": layout, "dtype": dtype}) for layout, dtype in zip(LAYOUTS, FLOATS * 2)}
    settings |= {
        "smoke": (37, 37, {"index": torch.int32}),
        "neither": (33, 33, {"weighted": False, "with_bonus": False}),
        "lost": (37, 37, {"spoil": _lose}),
        "repeated": (37, 37, {"spoil": _repeat, "dtype": torch.float16}),
        "two-groups": (4500, 6, {"dim": 4, "images": 1}),
    }
    return [("weighted_max_min", name, _weighted(*sizes, **setting)) for name, (*sizes, setting) in settings.items()]


def _peaks(
    tokens: int,
    most: int,
    *,
    dim: int = 12,
    groups: int = 2,
    dtype: torch.dtype = torch.float32,
    own: bool = True,
    ragged: bool = False,
    ranked: bool = False,
    layout: str = "dense",
    spoil: Callable[[Tensor], None] = lambda x: None,
) -> Callable[[Draw], tuple]:
    def build(draw: Draw) -> tuple:
        x = draw.normal(groups, tokens, dim, dtype=dtype)
        spoil(x)
        valid = draw.chance(0.8, groups, tokens) if ragged else None
        there = torch.full((groups,), tokens, device=x.device) if valid is None else valid.sum(dim=1)
        count = draw.integers(1, most + 1, groups).minimum(there)
        neighbours = draw.integers(1, most + 1, groups) if own else None
        return laid_out(x, layout), count, most, neighbours, valid, ranked

    return build


def peak_rows() -> list[Row]:
    settings: dict[str, tuple[int, int, dict[str, Any]]] = {
        f"{n}-tokens": (n, min(n, 9), {"dtype": dtype, "own": own, "ragged": ragged})
        for n, dtype, own, ragged in zip(TOKENS[:-1], FLOATS * 3, (True, False) * 4, (False, True, True) * 3)
    }
    settings |= {layout: (37, 6, {"layout": layout, "dtype": dtype}) for layout, dtype in zip(LAYOUTS, FLOATS * 2)}
    settings |= {f"{dim}-wide": (33, 5, {"dim": dim, "dtype": torch.bfloat16}) for dim in (1, 7, 200)}
    settings |= {
        "smoke": (70, 8, {}),
        "smoke-ragged": (70, 8, {"ragged": True, "dtype": torch.bfloat16}),
        "repeated": (70, 20, {"spoil": _repeat}),
        "ranked": (70, 20, {"spoil": _repeat, "ranked": True}),
        "lost": (40, 8, {"spoil": _lose, "ragged": True}),
        "260-tokens": (260, 100, {"groups": 1}),
    }
    return [("density_peaks", name, _peaks(*sizes, **setting)) for name, (*sizes, setting) in settings.items()]


def small_rows() -> list[Row]:
    """For an emulator too."""
    return [
        *cover_rows(),
        *weighted_rows(),
        *_feature_rows("coverage", ("product", "sum")),
        *_feature_rows("dpp_map", (1e-6,)),
        *peak_rows(),
    ]


def large_rows() -> list[Row]:
    """For a GPU: the sizes of real models."""
    half = {"dtype": torch.bfloat16}
    return [
        ("facility_location", "llava-next", _cover(2880, 2880, 320)),
        ("facility_location", "few-demands", _cover(77, 20000, 300, dtype=torch.float16, combine="sum")),
        ("weighted_max_min", "llava-next", _weighted(2880, 320, dim=4096, **half)),
        ("coverage", "llava-next", _features(2880, 320, "product", dim=1024, **half)),
        ("coverage", "12000", _features(12000, 64, "sum", dim=256, images=1)),
        ("dpp_map", "llava-next", _features(2880, 320, 1e-6, dim=4096, **half)),
        ("density_peaks", "video", _peaks(2880, 288, dim=1024, groups=4, dtype=torch.bfloat16)),
        ("density_peaks", "8192", _peaks(8192, 64, dim=64, groups=2, ragged=True)),
        ("dpp_map", "20000", _features(20000, 128, 1e-6, dim=256, images=1)),
    ]
