"""Settings of several methods at the same equivalent tokens: solved from shapes, or calibrated by running."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import vtc
from vtc.eval.cli.arguments import say
from vtc.eval.cli.errors import InputError
from vtc.eval.results.folder import CONFIG
from vtc.eval.results.settings import NONE, fields_of
from vtc.method import registry
from vtc.planning.calibrate import calibrate
from vtc.planning.plan import Planner
from vtc.planning.solve import OutOfReach, solve_with
from vtc.planning.tower import Untold

if TYPE_CHECKING:
    from vtc.eval.models import Loaded
    from vtc.eval.tasks.task import Task

#: Questions on which methods are calibrated, at most.
QUESTIONS = 32

Batches = Sequence[Mapping[str, Any]]


def batches_of(loaded: "Loaded", task: "Task", size: int) -> list[dict[str, Any]]:
    """The model's arguments for the first questions of a benchmark; those whose file can't be read are left out.

    Raises:
        InputError: none can be read.
    """
    shown, refusals = [], []
    for index in range(min(QUESTIONS, task.size)):
        question = task.get(index)
        try:
            shown.append((question.shown(), question.text))
        except InputError as error:
            refusals.append(error)
    if not shown:
        raise refusals[0]
    parts = [shown[start : start + size] for start in range(0, len(shown), size)]
    return [loaded.inputs([what for what, _ in part], [question for _, question in part]) for part in parts]


def specs_at(model: Any, names: Sequence[str], counts: Sequence[float], batches: Batches) -> list[str]:
    """A spec for each method and number of equivalent tokens; numbers that a method can't reach are said and left out.

    Where all prompts have equally many visual tokens, and shapes tell how many of them a method keeps, `keep` is solved
    for. Else it, or the first number that a method without `keep` has, is calibrated.

    Args:
        model: that is compressed.
        names: of methods; "none" is passed over.
        counts: equivalent tokens.
        batches: the model's arguments for the prompts on which is calibrated.

    Raises:
        InputError: a method is unknown, can't be used with the model, or has nothing to set.
    """
    found = []
    planner = _planner(model, batches)
    for name in names:
        for count in counts if name != NONE else ():
            try:
                found.append(_spec_at(model, planner, name, count, batches))
            except OutOfReach as error:
                say(f"vtc eval: left out: {name} at {count:g} equivalent tokens: {error}")
            except (TypeError, ValueError) as error:
                raise InputError(f"argument --tokens: {name} at {count:g}: {error}") from None
    return found


def specs_before(folder: Path, asked: Mapping[str, Any]) -> list[str] | None:
    """The specs that a run in this folder was begun with, if it was asked for the same; None: there are none."""
    try:
        written = json.loads((folder / CONFIG).read_text())["equal_tokens"]
        return written["specs"] if {**written, "specs": None} == {**asked, "specs": None} else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _planner(model: Any, batches: Batches) -> Planner | None:
    """Plans of these prompts; None where they differ in their visual tokens, or the frames of their videos."""
    sizes = set()
    with vtc.patched(model, NONE), torch.no_grad():
        for batch in batches:
            model(**batch)
            trace = vtc.trace(model)
            for row in range(trace.layout.shape[0]):
                shown = [image.source for image in trace.images if image.row == row]
                sizes.add(tuple((len(image), image.grids[0].t if image.kind == "video" else 1) for image in shown))
    alike = sizes.pop() if len(sizes) == 1 else ()
    if len(set(alike)) != 1:
        return None
    tokens, frames = alike[0]
    return Planner(model, text_tokens=0, visual_tokens=tokens, images=len(alike), frames=frames)


def _spec_at(model: Any, planner: Planner | None, name: str, count: float, batches: Batches) -> str:
    if planner is not None:
        try:
            return solve_with(planner, name, f"tokens={count:g}")
        except Untold:
            pass
    text, measured = calibrate(model, name, _budget_of(name), batches, count)
    say(f"vtc eval: {text}: {measured:.1f} equivalent tokens on the prompts of the calibration, {count:g} asked for")
    return text


def _budget_of(name: str) -> str:
    """The field by which a method's tokens are set: `keep`, or its first number.

    Raises:
        ValueError: it has none.
    """
    fields = fields_of(registry.method_class(name))
    if "keep" in fields:
        return "keep"
    numbers = [key for key, default in fields.items() if isinstance(default, float)]
    if not numbers:
        raise ValueError(f"{name} has no field that sets how many tokens stay; leave it out of --methods")
    return numbers[0]
