"""What the page and the API ask for: everything but how it looks."""

import dataclasses
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vtc.budget import Keep
from vtc.demo import comparing, controls, gallery, sweeping, uploads
from vtc.demo.asking import Answer, Media, Models, Timing
from vtc.demo.comparing import Numbers
from vtc.demo.limits import Limits
from vtc.demo.reproduce import Source
from vtc.demo.turns import Turns
from vtc.eval import arguments
from vtc.eval.benchmarks import example
from vtc.eval.errors import InputError
from vtc.eval.images import as_video
from vtc.eval.settings import make_settings

#: Bundled questions that are offered: pictures, then clips.
EXAMPLES = (
    "images/5",
    "images/6",
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

    def close(self) -> None:
        """End the model's thread."""
        self.turns.close()

    def open_example(self, name: str) -> tuple[Media, str]:
        """A bundled picture or video, and the question that comes with it.

        Raises:
            InputError: there is no such example.
        """
        _, question = example(str(name))
        (shown,) = question.shown()
        return Media(as_video(shown) if isinstance(shown, np.ndarray) else shown, name, name), question.text

    def open_upload(self, path: str | Path) -> Media:
        """What a visitor's file shows; the file is removed.

        Raises:
            InputError: it can't be used.
        """
        return uploads.read_upload(Path(path), self.limits, self.source.frames)

    async def compare(self, user: str, media: Media | None, question: str, specs: Sequence[str]) -> AsyncIterator[Any]:
        """What `comparing.compare` hands on, and `Waiting` before it.

        Raises:
            InputError: the question, a spec or what is asked about can't be used, or too many ask.
        """
        media, question = self._checked(media, question)
        sides = [self._methods(spec, side) for spec, side in zip(specs, "AB")]
        work = comparing.compare(self.models, media, question, sides, self.source.longest)
        async for item in self.turns.run(user, work):
            yield item

    async def sweep(
        self, user: str, media: Media | None, question: str, methods: Sequence[str], keeps: str, count: int
    ) -> AsyncIterator[Any]:
        """`sweeping.Progress` over methods × keeps, and `Waiting` before it.

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
            kind = "image" if media is None else media.kind
            work = sweeping.sweep_benchmark(self.models, kind, count, settings, self.source.longest)
        else:
            media, question = self._checked(media, question)
            work = sweeping.sweep_question(self.models, media, question, settings, self.source.longest)
        async for item in self.turns.run(user, work):
            yield item

    async def deal(self, user: str, media: Media | None, question: str, keep: float) -> AsyncIterator[Any]:
        """`gallery.Dealt`, and `Waiting` before it.

        Raises:
            InputError: as `compare`.
        """
        media, question = self._checked(media, question)
        (budget,) = self._keeps(str(float(keep)))
        work = gallery.deal(self.models, media, question, budget, self.source.longest)
        async for item in self.turns.run(user, work):
            yield item

    async def answers(self, user: str, media: Media, question: str, specs: Sequence[str]) -> dict[str, Any]:
        """The whole comparison at once, as JSON.

        Raises:
            InputError: as `compare`.
        """
        found: dict[int, Answer] = {}
        refused: dict[int, str] = {}
        timings: dict[int, list[Timing]] = {}
        async for item in self.compare(user, media, question, specs):
            if isinstance(item, comparing.Answered):
                found[item.side] = item.answer
            elif isinstance(item, comparing.Refused):
                refused[item.side] = item.reason
            elif isinstance(item, comparing.Timed):
                timings = item.timings
        costs = {side: comparing.numbers(answer, timings.get(side, ())) for side, answer in found.items()}
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

    def _checked(self, media: Media | None, question: str) -> tuple[Media, str]:
        if media is None:
            raise InputError("nothing is asked about; pick an example, or upload a picture or a video")
        return media, comparing.check_question(question, self.limits.question_chars)

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
    return {name: left / right if left is not None and right else None for name, (left, right) in pairs.items()}
