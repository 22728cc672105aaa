"""Asking a model under one setting: the answer token by token, what it cost, and what was kept."""

import functools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import StoppingCriteria

import vtc
from vtc import spec
from vtc.demo.jobs.generation import Checking, Hearing, Telling
from vtc.demo.jobs.turns import BusyError, Ticket
from vtc.eval import models
from vtc.eval.cli.errors import InputError
from vtc.eval.cli.machine import set_threads
from vtc.eval.media.contact_sheet import views_of_video
from vtc.eval.media.picture import View, seen_by_model, view_of_picture
from vtc.eval.media.video import Video
from vtc.eval.models import Loaded
from vtc.eval.results.settings import NONE
from vtc.eval.run.stopwatch import Stopwatch
from vtc.eval.tasks.task import Shown
from vtc.method.base import Method
from vtc.tracing import Trace

#: What a method may raise that does not go with a model or a picture.
REFUSALS = (TypeError, ValueError, RuntimeError)


@dataclass(frozen=True, eq=False)  # each is itself: Gradio looks whether it is another
class Media:
    """What is asked about.

    Attributes:
        shown: the picture, or the video.
        name: as the visitor knows it.
        example: its name where it is bundled; None for an upload.
    """

    shown: Image.Image | Video
    name: str
    example: str | None = None

    @property
    def size(self) -> int:
        """Bytes of its pixels."""
        if isinstance(self.shown, Video):
            return self.shown.frames.nbytes
        return 3 * self.shown.width * self.shown.height

    @property
    def kind(self) -> str:
        """Which it is: "image" or "video"."""
        return "video" if isinstance(self.shown, Video) else "image"


@dataclass(frozen=True)
class Timing:
    """Times of one run, in milliseconds, and of the tokens after the first one a rate."""

    prefill_ms: float
    first_token_ms: float
    decode_tokens_per_s: float | None
    selection_ms: float


@dataclass(frozen=True, eq=False)
class Answer:
    """One answer.

    Attributes:
        spec: the setting.
        text: what the model said.
        ids: LongTensor [1, T] of it.
        trace: of the prefill.
        kv_bytes: keys and values after prefill.
        timing: of the run that gave the answer.
        views: the picture, or each frame, with what was kept of it; empty where that can't be told.
    """

    spec: str
    text: str
    ids: Tensor
    trace: Trace
    kv_bytes: int
    timing: Timing
    views: tuple[View, ...]

    @property
    def size(self) -> int:
        """Bytes of the pixels of its views."""
        return sum(3 * view.picture.width * view.picture.height for view in self.views)


class Models:
    """The model that is asked: one for all, or of the bundled ones that for pictures and that for videos.

    Args:
        args: of `add_model_arguments`.
    """

    def __init__(self, args: Any):
        self.name = args.model
        self._args = args
        self._load = functools.cache(self._loaded)

    def of(self, kind: str) -> Loaded:
        """The model for an "image" or a "video", loaded when it is first asked for.

        Raises:
            InputError: it can't be loaded.
        """
        return self._load(kind if self.name == models.EMBEDDED else "image")

    def _loaded(self, kind: str) -> Loaded:
        args = self._args
        set_threads(args.model, args.threads)
        loaded = models.load(args.model, args.dtype, args.device, args.attn, kind)
        self._warm_up(loaded, kind)
        return loaded

    def _warm_up(self, loaded: Loaded, kind: str) -> None:
        from vtc.eval.tasks.benchmarks import example

        _, question = example("images/0" if kind == "image" else "video/0")
        inputs = inputs_of(loaded, question.shown()[0], question.text)
        for _ in range(2):
            loaded.model.generate(**inputs, max_new_tokens=2, do_sample=False, num_beams=1)


def inputs_of(loaded: Loaded, shown: Shown, question: str) -> dict[str, Any]:
    """What the model takes for one question about one picture or video.

    Raises:
        InputError: its processor takes no such thing, or the question can't be asked in it.
    """
    try:
        inputs = loaded.inputs([[shown]], [question])
    except InputError:
        raise
    except (TypeError, ValueError, IndexError, KeyError) as error:
        raise InputError(f"question {question!r} can't be asked ({_first_line(error)}); word it otherwise") from None
    if not any(name.startswith("pixel_values") for name in inputs):
        kind = "pictures" if not isinstance(shown, Video) else "videos"
        raise InputError(f"{type(loaded.processor).__name__} takes no {kind}; ask about something else")
    return inputs


