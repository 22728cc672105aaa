"""The pass of the vision tower that runs in a thread."""

import threading

from vtc.tower.features import Features
from vtc.tower.run import TowerRun


class Encoding(threading.local):
    """What the vision tower is making in this thread.

    Attributes:
        features: the record of it.
        depth: how many calls of methods that run the tower are open; Qwen3-VL makes video features by its own call for
            images. 0: somebody calls the tower alone.
    """

    def __init__(self) -> None:
        self.features = Features("image")
        self.depth = 0

    def start(self, features: Features) -> None:
        """Called before a method that runs the tower, with the empty record of what it makes."""
        if not self.depth:
            self.features = features
        self.depth += 1

    def end(self) -> None:
        """Called after it, also when it failed."""
        self.depth -= 1
        if not self.depth:
            self.forget()

    def forget(self) -> None:
        """Start anew."""
        self.features = Features("image")

    @property
    def reducing(self) -> TowerRun | None:
        """The run of a reducer that shortens this pass; None where none does."""
        run = self.features.tower
        return run if run is not None and run.active else None
