"""The tab with all methods at one budget."""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

import gradio as gr

from vtc.demo.service import DEAL, Service
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

_LEAST = 0.02


class MethodsTab:
    """Its components.

    Attributes:
        linked: what a link carries of it: keep.
        outputs: what `open` gives values for.
    """

    def __init__(self, service: Service, asked: Asked):
        self._service = service
        with gr.Row():
            keep = gr.Slider(
                _LEAST,
                1.0,
                value=float(OPENING["keep"]),
                step=0.01,
                label="keep",
                info="share, for every method",
                scale=3,
                elem_id="vtc-deal-keep",
            )
            run = gr.Button("Show all methods", variant="primary", elem_id="vtc-deal", min_width=160)
            stop = gr.Button("Cancel", elem_id="vtc-deal-stop", min_width=90)
        progress = gr.HTML(elem_id="vtc-deal-progress")
        cards = gr.HTML(elem_id="vtc-cards")
        self.linked = self.outputs = [keep]
        run.click(self._deal, [asked.key, asked.question, keep], [progress, cards], **MODEL)
        self._drawn = [progress, cards]
        stop.click(stopping(service, DEAL), None, None, **QUIET)

    def open(self, given: Mapping[str, str], wrong: list[str]) -> list[Any]:
        """Values for `outputs` from a link; what can't be used is added to `wrong`."""
        text = given.get("keep", OPENING["keep"])
        try:
            keep = float(text)
        except ValueError:
            keep = 0.0
        if not _LEAST <= keep <= 1:
            wrong.append(f"all methods: keep={text!r}; give a share from {_LEAST} to 1")
            keep = float(OPENING["keep"])
        return [keep]

    def cleared(self) -> dict[Any, Any]:
        """The tab without results."""
        return dict.fromkeys(self._drawn, "")

    def values(self, keep: float) -> dict[str, str]:
        """What a link says of `linked`."""
        return {"keep": f"{keep:g}"}

    async def _deal(self, key: str, question: str, keep: float, request: gr.Request) -> AsyncIterator[tuple[Any, ...]]:
        yield html.progress(0, 1, "methods"), ""

        def start() -> AsyncGenerator[Any, None]:
            return self._service.deal(user_of(request), self._service.media(key), question, keep)

        async with aclosing(shown(start, _seen)) as seen:
            async for _, changes in seen:
                yield changes


def _seen(item: Any) -> tuple[Any, ...]:
    """What changes on the page by one piece of news."""
    if (said := status(item, CANCELLED)) is not None:
        return said, gr.skip()
    return html.progress(len(item.cards), item.total, "methods"), html.cards(item.cards)
