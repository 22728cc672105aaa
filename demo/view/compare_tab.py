"""The tab that compares: two sides, and what each costs."""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

import gradio as gr

from vtc.demo.jobs import comparison
from vtc.demo.jobs.inference import Answer, Timing
from vtc.demo.service import COMPARE, Service
from vtc.demo.view import html
from vtc.demo.view.events import (
    MODEL,
    OPENING,
    QUIET,
    Ended,
    Trouble,
    shown,
    status,
    stopping,
    user_of,
)
from vtc.demo.view.panel import Panel
from vtc.demo.view.question import Asked
from vtc.eval.cli.errors import InputError

_COPIES = ("Python", "command", "link")


class CompareTab:
    """Both sides.

    Attributes:
        panels: A and B.
        specs: their spec strings.
        outputs: what `open` gives values for.
        copies: buttons that copy the code, by what they copy.
    """

    def __init__(self, service: Service, asked: Asked):
        self._service = service
        self._answers = gr.Textbox(visible="hidden")  # the key of what is shown
        with gr.Row(equal_height=True):
            self.panels = (Panel("A", OPENING["a"], service.limits), Panel("B", OPENING["b"], service.limits))
        with gr.Row():
            ask = gr.Button("Ask both", variant="primary", elem_id="vtc-ask", scale=3, min_width=160)
            stop = gr.Button("Stop", elem_id="vtc-stop", scale=1, min_width=90)
        self._status = gr.HTML(elem_id="vtc-status")
        with gr.Row(equal_height=True):
            for panel in self.panels:
                panel.build_result()
        self._numbers = gr.HTML(elem_id="vtc-numbers", elem_classes="vtc-scroll")
        with gr.Row():
            self.copies = {
                name: gr.Button(f"Copy {name}", size="sm", elem_id=f"vtc-copy-{name}", min_width=120)
                for name in _COPIES
            }
        a, b = self.panels
        self.specs = [a.spec, b.spec]
        self.outputs = [*a.choice, *b.choice]
        outputs = [a.answer, a.kept, a.layer, b.answer, b.kept, b.layer, self._numbers, self._status, self._answers]
        gr.on(
            [ask.click, asked.question.submit],
            self._compare,
            [asked.key, asked.question, *self.specs, asked.frame],
            outputs,
            trigger_mode="always_last",
            **MODEL,
        )
        stop.click(stopping(service, COMPARE), None, None, **QUIET)
        live: dict[str, Any] = {"trigger_mode": "always_last", "queue": False, **QUIET}
        for side, panel in enumerate(self.panels):
            panel.layer.input(self._redrawing(side), [self._answers, panel.layer, asked.frame], [panel.kept], **live)
        asked.frame.input(
            self._moved_frame,
            [asked.key, self._answers, asked.frame, a.layer, b.layer],
            [asked.preview, a.kept, b.kept],
            **live,
        )

    def open(self, given: Mapping[str, str], wrong: list[str]) -> list[Any]:
        """Values for `outputs` from a link; what can't be used is added to `wrong`."""
        values: list[Any] = []
        for name, panel in zip("ab", self.panels):
            methods = panel.parse(OPENING[name])
            try:
                methods = panel.parse(given.get(name, OPENING[name]))
            except InputError as error:
                wrong.append(f"{panel.letter}: {error}")
            values += panel.show(methods)
        return values

    def cleared(self) -> dict[Any, Any]:
        """The tab without answers."""
        blank: dict[Any, Any] = {each: "" for panel in self.panels for each in (panel.answer, panel.kept)}
        return {**blank, self._numbers: "", self._status: "", self._answers: ""}

    async def _compare(
        self, key: str, question: str, spec_a: str, spec_b: str, frame: float, request: gr.Request
    ) -> AsyncIterator[dict[Any, Any]]:
        answers: dict[int, Answer] = {}
        specs = [spec_a, spec_b]
        ended = False
        yield self.cleared()

        def start() -> AsyncGenerator[Any, None]:
            return self._service.compare(user_of(request), self._service.media(key), question, specs)

        async with aclosing(shown(start, lambda item: self._seen(item, answers, specs, frame))) as seen:
            async for item, changes in seen:
                ended = isinstance(item, Ended | Trouble)
                yield changes
        if not ended:
            yield {self._status: html.done()}

    def _seen(self, item: Any, answers: dict[int, Answer], specs: list[str], frame: float) -> dict[Any, Any]:
        """What changes on the page by one piece of news."""
        if (said := status(item, "Stopped.")) is not None:
            return {self._status: said}
        if isinstance(item, comparison.Timed):
            return {self._numbers: _numbers(answers, specs, item.timings)}
        panel = self.panels[item.side]
        if isinstance(item, comparison.Heard):
            return {panel.answer: html.said(item.text, panel.letter, done=False), self._status: ""}
        if isinstance(item, comparison.Refused):
            return {panel.answer: html.refused(item.reason), self._status: ""}
        answer = answers[item.side] = item.answer
        layers = len(answer.trace.tokens_per_layer)
        return {
            panel.answer: html.said(answer.text, panel.letter),
            panel.kept: html.kept(answer, panel.letter, layers, frame),
            panel.layer: gr.Slider(maximum=layers, value=layers),
            self._numbers: _numbers(answers, specs, {}),
            self._answers: self._service.keep_answers(answers),
            self._status: "",
        }

    def _moved_frame(self, key: str, answers: str, frame: float, *layers: float) -> tuple[str, str, str]:
        found = self._service.answers_of(answers)
        a, b = (_kept(found, side, layer, frame) for side, layer in enumerate(layers))
        try:
            return html.preview(self._service.media(key), frame), a, b
        except InputError as error:
            return html.refused(str(error)), a, b

    def _redrawing(self, side: int) -> Any:
        def redraw(answers: str, layer: float, frame: float) -> str:
            found = self._service.answers_of(answers)
            return _kept(found, side, layer, frame) or html.hint("These answers are gone; ask again.")

        return redraw


def _kept(answers: dict[int, Answer], side: int, layer: float, frame: float) -> str:
    return html.kept(answers[side], html.SIDES[side], layer, frame) if side in answers else ""


def _numbers(answers: dict[int, Answer], specs: list[str], timings: dict[int, list[Timing]]) -> str:
    costs = [comparison.numbers(answers[i], timings.get(i, ())) if i in answers else None for i in (0, 1)]
    return html.numbers(costs, specs)
