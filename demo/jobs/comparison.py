"""Two settings on the same question: answers, then times, in turns."""

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

from vtc.demo.jobs import inference
from vtc.demo.jobs.inference import Answer, Media, Models, Timing
from vtc.demo.jobs.turns import Ticket, Work
from vtc.eval.cli.errors import InputError
from vtc.eval.results import stats
from vtc.method.base import Method

#: Timed rounds of a comparison at most, and seconds after which no other begins.
ROUNDS, ROUNDS_S = 5, 2.0


@dataclass(frozen=True)
class Heard:
    """An answer so far."""

    side: int
    text: str


@dataclass(frozen=True)
class Answered:
    """A whole answer."""

    side: int
    answer: Answer


@dataclass(frozen=True)
class Refused:
    """A setting that does not go with the model or the picture; `reason` says why."""

    side: int
    reason: str


@dataclass(frozen=True)
class Timed:
    """Times of the rounds so far, by side; both are of the same rounds."""

    timings: dict[int, list[Timing]]


def compare(models: Models, media: Media, question: str, sides: Sequence[Sequence[Method]], longest: int) -> Work:
    """The same question under several settings.

    Answers come first, one after the other. Then all settings are timed in rounds, in turn, so that what else the
    machine does falls on all of them; the untouched model stands for "none".

    Args:
        models: the model.
        media: what is asked about.
        question: what is asked.
        sides: the settings.
        longest: tokens of an answer at most.

    Returns:
        Work that hands on `Heard`, `Answered` or `Refused` for each side, then `Timed`.

    Raises:
        InputError: by the work, where the question can't be asked.
    """

    def work(ticket: Ticket) -> Generator[Any, None, None]:
        loaded = models.of(media.kind)
        inputs = inference.inputs_of(loaded, media.shown, question)
        tokens: dict[int, int] = {}
        for side, methods in enumerate(sides):

            def heard(text: str, side: int = side) -> None:
                ticket.send(Heard(side, text))

            try:
                answer = inference.ask(loaded, media, inputs, methods, longest, ticket, heard)
                tokens[side] = answer.ids.shape[1]
                news: Answered | Refused = Answered(side, answer)
            except inference.REFUSALS as error:
                news = Refused(side, inference.refusal(error))
            yield news  # behind the error, whose frames hold what the model had computed
        timings: dict[int, list[Timing]] = {side: [] for side in tokens}
        spent = 0.0
        for number in range(ROUNDS if tokens else 0):
            if spent > ROUNDS_S:
                break
            begun = time.perf_counter()
            for side in list(tokens)[:: -1 if number % 2 else 1]:
                timings[side].append(inference.time_once(loaded, inputs, sides[side], tokens[side], ticket))
            spent += time.perf_counter() - begun
            yield Timed({side: list(each) for side, each in timings.items()})

    return work


@dataclass(frozen=True)
class Numbers:
    """What one side cost.

    Attributes:
        visual_tokens: that were given.
        kept_tokens: that enter the last decoder layer.
        equivalent_tokens: mean over decoder layers.
        prefill_ms: lower quartile, median, upper quartile.
        first_token_ms: median.
        decode_tokens_per_s: median; None where the answer is a single token.
        kv_bytes: keys and values after prefill.
        flops: of the prefill, tower included.
        selection_ms: of the decisions within the prefill, median.
        rounds: whose medians these are.
    """

    visual_tokens: int
    kept_tokens: int
    equivalent_tokens: float
    prefill_ms: tuple[float, float, float]
    first_token_ms: float
    decode_tokens_per_s: float | None
    kv_bytes: int
    flops: float
    selection_ms: float
    rounds: int


def numbers(answer: Answer, timings: Sequence[Timing]) -> Numbers:
    """Costs of an answer, from the timed rounds; from the run that gave it where there is none yet."""
    runs = list(timings) or [answer.timing]
    trace = answer.trace
    return Numbers(
        int(trace.original_tokens[0]),
        int(trace.tokens_per_layer[-1, 0]),
        float(trace.equivalent_tokens[0]),
        stats.quartiles([run.prefill_ms for run in runs]),
        inference.median([run.first_token_ms for run in runs]) or 0.0,
        inference.median([run.decode_tokens_per_s for run in runs]),
        answer.kv_bytes,
        trace.flops().total,
        inference.median([run.selection_ms for run in runs]) or 0.0,
        len(timings),
    )


def ratio(a: float | None, b: float | None) -> float | None:
    """A : B; None where it is not known."""
    return None if a is None or not b else a / b


def check_question(question: str, most: int) -> str:
    """The question without the space around it.

    Raises:
        InputError: it is empty, or too long.
    """
    question = " ".join(str(question or "").split())
    if not question:
        raise InputError("question is empty; type what to ask about it")
    if len(question) > most:
        raise InputError(f"question has {len(question)} characters; at most {most} are read, make it shorter")
    return question
