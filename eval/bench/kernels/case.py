"""What a case of `vtc bench kernels` is, and where its random input comes from."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


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

    def tokens(self, tokens: int, dim: int, rank: int | None) -> Tensor:
        """[1, N, D]; with a `rank`, tokens that mostly lie in so many directions, as those of a picture do."""
        features = self.normal(1, tokens, dim)
        if rank is None:
            return features
        weights = self.normal(tokens, rank) * torch.arange(1, rank + 1, device=self.device).pow(-0.5).to(self.dtype)
        return weights @ self.normal(rank, dim) + 0.25 * features


def bytes_of(tensor: Tensor) -> int:
    """That a tensor takes."""
    return tensor.numel() * tensor.element_size()
