"""Peak memory of a piece of work, above what was held before it."""

import ctypes
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """Measures the work of a `with` block.

    Attributes:
        bytes: the peak above the level before the block; None where the system does not tell.
        source: what was read.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self.bytes: int | None = None
        self.source = source(device)

    def __enter__(self) -> "PeakMemory":
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_allocated(self._device)
        elif self.source is not None:
            # memory that was freed earlier and kept by the allocator must not hide what is used now
            trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
            if trim is not None:
                trim(0)
            _CLEAR.write_text("5")  # sets the high-water mark back to the present level
            self._before = _resident("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        if self._device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self._device) - self._before
        elif self.source is not None:
            self.bytes = max(0, _resident("VmHWM") - self._before)


def source(device: torch.device) -> str | None:
    """What peak memory is read from on this machine; None where it can't be."""
    if device.type == "cuda":
        return "torch.cuda.max_memory_allocated above the level before generate"
    try:
        _CLEAR.write_text("5")
        _resident("VmHWM")
    except (OSError, LookupError):
        return None
    return "growth of the process's resident memory at its peak during generate"


def _resident(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(field + ":"):
            return 1024 * int(line.split()[1])
    raise LookupError(f"{field} is not in {_STATUS}")
