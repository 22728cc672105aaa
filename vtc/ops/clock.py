"""Moments on a device, to tell the time between them without making the program wait in the middle."""

import time

import torch


class Moment:
    """Now; on a GPU: when it has done what its current stream was given until now.

    On a GPU a program runs ahead of the work that it starts, and waiting for that would slow down what is measured. So
    an event goes along with the work, and only `ms_until` waits.

    Args:
        device: where the work is done.
    """

    def __init__(self, device: torch.device):
        self._seconds = time.perf_counter()
        self._event: torch.cuda.Event | None = None
        if device.type == "cuda":
            self._event = torch.cuda.Event(enable_timing=True)
            self._event.record(torch.cuda.current_stream(device))

    def ms_until(self, later: "Moment") -> float:
        """Milliseconds until a `later` moment on the same device, once that has come."""
        if self._event is None or later._event is None:
            return 1e3 * (later._seconds - self._seconds)
        later._event.synchronize()
        return self._event.elapsed_time(later._event)
