"""One question, or some of the bundled benchmark, over methods and budgets: a curve that grows while it runs."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import vtc
from vtc import spec
from vtc.demo.jobs import inference
from vtc.demo.jobs.inference import Answer, Media, Models
from vtc.demo.jobs.turns import Ticket, Work
from vtc.eval.cli.errors import InputError
from vtc.eval.models import Loaded
from vtc.eval.results import stats
from vtc.eval.results.settings import NONE, Setting
from vtc.eval.run.stopwatch import Stopwatch
from vtc.eval.tasks.benchmarks import bundled_task
from vtc.eval.tasks.task import Question
from vtc.method.base import Method

#: Questions that are asked at once.
BATCH = 8
#: Times that one question is asked, for the times.
REPEATS = 3


@dataclass
class Point:
    """One setting so far.

    Attributes:
        setting: it.
        values: right (1) or wrong (0) of each question; of a single one the likelihood of the whole picture's answer.
        equivalents: equivalent tokens of each question.
        speedups: of the whole prefill, untouched over compressed, for each batch.
        answer: to a single question.
        refused: why it can't be used; empty where it can.
    """

    setting: Setting
    values: list[float] = field(default_factory=list)
    equivalents: list[float] = field(default_factory=list)
    speedups: list[float] = field(default_factory=list)
    answer: str = ""
    refused: str = ""

    @property
    def value(self) -> float:
        """Share of right answers, or the likelihood."""
        return sum(self.values) / len(self.values)

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the share of right answers."""
        return stats.wilson(sum(self.values), len(self.values))

    @property
    def equivalent(self) -> float:
        """Mean of the equivalent tokens."""
        return sum(self.equivalents) / len(self.equivalents)

    @property
    def speedup(self) -> float | None:
        """Median of the speed-ups."""
        return inference.median(self.speedups)


@dataclass(frozen=True)
class Progress:
    """Where a sweep stands.

    Attributes:
        done, total: turns.
        points: of all settings, those that have nothing yet included.
    """

    done: int
    total: int
    points: Sequence[Point]


def sweep_question(models: Models, media: Media, question: str, settings: Sequence[Setting], longest: int) -> Work:
    """One question under each setting: how likely the untouched model's answer stays, and what is answered instead.

    Args:
        models: the model.
        media: what is asked about.
        question: what is asked.
        settings: "none" first.
        longest: tokens of an answer at most.
    """

    def work(ticket: Ticket) -> Generator[Progress, None, None]:
        loaded = models.of(media.kind)
        inputs = inference.inputs_of(loaded, media.shown, question)
        points = [Point(setting) for setting in settings]
        whole: Answer | None = None
        for number, point in enumerate(points):
            methods = _methods(point.setting)
            try:
                answer = inference.ask(loaded, media, inputs, methods, longest, ticket)
                whole = whole or answer  # that of the untouched model, which is the first
                likelihood = inference.probability(loaded, inputs, methods, whole.ids, ticket)
                point.speedups = _speedups(loaded, inputs, methods, ticket)
                point.values, point.answer = [likelihood], answer.text
                point.equivalents = [float(answer.trace.equivalent_tokens[0])]
            except inference.REFUSALS as error:
                _refuse(point, error)
            yield _progress(number + 1, len(points), points)

    return work


def sweep_benchmark(models: Models, kind: str, count: int, settings: Sequence[Setting], longest: int) -> Work:
    """The first `count` questions of the bundled benchmark of pictures ("image") or clips ("video").

    Each batch goes through all settings before the next, so that the whole curve is there early, and gets sharper.
    """

    def work(ticket: Ticket) -> Generator[Progress, None, None]:
        loaded = models.of(kind)
        task = bundled_task(kind, count, "test", 0)
        points = [Point(setting) for setting in settings]
        batches = task.batches(BATCH)
        for turn, batch in enumerate(batches):
            questions = [task.get(number) for number in batch]
            inputs = loaded.inputs([each.shown() for each in questions], [each.text for each in questions])
            untouched = 0.0
            for number, point in enumerate(points):
                if not point.refused:
                    try:
                        prefill_ms = _answer_batch(loaded, inputs, questions, point, longest, ticket)
                        untouched = untouched or prefill_ms
                        point.speedups.append(untouched / prefill_ms)
                    except inference.REFUSALS as error:
                        _refuse(point, error)
                yield _progress(turn * len(points) + number + 1, len(batches) * len(points), points)

    return work


def _answer_batch(
    loaded: Loaded, inputs: dict[str, Any], questions: Sequence[Question], point: Point, longest: int, ticket: Ticket
) -> float:
    """Ask a batch, and add what came out to the point; returns the prefill's milliseconds."""
    with vtc.patched(loaded.model, _methods(point.setting)):
        with Stopwatch(loaded) as watch:
            sequences = inference.generate(loaded, inputs, longest, ticket, watch)
        trace = vtc.trace(loaded.model)
    answers = loaded.answers(sequences, inputs)
    point.values += [each.score(text).score or 0.0 for each, text in zip(questions, answers)]
    point.equivalents += trace.equivalent_tokens.tolist()
    return watch.prefill_ms or 0.0


def _speedups(loaded: Loaded, inputs: dict[str, Any], methods: Sequence[Method], ticket: Ticket) -> list[float]:
    found = []
    for _ in range(REPEATS):
        untouched = inference.time_once(loaded, inputs, [], 1, ticket).prefill_ms
        found.append(untouched / inference.time_once(loaded, inputs, methods, 1, ticket).prefill_ms)
    return found


def _progress(done: int, total: int, points: Sequence[Point]) -> Progress:
    """The points as they are now: the next turn changes them while these are drawn."""
    copied = [
        replace(each, values=[*each.values], equivalents=[*each.equivalents], speedups=[*each.speedups])
        for each in points
    ]
    return Progress(done, total, copied)


def _refuse(point: Point, error: BaseException) -> None:
    """Leave a setting out.

    Raises:
        InputError: it is the untouched model, beside which all others are measured.
    """
    point.refused = inference.refusal(error)
    if not point.setting.methods:
        raise InputError(f"the untouched model can't do this: {point.refused}") from error
    point.values, point.equivalents, point.speedups = [], [], []


def _methods(setting: Setting) -> list[Method]:
    return list(setting.methods) or spec.parse(NONE)
