"""The first thing on the page: what was asked, both pictures, both answers, and what it comes to."""

from collections.abc import Mapping
from typing import Any

import gradio as gr

from vtc.demo.jobs import comparison
from vtc.demo.jobs.inference import Answer, Media, Timing
from vtc.demo.service import OPENED, Service
from vtc.demo.view import html, outcome
from vtc.demo.view.events import OPENING
from vtc.eval.cli.errors import InputError

#: What stands where an answer will be.
COMING, ASK = "The model is answering …", "Type a question, then press “Ask both”."

_PICK = """
element.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-spec]");
  if (!button) return;
  window.vtcPress(button.dataset.spec);
  window.vtcShow();
  trigger("pick", { spec: button.dataset.spec });
});
"""


class Side:
    """Where one side's answer is shown.

    Attributes:
        letter: "A" or "B".
        heading, kept, answer: its setting, its picture, what it said.
        layer: in front of which decoder layer the picture is shown; only where that makes a difference.
    """

    def __init__(self, letter: str, media: Media):
        self.letter = letter
        name = letter.lower()
        with gr.Column(elem_classes=["vtc-result", f"vtc-side-{name}"], min_width=0):
            self.heading = gr.HTML(outcome.heading(letter, OPENING[name]), elem_id=f"vtc-heading-{name}")
            self.kept = gr.HTML(html.preview(media), elem_id=f"vtc-kept-{name}")
            self.answer = gr.HTML(html.hint(COMING), elem_id=f"vtc-answer-{name}")
            self.layer = gr.Slider(
                0, 1, step=1, value=0, label=f"{letter}: decoder layer", visible=False, elem_id=f"vtc-layer-{name}"
            )

    def blank(self, media: Media | None, said: str) -> dict[Any, Any]:
        """Without an answer; `said` stands in its place."""
        picture = "" if media is None else html.preview(media)
        return {self.kept: picture, self.answer: html.hint(said), self.layer: gr.Slider(visible=False)}


class Results:
    """Its components.

    Attributes:
        sides: A and B.
        frame: of a video, that all pictures show.
        key: of the answers that are shown, by which the server knows them.
        status: what goes on.
        note: what of a link or an upload can't be used.
        tries: buttons that set A.
        outputs: what a comparison changes.
    """

    def __init__(self, service: Service):
        self._service = service
        media, question = service.open_example(OPENING["example"])
        self.key = gr.Textbox(visible="hidden")
        with gr.Row(elem_id="vtc-ask-line"):
            self._asked = gr.HTML(outcome.asked(question), elem_id="vtc-asked")
            self.status = gr.HTML(html.hint(COMING), elem_id="vtc-status")
        self.note = gr.HTML(elem_id="vtc-note")
        with gr.Row(elem_id="vtc-sides"):
            self.sides = (Side("A", media), Side("B", media))
        self._verdict = gr.HTML(outcome.pending(), elem_id="vtc-verdict")
        gr.HTML(f"<p class='vtc-hint'>{outcome.LEGEND}</p>", elem_id="vtc-legend")
        self.frame = gr.Slider(
            0,
            7,
            step=1,
            value=0,
            label="Frame",
            info="of the video, in all pictures",
            visible=False,
            elem_id="vtc-frame",
        )
        self.tries = gr.HTML(outcome.tries(OPENING["a"]), js_on_load=_PICK, elem_id="vtc-tries")
        with gr.Accordion("All numbers", open=False, elem_id="vtc-all-numbers"):
            self._numbers = gr.HTML(elem_id="vtc-numbers", elem_classes="vtc-scroll")
        shown = [part for side in self.sides for part in (side.heading, side.kept, side.answer, side.layer)]
        self.outputs = [self._asked, self.status, *shown, self._verdict, self._numbers, self.key]

    def begun(self, media: Media | None, question: str, specs: list[str]) -> dict[Any, Any]:
        """What is shown once it was asked; `media` is None where it is gone."""
        heads = {side.heading: outcome.heading(side.letter, spec) for side, spec in zip(self.sides, specs)}
        said = {self._asked: outcome.asked(question), self.status: html.hint("Answering …")}
        return {**self.cleared(media, COMING), **heads, **said}

    def cleared(self, media: Media | None, said: str = ASK) -> dict[Any, Any]:
        """Without answers; `said` stands in their place."""
        blank: dict[Any, Any] = {}
        for side in self.sides:
            blank |= {side.heading: outcome.heading(side.letter), **side.blank(media, said)}
        texts = (self._asked, self.status, self._numbers, self.key)
        return {**blank, **dict.fromkeys(texts, ""), self._verdict: outcome.pending()}

    def unanswered(self, answers: Mapping[int, Answer]) -> dict[Any, Any]:
        """Both sides where it ended early; those that answered stay."""
        left = [side for number, side in enumerate(self.sides) if number not in answers]
        return {side.answer: html.hint("No answer.") for side in left}

    def seen(
        self, item: Any, answers: dict[int, Answer], specs: list[str], frame: float, opened: bool
    ) -> dict[Any, Any]:
        """What changes by one piece of news.

        Args:
            item: of a comparison.
            answers: by side, so far; this one is put among them.
            specs: of both sides.
            frame: of a video, that is shown.
            opened: whether these are the answers that everybody finds.
        """
        if isinstance(item, comparison.Timed):
            return self._costs(answers, specs, item.timings)
        side = self.sides[item.side]
        if isinstance(item, comparison.Heard):
            return {side.answer: html.said(item.text, side.letter, done=False)}
        if isinstance(item, comparison.Refused):
            return {side.answer: html.refused(item.reason)}
        answer = answers[item.side] = item.answer
        layers = len(answer.trace.tokens_per_layer)
        return {
            side.answer: html.said(answer.text, side.letter),
            side.kept: html.kept(answer, side.letter, layers, frame),
            side.layer: gr.Slider(maximum=layers, value=layers, visible=html.changes(answer)),
            self.key: OPENED if opened else self._service.keep_answers(answers),
            self.status: html.hint("Answering …" if len(answers) < 2 else "Taking times …"),
            **self._costs(answers, specs, {}),
        }

    def redraw(self, number: int, answers: str, layer: float, frame: float) -> str:
        """One side's picture in front of another layer."""
        found = self._service.answers_of(answers)
        return self._kept(found, number, layer, frame) or html.hint("These answers are gone; ask again.")

    def moved_frame(self, key: str, answers: str, frame: float, *layers: float) -> tuple[str, str, str]:
        """The preview and both pictures, of another frame."""
        found = self._service.answers_of(answers)
        try:
            media = self._service.media(key)
        except InputError as error:
            return html.refused(str(error)), gr.skip(), gr.skip()
        shown = html.preview(media, frame)
        a, b = (self._kept(found, number, layer, frame) or shown for number, layer in enumerate(layers))
        return shown, a, b

    def _kept(self, answers: Mapping[int, Answer], number: int, layer: float, frame: float) -> str:
        return html.kept(answers[number], html.SIDES[number], layer, frame) if number in answers else ""

    def _costs(self, answers: dict[int, Answer], specs: list[str], timings: dict[int, list[Timing]]) -> dict[Any, Any]:
        costs = {side: comparison.numbers(answer, timings.get(side, ())) for side, answer in answers.items()}
        table = html.numbers([costs.get(side) for side in (0, 1)], specs)
        return {self._numbers: table, self._verdict: outcome.verdict(answers, costs)}
