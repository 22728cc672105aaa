"""Between host and device without waiting: the host runs ahead of a GPU, and must not stop for what it has queued."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def on(device: torch.device, values: Tensor | Sequence[Any]) -> Tensor:
    """Values of the host on a device; on a GPU the copy is queued, and nothing waits for it."""
    tensor = values if isinstance(values, Tensor) else torch.tensor(values)
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()  # which torch keeps until the copy is done
    return tensor.to(device, non_blocking=tensor.device.type == "cpu")


def autocasts(device: torch.device) -> bool:
    """Whether autocast is on for a kind of device; there are some that have none."""
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Within it, what is computed in float32 on a device is."""
    return torch.autocast(device.type, enabled=False) if autocasts(device) else nullcontext()


class EarlyCopies:
    """Copies on the host of small tensors of a call: ids, masks and grids.

    They are started when the call begins, in front of the vision tower's work. Reading one later waits until that copy
    is done, which is no wait for anything that the call itself has queued.
    """

    def __init__(self) -> None:
        self._copies: dict[Any, tuple[Tensor, Tensor, torch.cuda.Event | None]] = {}

    def start(self, values: Any) -> None:
        """Start copies of the whole and True-or-False numbers among `values`, a tensor or a dictionary of some."""
        if isinstance(values, dict):
            for value in values.values():
                self.start(value)
        elif isinstance(values, Tensor) and values.device.type != "cpu" and not values.is_floating_point():
            self._copies[_key(values)] = _started(values)

    def of(self, tensor: Tensor) -> Tensor | None:
        """The values of `tensor`, or None where that would have to wait for the device."""
        if tensor.device.type == "cpu":
            return tensor
        found = self._copies.get(_key(tensor))
        if found is None:
            return None
        _, copy, done = found
        if done is not None:
            done.synchronize()
        return copy

    def read(self, tensor: Tensor) -> Tensor:
        """The values of `tensor`; waits for the device where it has to."""
        copy = self.of(tensor)
        return tensor.cpu() if copy is None else copy


def _started(tensor: Tensor) -> tuple[Tensor, Tensor, torch.cuda.Event | None]:
    """The tensor (kept, so that its memory stays its own), its copy, and when that is done."""
    if not tensor.is_cuda:
        return tensor, tensor.cpu(), None
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
    done = torch.cuda.Event()
    done.record(torch.cuda.current_stream(tensor.device))
    return tensor, copy, done


def _key(tensor: Tensor) -> Any:
    """Says which memory a tensor shows: views of one that were made anew are the same."""
    return tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype
