"""The loop that everything trained here goes through, and how fast it learns at which step.

A training can be killed at any point: the same command goes on from its last checkpoint and ends with the same bits.
"""

import io
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vtc.eval.cli.arguments import say
from vtc.eval.results.folder import write_atomically


class Training(ABC):
    """What is learned, and how far it is. A subclass says what one step is and what is told of it.

    Args:
        name: what lines on stderr begin with, such as "vtc train-atp".
        steps: in all.
        parts: what a checkpoint holds beside the count of steps, by name: optimizers, modules, whatever has
            `state_dict` and `load_state_dict`.
        device: where a checkpoint is loaded to; None: where each tensor was.
    """

    #: Between checkpoints; there is one after the first step that is done and after the last as well.
    save_seconds = 30.0

    def __init__(self, name: str, steps: int, parts: Mapping[str, Any], device: str | None = None):
        self.name, self.steps, self.parts, self.device = name, steps, dict(parts), device
        self.step = 0

    @abstractmethod
    def learn(self) -> Any:
        """Do step number `self.step`, from its batch to the new weights.

        Returns:
            What `note` is given.
        """

    @abstractmethod
    def note(self, report: Any) -> None:
        """Remember, or show, what came out of the step just done, which `self.step` counts by now."""

    def progress(self) -> str:
        """What is said at each checkpoint; "" for nothing."""
        return ""

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {name: part.state_dict() for name, part in self.parts.items()} | {"step": self.step}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what a checkpoint holds."""
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        self.step = state["step"]

    def save(self, checkpoint: Path) -> None:
        """Write a checkpoint, whole or not at all."""
        content = io.BytesIO()
        torch.save(self.state(), content)
        write_atomically(checkpoint, content.getvalue())

    def to_the_end(self, checkpoint: Path, saves: bool = True) -> None:
        """Do the steps that are left.

        Args:
            checkpoint: a file; gone on from if it is there.
            saves: False in a process that shares the work of another, which saves for both.
        """
        if checkpoint.exists():
            self.restore(torch.load(checkpoint, map_location=self.device, weights_only=True))
            if saves:
                say(f"{self.name}: {self.step} of {self.steps} steps are in {str(checkpoint.parent)!r} already")
        start, began, saved = self.step, time.monotonic(), -math.inf
        while self.step < self.steps:
            report = self.learn()
            self.step += 1
            self.note(report)
            if saves and (self.step == self.steps or time.monotonic() - saved > self.save_seconds):
                self.save(checkpoint)
                saved = time.monotonic()
                self._tell((saved - began) / (self.step - start))

    def _tell(self, seconds: float) -> None:
        if said := self.progress():
            left = f"about {seconds * (self.steps - self.step):.0f} s of training left"
            say(f"{self.name}: step {self.step} of {self.steps}, {said}, {left}")


def cosine(step: int, steps: int, first: float, last: float) -> float:
    """The rate of a step: from the first to the last along half a wave."""
    along = 0.5 * (1 + math.cos(math.pi * step / max(1, steps - 1)))
    return last + (first - last) * along


def warm_then_linear(step: int, steps: int, warm: int, decay: float) -> float:
    """The share of the full rate at a step: up to 1 over the first `warm`, down to 0 over the last `decay` of all."""
    up = min(1.0, (step + 1) / warm)
    left = (steps - step) / max(1.0, decay * steps)
    return up * min(1.0, left) if decay else up
