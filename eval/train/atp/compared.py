"""How learned thresholds fare on held-out questions beside methods without training, at equal equivalent tokens."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

import vtc
from vtc.eval.models import Loaded
from vtc.eval.tasks.task import Task
from vtc.eval.train.frozen import ASKED_AT_ONCE, ask, inputs_of
from vtc.method.prune import Prune

KEEPS = (0.25, 0.125, 0.0625)
CALIBRATED_ON, CALIBRATION_STEPS = 36, 7


class Comparison:
    """Measures ATP at several budgets and, at the equivalent tokens it comes to, the other methods.

    A method that can't go so low, because its first layers see every token, comes as near as it can.

    Args:
        loaded: the model.
        held_out: the questions it is measured on.
        learned_on: the first of these calibrate the mass of `atp_tf:keep=None`.
        weights: the weights file.
    """

    def __init__(self, loaded: Loaded, held_out: Task, learned_on: Task, weights: str):
        self.loaded, self.held_out, self.weights = loaded, held_out, weights
        self.calibration = [learned_on.get(index) for index in range(min(CALIBRATED_ON, learned_on.size))]
        self.depth = len(loaded.decoder.layers)

    def rows(self, done: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """The rows that are not `done` yet, one by one; `done` may grow by them."""
        if not done:
            yield self.measure("untouched", "none")
        for keep in KEEPS:
            name = f"atp, keep={keep}"
            if all(row["name"] != name for row in done):
                yield self.measure(name, f"atp:keep={keep},weights={self.weights}")
            target = next(row["equivalent"] for row in done if row["name"] == name)
            tokens = next(row["tokens"] for row in done)
            for method in ("atp_tf, mass", "atp_tf", "fastv", "transprune"):
                name = f"{method}, as atp at {keep}"
                if all(row["name"] != name for row in done):
                    spec = self.mass_for(target) if method == "atp_tf, mass" else self.fixed(method, target, tokens)
                    yield self.measure(name, spec)

    def measure(self, name: str, spec: str) -> dict[str, Any]:
        """Accuracy of a spec on the held-out questions, and the mean of the equivalent tokens."""
        accuracy, (equivalent, tokens) = ask(
            self.loaded,
            self.held_out,
            spec,
            lambda trace: (trace.equivalent_tokens.sum(), trace.original_tokens.sum()),
        )
        size = self.held_out.size
        return {
            "name": name,
            "spec": spec,
            "accuracy": accuracy,
            "equivalent": equivalent / size,
            "tokens": tokens / size,
        }

    def mass_for(self, target: float) -> str:
        """The spec of `atp_tf:keep=None` with the mass that comes to `target` equivalent tokens, by bisection."""
        low, high = 0.0, 1.0
        for _ in range(CALIBRATION_STEPS):
            middle = (low + high) / 2
            low, high = (middle, high) if self._equivalent(mass_spec(middle)) < target else (low, middle)
        return mass_spec((low + high) / 2)

    def fixed(self, method: str, target: float, tokens: float) -> str:
        """The spec of a method with the count that comes nearest to `target` equivalent tokens."""
        present = round(tokens)
        specs = [f"{method}:keep={count}" for count in range(1, present + 1)]
        return min(specs, key=lambda spec: abs(planned(spec, present, self.depth) - target))

    def _equivalent(self, spec: str) -> float:
        """Mean of the equivalent tokens over the questions for calibration."""
        total = 0.0
        with torch.inference_mode(), vtc.patched(self.loaded.model, spec):
            for start in range(0, len(self.calibration), ASKED_AT_ONCE):
                some = self.calibration[start : start + ASKED_AT_ONCE]
                self.loaded.model(**inputs_of(self.loaded, some))
                total += float(vtc.trace(self.loaded.model).equivalent_tokens.sum())
        return total / len(self.calibration)


def mass_spec(mass: float) -> str:
    """`atp_tf` with nothing but the mass to decide how many stay."""
    return f"atp_tf:keep=None,mass={mass:.4f},min_share=0.0,max_share=1.0"


def planned(spec: str, present: int, depth: int) -> float:
    """Equivalent tokens of a prune with a fixed count, of `present` visual tokens in `depth` layers."""
    (prune,) = vtc.spec.parse(spec)
    assert isinstance(prune, Prune)
    schedule = prune.schedule(depth)
    bounds = [0, *schedule, depth]
    counts = [present, *(prune.count_at(stage, present) for stage in range(len(schedule)))]
    return sum(count * (bounds[i + 1] - bounds[i]) for i, count in enumerate(counts)) / depth


def line(row: dict[str, Any]) -> str:
    """A row in print."""
    return f"  {row['name']:28}  {row['accuracy']:6.1%}  {row['equivalent']:6.1f} equivalent tokens  {row['spec']}"
