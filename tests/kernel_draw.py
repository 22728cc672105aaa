"""Random tensors that lie in memory in all kinds of ways. VTC_TEST_SEED draws others."""

import os

import torch
from torch import Tensor

SEED = int(os.environ.get("VTC_TEST_SEED", "0"))
LAYOUTS = ("dense", "transposed", "sparse", "offset", "expanded")


class Draw:
    """Random tensors on a device."""

    def __init__(self, device: str, name: str):
        self.device = device
        self._random = torch.Generator(device).manual_seed(SEED * 1_000_003 + sum(name.encode()))

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32, layout: str = "dense") -> Tensor:
        made = torch.randn(shape, generator=self._random, device=self.device)
        return laid_out(made.to(dtype), layout)

    def integers(self, low: int, high: int, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        """From `low` up to `high` - 1."""
        return torch.randint(low, high, shape, generator=self._random, device=self.device, dtype=dtype)

    def chance(self, share: float, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self._random, device=self.device) < share


def laid_out(tensor: Tensor, layout: str) -> Tensor:
    """The same numbers, lying otherwise in memory; "expanded" repeats those of the first row of the batch."""
    if layout == "transposed":
        return tensor.transpose(1, 2).contiguous().transpose(1, 2) if tensor.dim() > 2 else tensor.t().contiguous().t()
    if layout == "sparse":  # every second number of every second row
        room = torch.ones([2 * size for size in tensor.shape], dtype=tensor.dtype, device=tensor.device)
        return room[tuple(slice(None, None, 2) for _ in tensor.shape)].copy_(tensor)
    if layout == "offset":  # rows that begin at odd addresses
        room = torch.ones(*tensor.shape[:-1], tensor.shape[-1] + 3, dtype=tensor.dtype, device=tensor.device)
        return room[..., 1:-2].copy_(tensor)
    return tensor[:1].expand_as(tensor) if layout == "expanded" else tensor
