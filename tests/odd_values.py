"""Kinds of values that no method may stumble over."""

import torch
from torch import Tensor

KINDS = (
    *("random", "zero rows", "nan and inf", "nan, inf and a row of it", "duplicates", "identical"),
    *("all zero", "all nan", "huge", "half"),
)


def rows_of(kind: str, images: int, rows: int, dim: int, seed: int) -> Tensor:
    """Random values [images, rows, dim], float32 but for "half", with what the kind says."""
    x = torch.randn(images, rows, dim, generator=torch.Generator().manual_seed(seed))
    nan, inf = float("nan"), float("inf")
    match kind:
        case "zero rows":
            x[:, ::3] = 0
        case "nan and inf":
            x[:, ::3, 0], x[:, 1::4, 1], x[:, 2::5, 2] = nan, inf, -inf
        case "nan, inf and a row of it":
            x[:, 1::4, 1], x[:, 2::5, 2], x[:, 3::5] = nan, inf, -inf
        case "duplicates":
            x = x[:, torch.arange(rows) % max(rows // 3, 1)]
        case "identical":
            x = x[:, :1].expand(-1, rows, -1)
        case "all zero":
            x = torch.zeros_like(x)
        case "all nan":
            x = torch.full_like(x, nan)
        case "huge":
            x = x * 1e25
        case "half":
            x = (x * 100).half()
    return x
