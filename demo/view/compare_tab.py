"""The tab that says what is compared: the settings of both sides. What comes out stands above all tabs."""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from functools import partial
from typing import Any

import gradio as gr

from vtc.demo.jobs.inference import Answer
from vtc.demo.service import COMPARE, Service
from vtc.demo.view import html
from vtc.demo.view.events import (
    MODEL,
    OPENING,
    QUIET,
    is_end,
    shown,
    status,
    stopping,
    user_of,
)
from vtc.demo.view.panel import Panel
from vtc.demo.view.question import Asked
from vtc.demo.view.results import Results
from vtc.eval.cli.errors import InputError

_COPIES = ("Python", "command", "link")
#: Brings the answers into view, where they are not.
_SHOW = "() => { window.vtcShow() }"


class CompareTab:
    """Both sides.

    Attributes:
        panels: A and B.
        specs: their spec strings.
        outputs: what `open` gives values for.
        copies: buttons that copy the code, by what they copy.
    """

    def __init__(self, service: Service, asked: Asked, results: Results):
        self._service, self._results, self._go = service, results, asked.go
        with gr.Row(equal_height=True):
            self.panels = (Panel("A", OPENING["a"], service.limits), Panel("B", OPENING["b"], service.limits))
        again = gr.Button("Ask both with these settings", variant="primary", elem_id="vtc-ask-again")
        with gr.Row():
            self.copies = {
                name: gr.Button(f"Copy {name}", size="sm", elem_id=f"vtc-copy-{name}", min_width=120)
                for name in _COPIES
            }
        a, b = self.panels
        self.specs = [a.spec, b.spec]
        self.outputs = [*a.choice, *b.choice]
        asking = [asked.ask.click, again.click, asked.question.submit]
        gr.on(
            [*asking, asked.go.change],
            self._compare,
            [asked.key, asked.question, *self.specs, results.frame],
            results.outputs,
            trigger_mode="always_last",
            **MODEL,
        )
        gr.on(asking, None, js=_SHOW)
        asked.stop.click(stopping(service, COMPARE), None, None, **QUIET)
        results.tries.pick(self._tried, None, [*a.choice, asked.go], **QUIET)
        a.spec.change(fn=None, inputs=[a.spec], js="(spec) => { window.vtcPress(spec) }")
        self._look(asked)

    def _look(self, asked: Asked) -> None:
        """Pictures follow the sliders."""
        live: dict[str, Any] = {"trigger_mode": "always_last", "queue": False, **QUIET}
        results = self._results
        for number, side in enumerate(results.sides):
            given = [results.key, side.layer, results.frame]
            side.layer.input(partial(results.redraw, number), given, [side.kept], **live)
        a, b = results.sides
        results.frame.input(
            results.moved_frame,
            [asked.key, results.key, results.frame, a.layer, b.layer],
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

    def _tried(self, event: gr.EventData, request: gr.Request) -> tuple[Any, ...]:
        """A setting was picked for A: it is asked at once."""
        panel = self.panels[0]
        try:
            values = panel.show(panel.parse(str(dict(event._data or {}).get("spec", ""))))
        except (InputError, TypeError, ValueError) as error:
            return *panel.refuse(error), gr.skip()
        self._service.turns.stop(user_of(request), COMPARE)
        return *values, Asked.at_once()

    async def _compare(
        self,
        key: str,
        question: str,
        spec_a: str,
        spec_b: str,
        frame: float,
        event: gr.EventData,
        request: gr.Request,
    ) -> AsyncIterator[dict[Any, Any]]:
        answers: dict[int, Answer] = {}
        specs, results = [spec_a, spec_b], self._results
        # what everybody finds was asked for nobody; whoever presses the button has it asked anew
        opened = event.target is self._go and self._is_opening(key, question, specs)
        ended = False
        yield results.begun(self._media(key), question, specs)

        def start() -> AsyncGenerator[Any, None]:
            if opened:
                return self._service.opened()
            return self._service.compare(user_of(request), self._service.media(key), question, specs)

        def see(item: Any) -> dict[Any, Any]:
            if (said := status(item, "Stopped.")) is not None:
                return {results.status: said, **(results.unanswered(answers) if is_end(item) else {})}
            return results.seen(item, answers, specs, frame, opened)

        async with aclosing(shown(start, see)) as seen:
            async for item, changes in seen:
                ended = is_end(item)
                yield changes
        if not ended:
            yield {results.status: html.done()}

    def _is_opening(self, key: str, question: str, specs: list[str]) -> bool:
        asked = self._service.open_example(OPENING["example"])[1]
        return (key, question, specs) == (OPENING["example"], asked, [OPENING["a"], OPENING["b"]])

    def _media(self, key: str) -> Any:
        try:
            return self._service.media(key)
        except InputError:  # it is told when it is asked about
            return None
