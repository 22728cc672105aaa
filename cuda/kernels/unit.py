"""Rows of length 1, the same for the kernels and for the torch reference, so that both pick the same tokens."""

import torch
from torch import Tensor


def unit_rows(features: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of length 1 (zero where there is no direction), and BoolTensor [G, N]: where there is none.

    Args:
        features: Tensor [G, N, D]; half precision is computed in float32.
    """
    features = features if features.dtype == torch.float64 else features.float()
    length = torch.linalg.vector_norm(features, dim=-1, keepdim=True)
    lost = ~(length.isfinite() & (length > 0))
    return (features / length).masked_fill_(lost, 0.0), lost[..., 0]