def generate(
    loaded: Loaded, inputs: dict[str, Any], tokens: int, ticket: Ticket, *watches: StoppingCriteria, **hooks: Any
) -> Tensor:
    """Greedy answers of at most so many tokens; `ticket` is looked at after each."""
    criteria = [*watches, Checking(ticket)]
    return loaded.model.generate(
        **inputs, max_new_tokens=tokens, do_sample=False, num_beams=1, stopping_criteria=criteria, **hooks
    )


def ask(
    loaded: Loaded,
    media: Media,
    inputs: dict[str, Any],
    methods: Sequence[Method],
    longest: int,
    ticket: Ticket,
    heard: Callable[[str], None] = lambda text: None,
) -> Answer:
    """One answer under a setting.

    Args:
        loaded: the model; it is given back as it was.
        media: what is asked about, for the views.
        inputs: of `inputs_of`.
        methods: the setting; "none" is a method too.
        longest: tokens of the answer at most.
        ticket: is looked at after each token.
        heard: is called with the answer so far after each token.

    Raises:
        TypeError, ValueError: the setting can't be used with the model.
    """
    model = loaded.model
    with vtc.patched(model, methods):
        with Stopwatch(loaded) as watch:
            sequences = generate(loaded, inputs, longest, ticket, watch, streamer=Hearing(loaded.processor, heard))
        trace = vtc.trace(model)
    return Answer(
        spec.to_string(methods),
        loaded.answers(sequences, inputs)[0],
        sequences[:, inputs["input_ids"].shape[1] :],
        trace,
        watch.kv_bytes or 0,
        _timing(watch, trace.selection_ms),
        _views(loaded, media, inputs, trace),
    )


def time_once(loaded: Loaded, inputs: dict[str, Any], methods: Sequence[Method], tokens: int, ticket: Ticket) -> Timing:
    """The same again, for the time alone; the untouched model where the setting is "none"."""

    def run() -> Stopwatch:
        with Stopwatch(loaded) as watch:
            generate(loaded, inputs, tokens, ticket, watch)
        return watch

    if all(method.name == NONE for method in methods):
        return _timing(run(), 0.0)
    with vtc.patched(loaded.model, methods):
        return _timing(run(), vtc.trace(loaded.model).selection_ms)


def probability(
    loaded: Loaded, inputs: dict[str, Any], methods: Sequence[Method], answer: Tensor, ticket: Ticket
) -> float:
    """How likely an answer is under a setting: the geometric mean of its tokens' probabilities, in [0, 1].

    Args:
        loaded: the model.
        inputs: of `inputs_of`.
        methods: the setting.
        answer: LongTensor [1, T], its tokens.
        ticket: is looked at after each token.
    """
    told = Telling(answer[0])
    with vtc.patched(loaded.model, methods):
        generate(loaded, inputs, answer.shape[1], ticket, logits_processor=[told])
    return float(torch.stack(told.logarithms).mean().exp())


def median(values: Sequence[float | None]) -> float | None:
    """The median of what is known."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def said(error: BaseException) -> str:
    """A refusal as a visitor reads it: those that are meant to be read, without their type."""
    text = _first_line(error)
    return text if isinstance(error, ValueError | TypeError) and text else f"{type(error).__name__}: {text}"


def refusal(error: BaseException) -> str:
    """Why a setting, a model and a picture don't go together.

    Raises:
        BaseException: the error itself, where it says instead that time is up.
    """
    if isinstance(error, BusyError):
        raise error
    return said(error)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


def _timing(watch: Stopwatch, selection_ms: float) -> Timing:
    decoded = 1e3 * watch.decode_steps / watch.decode_ms if watch.decode_steps > 0 and watch.decode_ms else None
    return Timing(watch.prefill_ms or 0.0, watch.first_token_ms or 0.0, decoded, selection_ms)


def _views(loaded: Loaded, media: Media, inputs: dict[str, Any], trace: Trace) -> tuple[View, ...]:
    try:
        if isinstance(media.shown, Video):
            return tuple(views_of_video(media.shown, inputs, loaded.processor, trace.images))
        return (view_of_picture(seen_by_model(media.shown, inputs, loaded.processor), trace.images[0]),)
    except (ValueError, IndexError):  # which patches are whose can't be told
        return ()
