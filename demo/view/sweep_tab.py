"""The tab that sweeps over methods and budgets, and draws the curve while it runs."""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

import gradio as gr

from vtc.demo.service import MOST_QUESTIONS, SWEEP, Service
from vtc.demo.view import html
from vtc.demo.view.events import (
    CANCELLED,
    MODEL,
    OPENING,
    QUIET,
    shown,
    status,
    stopping,
    user_of,
)
from vtc.demo.view.question import Asked
from vtc.eval.results.settings import NONE
from vtc.method import registry

_THIS, _BENCHMARK = "this question", "benchmark questions"


class SweepTab:
    """Its components.

    Attributes:
        linked: what a link carries of it: methods, keeps, whose questions, how many.
        outputs: what `open` gives values for.
    """

    def __init__(self, service: Service, asked: Asked):
        self._service = service
        self._names = [name for name in registry.list_methods() if name != NONE]
        with gr.Row():
            methods = gr.Dropdown(
                self._names,
                value=OPENING["methods"].split(","),
                multiselect=True,
                label="Methods",
                scale=3,
                min_width=260,
            )
            keeps = gr.Textbox(
                OPENING["keeps"], label="keep", info="shares or counts", min_width=180, elem_id="vtc-sweep-keeps"
            )
        with gr.Row():
            about = gr.Radio([_THIS, _BENCHMARK], value=_THIS, label="Ask", elem_id="vtc-sweep-about", scale=2)
            count = gr.Slider(6, MOST_QUESTIONS, step=6, value=24, label="Benchmark questions", visible=False, scale=2)
        with gr.Row():
            run = gr.Button("Sweep", variant="primary", elem_id="vtc-sweep", min_width=140)
            stop = gr.Button("Cancel", elem_id="vtc-sweep-stop", min_width=90)
        progress = gr.HTML(elem_id="vtc-sweep-progress")
        drawn = gr.HTML(elem_id="vtc-curves")
        points = gr.HTML(elem_id="vtc-points", elem_classes="vtc-scroll")
        self.linked = self.outputs = [methods, keeps, about, count]
        about.input(lambda chosen: gr.Slider(visible=chosen != _THIS), [about], [count], queue=False, **QUIET)
        given = [asked.key, asked.question, methods, keeps, about, count]
        run.click(self._sweep, given, [progress, drawn, points], **MODEL)
        self._drawn = [progress, drawn, points]
        stop.click(stopping(service, SWEEP), None, None, **QUIET)

    def open(self, given: Mapping[str, str], wrong: list[str]) -> list[Any]:
        """Values for `outputs` from a link; what can't be used is added to `wrong`."""
        names = [name for name in given.get("methods", OPENING["methods"]).split(",") if name]
        if unknown := [name for name in names if name not in self._names]:
            wrong.append(f"sweep: unknown method {unknown[0]!r}")
            names = OPENING["methods"].split(",")
        count = given.get("questions", OPENING["questions"])
        if not count.isdecimal() or len(count) > 4 or int(count) > MOST_QUESTIONS:
            wrong.append(f"sweep: {count!r} questions; give 0 to {MOST_QUESTIONS}")
            count = OPENING["questions"]
        number = int(count)
        slider = gr.Slider(value=max(6, number) if number else 24, visible=number > 0)
        return [names, given.get("keeps", OPENING["keeps"])[:200], _BENCHMARK if number else _THIS, slider]

    def cleared(self) -> dict[Any, Any]:
        """The tab without results."""
        return dict.fromkeys(self._drawn, "")

    def values(self, methods: list[str], keeps: str, about: str, count: float) -> dict[str, str]:
        """What a link says of `linked`."""
        return {"methods": ",".join(methods), "keeps": keeps, "questions": "0" if about == _THIS else f"{count:.0f}"}

    async def _sweep(
        self,
        key: str,
        question: str,
        methods: list[str],
        keeps: str,
        about: str,
        count: float,
        request: gr.Request,
    ) -> AsyncIterator[tuple[Any, ...]]:
        of_benchmark = about != _THIS
        number = int(count) if of_benchmark else 0
        yield html.progress(0, 1, "turns"), "", ""

        def start() -> AsyncGenerator[Any, None]:
            return self._service.sweep(user_of(request), self._service.media(key), question, methods, keeps, number)

        async with aclosing(shown(start, lambda item: _seen(item, of_benchmark))) as seen:
            async for _, changes in seen:
                yield changes


def _seen(item: Any, of_benchmark: bool) -> tuple[Any, ...]:
    """What changes on the page by one piece of news."""
    if (said := status(item, CANCELLED)) is not None:
        return said, gr.skip(), gr.skip()
    bar = html.progress(item.done, item.total, "turns")
    return bar, html.chart(item.points, of_benchmark), html.points(item.points, of_benchmark)
