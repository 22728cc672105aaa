"""Cosine similarity between two sets of tokens, without keeping the whole matrix."""

import torch
from torch import Tensor

_CHUNK = 1024


def as_float(features: Tensor) -> Tensor:
    """`features` in float32 (float64 stays), with NaN and Inf replaced by 0, for comparisons that must not overflow."""
    features = features if features.dtype == torch.float64 else features.float()
    return features.nan_to_num(0.0, 0.0, 0.0)


def unit_rows(features: Tensor) -> Tensor:
    """`features` [..., D] divided by their length, in float32; a zero row stays zero, NaN and Inf count as 0."""
    features = as_float(features)
    largest = features.abs().amax(dim=-1, keepdim=True)  # else the squares of huge or tiny values leave the range
    return torch.nn.functional.normalize(features / torch.where(largest > 0, largest, 1.0), dim=-1)


def nearest(rows: Tensor, among: Tensor) -> tuple[Tensor, Tensor]:
    """The most similar of `among` for each of `rows`; equal similarity: lowest index.

    Args:
        rows: Tensor [G, A, D], rows of length 1.
        among: Tensor [G, B, D], the same; B >= 1.

    Returns:
        Similarity Tensor [G, A] and LongTensor [G, A] of indices into `among`.
    """
    best: list[Tensor] = []
    index: list[Tensor] = []
    for some in rows.split(_CHUNK, dim=1):
        similarity = some @ among.transpose(1, 2)
        index.append(similarity.argmax(dim=-1))
        best.append(similarity.gather(2, index[-1][..., None])[..., 0])
    return torch.cat(best, dim=1), torch.cat(index, dim=1)
