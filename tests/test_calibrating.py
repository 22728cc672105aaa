"""Calibrating: the value at which a run has so many tokens, whichever way they go with it."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from contract import EVERY, model_of, state_of
from families import scenario

import vtc
from vtc.method import registry
from vtc.method.prune import Decision, Prune
from vtc.planning.calibrate import calibrate, measure
from vtc.planning.solve import solve


@dataclass
class Gate(Prune):
    """Keep, in front of layer 1, the visual tokens of a larger (or smaller) norm than so many times the mean."""

    factor: float = 1.0
    below: bool = False
    label: str = "x"
    keep: ClassVar[None] = None
    positions: ClassVar[str] = "original"
    may_adapt: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.factor < 0.01:
            raise ValueError(f"factor={self.factor!r} is below 0.01")

    def schedule(self, num_layers):
        return (1,)

    def decide(self, rows, counts, memory):
        norm = rows.hidden.float().norm(dim=-1)
        mean = (norm * rows.visual).sum(dim=1, keepdim=True) / rows.visual.sum(dim=1, keepdim=True).clamp_min(1)
        above = norm > self.factor * mean
        return Decision(rows.visual & (~above if self.below else above))


@pytest.fixture(scope="module", autouse=True)
def gate():
    """Known by name to this file alone."""
    registry.register("test-gate")(Gate)
    yield
    del registry._registered["test-gate"]


@pytest.fixture(scope="module")
def model():
    return model_of("llava")


@pytest.fixture(scope="module")
def batches(model):
    family = EVERY["llava"]
    names = ("ragged", "several_images", "text_row")
    return [family.inputs(model, scenario(family, name)) for name in names]


@pytest.mark.parametrize(("spec", "below"), [("test-gate", False), ("test-gate:below=True", True)])
def test_the_nearest_that_can_be_reached_is_found_in_either_direction(model, batches, spec, below):
    solved, measured = calibrate(model, spec, "factor", iter(batches), 10.0, between=(0.5, 1.5))
    assert solved.startswith(spec + ("," if ":" in spec else ":") + "factor=")
    assert measured == measure(model, solved, batches)
    others = [measure(model, f"test-gate:below={below},factor={0.5 + i / 20}", batches) for i in range(21)]
    assert others == sorted(others, reverse=not below) and len(set(others)) > 5
    assert abs(measured - 10) <= min(abs(other - 10) for other in others) + 0.02


def test_the_mean_is_over_prompts_with_images(model, batches):
    found = []
    with vtc.patched(model, "test-gate:factor=0.95"), torch.no_grad():
        for batch in batches:
            model(**batch)
            trace = vtc.trace(model)
            pairs = zip(trace.equivalent_tokens.tolist(), trace.original_tokens.tolist())
            found += [equivalent for equivalent, original in pairs if original]
    assert len(found) == 6  # three, two, and one of a batch with a row of text
    assert measure(model, "test-gate:factor=0.95", batches) == pytest.approx(sum(found) / 6)


def test_an_end_that_is_refused_is_moved_inwards(model, batches):
    solved, measured = calibrate(model, "test-gate", "factor", batches[:1], 15.0)  # 0.0 is refused
    assert 0.01 <= vtc.spec.parse(solved)[0].factor <= 1 and abs(measured - 15) < 1


def test_what_can_be_solved_calibrates_to_the_same(model, batches):
    solved = solve(model, "fastv", "tokens=10", text_tokens=0)
    calibrated, measured = calibrate(model, "fastv", "keep", batches[:1], 10.0)
    assert measured == measure(model, solved, batches[:1])
    composed, measured = calibrate(model, "stride:keep=0.5+fastv", "keep", batches[:1], 5.0)
    assert composed.startswith("stride:keep=0.5+fastv:keep=") and measured == pytest.approx(5, abs=0.4)
    assert calibrated.startswith("fastv:keep=")


@pytest.mark.parametrize(
    ("spec", "field", "more", "error", "expected"),
    [
        ("test-gate:factor=1.0", "factor", {}, ValueError, ["'factor'", "no method has it free", "below, label"]),
        ("test-gate", "facto", {}, ValueError, ["'facto'", "factor"]),
        ("stride+fastv", "keep", {}, ValueError, ["2 methods have it"]),
        ("test-gate", "factor", {"tokens": 40}, ValueError, ["tokens=40", "out of reach", "3.2", "between"]),
        ("test-gate", "factor", {"tokens": 2}, ValueError, ["tokens=2", "out of reach"]),
        ("test-gate", "factor", {"tokens": 0}, ValueError, ["tokens=0"]),
        ("test-gate", "factor", {"tokens": float("nan")}, ValueError, ["tokens=nan"]),
        ("test-gate", "factor", {"tokens": "64"}, TypeError, ["tokens='64'"]),
        ("test-gate", "factor", {"between": (1, 1)}, ValueError, ["between=(1, 1)"]),
        ("test-gate", "factor", {"between": (-2, -1)}, ValueError, ["factor=-1"]),
        ("test-gate", "label", {}, ValueError, ["out of reach"]),
    ],
)
def test_what_cannot_be_calibrated_is_refused_and_the_model_is_as_before(
    model, batches, spec, field, more, error, expected
):
    state = state_of(model)
    with pytest.raises(error) as refused:
        calibrate(model, spec, field, batches[:1], **{"tokens": 8.0, "between": (0.5, 1.5), **more})
    for part in expected:
        assert part in str(refused.value)
    assert state_of(model) == state


@pytest.mark.parametrize("which", ["none", "text"])
def test_without_images_there_is_nothing_to_measure(model, batches, which):
    text = {name: batches[2][name][1:] for name in ("input_ids", "attention_mask")}
    with pytest.raises(ValueError, match="no prompt that shows an image"):
        calibrate(model, "test-gate", "factor", [] if which == "none" else [text], 8.0, between=(0.5, 1.5))
