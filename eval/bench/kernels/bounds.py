"""What a device can do at best, measured beside what it is held against: copying, computing, starting work."""

from collections.abc import Callable
from typing import Any, TypedDict

import torch

from vtc.eval.results.results import Spread, spread
from vtc.ops.clock import Moment

#: Larger than the caches of any device in sight.
FLUSH_BYTES = 2**28
#: Rows and columns of the matrices that are multiplied.
SIDE = 2048
_SMALL_WORKS = 200


class Bounds(TypedDict):
    """What one device reaches.

    Attributes:
        bytes_per_s: of a copy of 256 MiB, what is read and what is written counted.
        flops_per_s: of a product of two 2048 × 2048 matrices in the dtype of the run.
        launch_us: microseconds for the smallest piece of work, one after another.
    """

    bytes_per_s: Spread
    flops_per_s: Spread
    launch_us: Spread


class Timer:
    """Tells how long pieces of work take that begin with nothing of theirs in a cache.

    Args:
        device: where they run.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._other = torch.zeros(FLUSH_BYTES // 4, device=device)

    def ms(self, work: Callable[[], Any]) -> float:
        """Milliseconds of one call, until the device is done. On a GPU it is called while another work still runs."""
        self._other.add_(1)
        start = Moment(self._device)
        result = work()  # not freed before the time is taken
        milliseconds = start.ms_until(Moment(self._device))
        del result
        return milliseconds


def measure(device: torch.device, dtype: torch.dtype, rounds: int) -> Bounds:
    """The bounds of a device, after one round that does not count."""
    timer = Timer(device)
    old = torch.zeros(FLUSH_BYTES // 4, device=device)
    new = torch.zeros_like(old)
    left = torch.ones(SIDE, SIDE, device=device, dtype=dtype)
    one = torch.ones(1, device=device)

    def small_works() -> None:
        for _ in range(_SMALL_WORKS):
            one.add_(0)

    def times(work: Callable[[], Any]) -> list[float]:
        return [timer.ms(work) for _ in range(1 + rounds)][1:]

    return {
        "bytes_per_s": spread([2 * FLUSH_BYTES / (1e-3 * ms) for ms in times(lambda: new.copy_(old))]),
        "flops_per_s": spread([2 * SIDE**3 / (1e-3 * ms) for ms in times(lambda: left @ left)]),
        "launch_us": spread([1e3 * ms / _SMALL_WORKS for ms in times(small_works)]),
    }


def floor_ms(moved: int, flops: int, bounds: Bounds) -> float:
    """Milliseconds below which a device can't do it: copying, computing or one launch, whichever takes longest."""
    return 1e3 * max(
        moved / bounds["bytes_per_s"]["median"],
        flops / bounds["flops_per_s"]["median"],
        1e-6 * bounds["launch_us"]["median"],
    )
