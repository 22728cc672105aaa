"""Peak of what torch allocates in a piece of work: exact to the byte, the same in every run on one machine."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import torch
from torch.autograd.profiler import profile

from vtc.eval.run.memory import PeakMemory


class Allocated:
    """Measures the work of a `with` block by torch's allocator: tensors, and what operations hold for a while.

    On the CPU the profiler tells every allocation. What libraries below (MKL, a thread's own buffers) and Python take
    for themselves is not in it; nor are pages that the system hands out later, which resident memory depends on.

    Attributes:
        bytes: the peak above the level before the block.
    """

    def __init__(self, device: torch.device):
        self._cuda = PeakMemory(device) if device.type == "cuda" else None
        self.bytes: int | None = None

    def __enter__(self) -> "Allocated":
        if self._cuda is not None:
            self._cuda.__enter__()
            return self
        self._profile = profile(profile_memory=True)
        with _quiet():
            self._profile.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if self._cuda is not None:
            self._cuda.__exit__()
            self.bytes = self._cuda.bytes
            return
        with _quiet():
            self._profile.__exit__(*error)
        events: Any = self._profile.kineto_results.events()  # type: ignore[union-attr]
        steps = sorted((event for event in events if event.name() == "[memory]"), key=lambda event: event.start_ns())
        self.bytes = max(accumulate((event.nbytes() for event in steps), initial=0))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the profiler writes to the process's stderr whenever it starts and stops."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
