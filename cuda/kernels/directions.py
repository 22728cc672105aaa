"""Directions of rows and how alike they are: what torch computes for the greedy kernels."""

import math

import torch
from torch import Tensor


def unit_rows(features: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of length 1 (zero where there is no direction), and BoolTensor [G, N]: where there is none.

    The same for the kernels and for the torch reference, so that both pick the same tokens.

    Args:
        features: Tensor [G, N, D]; half precision is computed in float32.
    """
    features = features if features.dtype == torch.float64 else features.float()
    length = torch.linalg.vector_norm(features, dim=-1, keepdim=True)
    lost = ~(length.isfinite() & (length > 0))
    return (features / length).masked_fill_(lost, 0.0), lost[..., 0]


def products(left: Tensor, right: Tensor) -> Tensor:
    """Products [G, n, m] in float32 of rows [G, n, D] and [G, m, D], which are not rounded on the way."""
    if left.is_cuda and left.dtype != torch.float32:
        return torch.bmm(left, right.mT, out_dtype=torch.float32)
    return left.float() @ right.float().mT


def inverse_lengths(features: Tensor) -> Tensor:
    """1 / length [G, N] of each row; 0 where it has no direction."""
    inverse = 1 / torch.linalg.vector_norm(features, dim=-1, dtype=torch.float32)
    return inverse.masked_fill_(~inverse.isfinite(), 0.0)


def farthest(features: Tensor, inverse: Tensor, counts: Tensor | None, chunk: int = 1024) -> Tensor:
    """The token [G] whose nearest other token is farthest away, among those that have a direction."""
    tokens, nearest = features.shape[1], []
    behind = None if counts is None else torch.arange(tokens, device=features.device) >= counts[:, None]
    for start in range(0, tokens, chunk):
        block = products(features[:, start : start + chunk], features)
        block.mul_(inverse[:, start : start + chunk, None]).mul_(inverse[:, None]).nan_to_num_(0.0, 0.0, 0.0)
        block.diagonal(offset=start, dim1=1, dim2=2).fill_(-math.inf)
        if behind is not None:
            block.masked_fill_(behind[:, None], -math.inf)
        nearest.append(block.amax(dim=-1))
    near = torch.cat(nearest, dim=1).masked_fill_(inverse == 0, 1e30)
    return (near if behind is None else near.masked_fill_(behind, math.inf)).argmin(dim=1)
