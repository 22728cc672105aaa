"""What the page and the API ask for: everything but how it looks."""

import dataclasses
import functools
import os
import secrets
import threading
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

import numpy as np

from vtc.demo import controls
from vtc.demo.jobs import comparison, gallery, sweep
from vtc.demo.jobs.comparison import Numbers
from vtc.demo.jobs.inference import Answer, Media, Models, Timing
from vtc.demo.jobs.shared import Shared
from vtc.demo.jobs.turns import Turns, Waiting
from vtc.demo.reproduce import Source
from vtc.demo.visitors import uploads
from vtc.demo.visitors.limits import Limits
from vtc.demo.visitors.store import OnceEach, Store
from vtc.eval.cli import arguments
from vtc.eval.cli.errors import InputError
from vtc.eval.media.images import as_video
from vtc.eval.results.settings import make_settings
from vtc.eval.tasks.benchmarks import example
from vtc.method.budget import Keep

#: Bundled questions that are offered: pictures, then clips.
EXAMPLES = (
    "images/6",
    "images/5",
    "images/1",
    "images/3",
    "images/7",
    "images/0",
    "video/0",
    "video/1",
    "video/3",
    "video/4",
)
#: Most questions of a sweep over the benchmark, and most settings of any sweep.
MOST_QUESTIONS, MOST_SETTINGS = 90, 40
#: Uploads that are read at once, and latest ones that equal uploads are not read again for.
DECODERS, KEPT_DECODED = 2, 8
#: Kinds of work, by which a visitor stops it.
COMPARE, SWEEP, DEAL = "compare", "sweep", "deal"
#: What a key of an upload starts with.
UPLOAD = "upload:"
#: The key of the answers that the page opens with.
OPENED = "opened"


