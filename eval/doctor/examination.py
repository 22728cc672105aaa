"""All checks of a model: every method, under each attention implementation that the model offers."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch

import vtc
from vtc.eval.doctor.by_hand import NotCheckableError
from vtc.eval.doctor.checks import CHECKS, OF_UNTOUCHED, Case
from vtc.eval.doctor.runs import Runs
from vtc.eval.doctor.subject import Subject, traces_left

UNTOUCHED = "untouched"
#: One of each kind: a selector, one that reads the tower, a prune that watches attention, one of several stages, two
#: composed, a reducer.
SPECS = (
    "divprune:keep={keep}",
    "hiprune:keep={keep}",
    "fastv:layer=2,keep={keep}",
    "pyramiddrop:keep={keep}",
    "divprune:keep={keep}+fastv:layer=2,keep={keep}",
    "tome:keep={keep}",
)


@dataclass(frozen=True)
class Result:
    """What a check said.

    Attributes:
        model: name.
        attention: implementation.
        method: spec, or "untouched".
        check: name; "" where none could be made.
        status: "passed", "failed", "refused" (the method does not go with the model, which is no fault), "unchecked".
        detail: why, where it did not pass.
        difference: largest difference of two logits, in standard deviations; None where it did not pass.
    """

    model: str
    attention: str
    method: str
    check: str
    status: str
    detail: str = ""
    difference: float | None = None


def examine(
    subject: Subject,
    attention: str | None = None,
    share: tuple[int, int] = (0, 1),
    say: Callable[[str], None] = lambda _: None,
    specs: Sequence[str] | None = None,
) -> list[Result]:
    """Make all checks.

    Args:
        subject: the model and its prompts.
        attention: this implementation alone; None: all that are offered.
        share: (i, n): of methods and implementations every n-th pair from the i-th on, so that of several models
            together each method is run under each implementation.
        say: told what is examined next.
        specs: of the methods, each with "{keep}" for the budget; None: those of `SPECS`.
    """
    results: list[Result] = []
    (first, step), forms = share, SPECS if specs is None else specs
    for turn, name in enumerate([attention] if attention else subject.offered()):
        say(f"{subject.name} under {name}")
        with ExitStack() as until_here:
            try:
                until_here.enter_context(subject.under(name))
            except (ValueError, ImportError) as error:
                results.append(Result(subject.name, name, UNTOUCHED, "", "refused", _said(error)))
                continue
            until_here.enter_context(torch.inference_mode())
            results += _under(subject, name, forms[(first + turn) % step :: step])
    return results


def _under(subject: Subject, attention: str, forms: Sequence[str]) -> Iterator[Result]:
    try:  # for hidden states transformers puts in hooks of its own, which stay
        subject.model(**subject.rows[0], output_hidden_states=True)
    except Exception as error:  # a fault of whatever kind is a row of the table
        yield Result(subject.name, attention, UNTOUCHED, "", "failed", _said(error))
        return
    state, untouched = traces_left(subject.model), Runs(subject)
    case = Case(untouched, Runs(subject), untouched, state)
    yield from _checked(case, attention, UNTOUCHED, OF_UNTOUCHED)
    for form in forms:
        whole, half = (Runs(subject, form.format(keep=keep)) for keep in (1.0, 0.5))
        try:
            vtc.unpatch(vtc.patch(subject.model, half.spec))
        except ValueError as error:
            yield Result(subject.name, attention, half.spec, "", "refused", _said(error))
        except Exception as error:  # a fault of whatever kind is a row of the table
            yield Result(subject.name, attention, half.spec, "", "failed", _said(error))
        else:
            yield from _checked(Case(untouched, whole, half, state), attention, half.spec, tuple(CHECKS))


def _checked(case: Case, attention: str, method: str, names: Sequence[str]) -> Iterator[Result]:
    for name in names:
        row = case.subject.name, attention, method, name
        try:
            yield Result(*row, "passed", difference=CHECKS[name](case))
        except NotCheckableError as error:
            yield Result(*row, "unchecked", str(error))
        except Exception as error:  # a fault of whatever kind is a row of the table
            yield Result(*row, "failed", _said(error))


def _said(error: Exception) -> str:
    """An exception in one line, with its type where it is not made to be read."""
    text = " ".join(str(error).split())
    return text if type(error).__name__ in ("WrongError", "ValueError") else f"{type(error).__name__}: {text}"
