"""The tab with all methods at one budget."""

from collections.abc import AsyncIterator, Mapping
from typing import Any

import gradio as gr

from vtc.demo import showing
from vtc.demo.asked import Asked
from vtc.demo.asking import Media
from vtc.demo.events import MODEL, OPENING, QUIET, user_of
from vtc.demo.service import Service
from vtc.demo.turns import Waiting
from vtc.eval.errors import InputError

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
        running = run.click(self._deal, [asked.media, asked.question, keep], [progress, cards], **MODEL)
        stop.click(showing.cancelled, None, [progress], cancels=[running], **QUIET)

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

    def values(self, keep: float) -> dict[str, str]:
        """What a link says of `linked`."""
        return {"keep": f"{keep:g}"}

    async def _deal(
        self, media: Media | None, question: str, keep: float, request: gr.Request
    ) -> AsyncIterator[tuple[Any, ...]]:
        yield showing.progress(0, 1, "methods"), ""
        try:
            async for item in self._service.deal(user_of(request), media, question, keep):
                if isinstance(item, Waiting):
                    yield showing.waiting(item.ahead), gr.skip()
                    continue
                yield showing.progress(len(item.cards), item.total, "methods"), showing.cards(item.cards)
        except InputError as error:
            yield showing.refused(str(error)), gr.skip()
