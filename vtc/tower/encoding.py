"""The pass of the vision tower that runs in a thread."""

import threading

from torch import Tensor

from vtc.tower.features import Features
from vtc.tower.run import TowerRun


class Encoding(threading.local):
    """What the vision tower is making in this thread.

    Attributes:
        features: the record of it.
        pixels: the real numbers that it was given, by name; nobody holds on to them behind the call.
        depth: how many calls of methods that run the tower are open; Qwen3-VL makes video features by its own call for
            images. 0: somebody calls the tower alone.
    """

    def __init__(self) -> None:
        self.features = Features("image")
        self.pixels: dict[str, Tensor] = {}
        self.depth = 0

    def start(self, features: Features, pixels: dict[str, Tensor] | None = None) -> None:
        """Called before a method that runs the tower, with the empty record of what it makes, and its pixels."""
        if not self.depth:
            self.features, self.pixels = features, pixels or {}
        self.depth += 1

    def end(self) -> None:
        """Called after it, also when it failed."""
        self.depth -= 1
        if not self.depth:
            self.forget()

    def forget(self) -> None:
        """Start anew."""
        self.features, self.pixels = Features("image"), {}

    @property
    def reducing(self) -> TowerRun | None:
        """The run of a reducer that shortens this pass; None where none does."""
        run = self.features.tower
        return run if run is not None and run.active else None