class Service:
    """The demo without its page.

    Args:
        args: of `vtc demo`.
        limits: what visitors may ask.
    """

    def __init__(self, args: Any, limits: Limits):
        self.limits = limits
        self.source = Source.of(args)
        self.models = Models(args)
        self.turns = Turns(limits.jobs, limits.wait_s, limits.work_s)
        self._kept = Store(limits.kept_bytes, limits.kept_s)
        self._decoding = threading.BoundedSemaphore(DECODERS)
        self._decoded = OnceEach(KEPT_DECODED)
        self._opened: Shared | None = None

    def begin(self, example: str, specs: Sequence[str]) -> None:
        """Ask what the page opens with, once for all visitors, before any of them is there.

        Args:
            example: its name.
            specs: of both sides.
        """
        media, question = self.open_example(example)
        user = secrets.token_hex(8)  # whom no visitor can be: they stop their own turns
        self._opened = Shared(lambda: self._whole(self.compare(user, media, question, specs)))

    def opened(self) -> AsyncGenerator[Any, None]:
        """What `begin` found out, and finds out still: as `compare`, without what is half said.

        Raises:
            InputError: it was never begun.
        """
        if self._opened is None:
            raise InputError("nothing was asked yet; press “Ask both”")
        return self._opened.follow()

    def close(self) -> None:
        """End the model's thread."""
        self.turns.close()
        if self._opened is not None:
            self._opened.close()

    def open_example(self, name: str) -> tuple[Media, str]:
        """A bundled picture or video, and the question that comes with it.

        Raises:
            InputError: there is no such example.
        """
        return _example(str(name))

    def open_upload(self, path: str | Path) -> Media:
        """What a visitor's file shows; the file is removed.

        Equal files of several visitors land in the same place: whoever asks while the first is read, or soon after,
        gets what that one got.

        Raises:
            InputError: it can't be used.
        """

        def read() -> Media:
            with self._decoding:
                return uploads.read_upload(Path(path), self.limits, self.source.frames)

        media = self._decoded.get(str(path), read)
        with suppress(OSError):
            os.unlink(path)  # the same again, which was not read again
        return media

    def keep_upload(self, media: Media) -> str:
        """The key under which `media` finds it."""
        return UPLOAD + self._kept.put(media, media.size)

    def media(self, key: str) -> Media:
        """What a key stands for: that of an upload, or an example's name.

        Raises:
            InputError: there is no such example, or the upload was not looked at for long.
        """
        key = str(key or "")
        if not key.startswith(UPLOAD):
            return self.open_example(key)[0]
        found = self._kept.get(key.removeprefix(UPLOAD))
        if found is None:
            raise InputError("this upload was not looked at for long and is gone; upload it again")
        return found

    def keep_answers(self, answers: Mapping[int, Answer]) -> str:
        """The key under which `answers_of` finds them."""
        return self._kept.put(dict(answers), sum(answer.size for answer in answers.values()))

    def answers_of(self, key: str) -> dict[int, Answer]:
        """Answers by side; none where they were not looked at for long."""
        if key == OPENED and self._opened is not None:
            return {item.side: item.answer for item in self._opened.items if isinstance(item, comparison.Answered)}
        return self._kept.get(key) or {}

    def compare(self, user: str, media: Media, question: str, specs: Sequence[str]) -> AsyncGenerator[Any, None]:
        """What `comparison.compare` hands on, and `Waiting` before it.

        Raises:
            InputError: the question, a spec or what is asked about can't be used, or too many ask.
        """
        question = comparison.check_question(question, self.limits.question_chars)
        sides = [self._methods(spec, side) for spec, side in zip(specs, "AB")]
        work = comparison.compare(self.models, media, question, sides, self.source.longest)
        return self.turns.run(user, work, COMPARE)

    def sweep(
        self, user: str, media: Media, question: str, methods: Sequence[str], keeps: str, count: int
    ) -> AsyncGenerator[Any, None]:
        """`sweep.Progress` over methods × keeps, and `Waiting` before it.

        Args:
            user: whose turns are taken.
            media: what is asked about; with `count`, only its kind is looked at.
            question: what is asked.
            methods: names.
            keeps: budgets, separated by commas.
            count: questions of the bundled benchmark; 0: the one that is given.

        Raises:
            InputError: as `compare`; too many settings or questions.
        """
        if not methods:
            raise InputError("no method is chosen; choose at least one")
        settings = make_settings(list(methods), self._keeps(keeps))
        if len(settings) > MOST_SETTINGS:
            raise InputError(f"{len(settings)} settings are too many for here; choose at most {MOST_SETTINGS}")
        if count:
            if not 1 <= count <= MOST_QUESTIONS:
                raise InputError(f"{count} questions; give 1 to {MOST_QUESTIONS}")
            work = sweep.sweep_benchmark(self.models, media.kind, count, settings, self.source.longest)
        else:
            question = comparison.check_question(question, self.limits.question_chars)
            work = sweep.sweep_question(self.models, media, question, settings, self.source.longest)
        return self.turns.run(user, work, SWEEP)

    def deal(self, user: str, media: Media, question: str, keep: float) -> AsyncGenerator[Any, None]:
        """`gallery.Dealt`, and `Waiting` before it.

        Raises:
            InputError: as `compare`.
        """
        question = comparison.check_question(question, self.limits.question_chars)
        (budget,) = self._keeps(str(float(keep)))
        work = gallery.deal(self.models, media, question, budget, self.source.longest)
        return self.turns.run(user, work, DEAL)

    async def answers(self, user: str, media: Media, question: str, specs: Sequence[str]) -> dict[str, Any]:
        """The whole comparison at once, as JSON.

        Raises:
            InputError: as `compare`.
        """
        found: dict[int, Answer] = {}
        refused: dict[int, str] = {}
        timings: dict[int, list[Timing]] = {}
        async with aclosing(self.compare(user, media, question, specs)) as run:
            async for item in run:
                if isinstance(item, comparison.Answered):
                    found[item.side] = item.answer
                elif isinstance(item, comparison.Refused):
                    refused[item.side] = item.reason
                elif isinstance(item, comparison.Timed):
                    timings = item.timings
        costs = {side: comparison.numbers(answer, timings.get(side, ())) for side, answer in found.items()}
        made: dict[str, Any] = {}
        for side, letter in enumerate("ab"):
            if side in refused:
                made[letter] = {"spec": specs[side], "refused": refused[side]}
            else:
                made[letter] = {
                    "spec": found[side].spec,
                    "answer": found[side].text,
                    "tokens_per_layer": found[side].trace.tokens_per_layer[:, 0].tolist(),
                    **dataclasses.asdict(costs[side]),
                }
        made["a_to_b"] = _ratios(costs[0], costs[1]) if len(costs) == 2 else None
        return made

    @staticmethod
    async def _whole(run: AsyncGenerator[Any, None]) -> AsyncGenerator[Any, None]:
        """Answers, then the last of the times."""
        timed: comparison.Timed | None = None
        async with aclosing(run):
            async for item in run:
                if isinstance(item, comparison.Timed):
                    timed = item
                elif not isinstance(item, comparison.Heard | Waiting):
                    yield item
        if timed is not None:
            yield timed

    def _methods(self, text: str, side: str) -> list[Any]:
        try:
            return controls.parse(text, self.limits.spec_chars)
        except InputError as error:
            raise InputError(f"{side}: {error}") from None

    def _keeps(self, text: str) -> list[Keep]:
        import argparse

        try:
            return arguments.keeps(text)
        except argparse.ArgumentTypeError as error:
            raise InputError(f"keep: {error}") from None


@functools.lru_cache(maxsize=64)
def _example(name: str) -> tuple[Media, str]:
    _, question = example(name)
    (shown,) = question.shown()
    return Media(as_video(shown) if isinstance(shown, np.ndarray) else shown, name, name), question.text


def _ratios(a: Numbers, b: Numbers) -> dict[str, float | None]:
    """A : B of every number."""
    pairs = {
        "kept_tokens": (a.kept_tokens, b.kept_tokens),
        "equivalent_tokens": (a.equivalent_tokens, b.equivalent_tokens),
        "prefill_ms": (a.prefill_ms[1], b.prefill_ms[1]),
        "first_token_ms": (a.first_token_ms, b.first_token_ms),
        "decode_tokens_per_s": (a.decode_tokens_per_s, b.decode_tokens_per_s),
        "kv_bytes": (a.kv_bytes, b.kv_bytes),
        "flops": (a.flops, b.flops),
    }
    return {name: comparison.ratio(*pair) for name, pair in pairs.items()}
