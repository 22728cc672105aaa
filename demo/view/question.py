"""What is asked about, and what is asked: an example, or a visitor's own."""

import secrets
from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr

from vtc.demo.jobs.inference import Media
from vtc.demo.service import EXAMPLES, Service
from vtc.demo.view import html
from vtc.demo.view.events import OPENING, QUIET, upload, user_of
from vtc.eval.cli.errors import InputError
from vtc.eval.media.video import Video

_PICK = """
element.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-example]");
  if (!button) return;
  element.querySelectorAll("button").forEach((each) => each.setAttribute("aria-pressed", String(each === button)));
  window.vtcShow();
  trigger("pick", { name: button.dataset.example });
});
"""


class Asked:
    """What is asked about, and what is asked.

    Attributes:
        key: of the picture or video, by which the server knows it: what is on the page is what is asked about.
        question: what is asked.
        ask, stop: buttons.
        go: whenever it changes, what is on the page is asked.
        preview: the picture, or a frame of the video.
        outputs: what `open` gives values for.
    """

    def __init__(self, service: Service, frame: gr.Slider, note: gr.HTML):
        self._service, self._frame, self._note = service, frame, note
        media, question = service.open_example(OPENING["example"])
        self.key = gr.Textbox(OPENING["example"], visible="hidden")
        self.go = gr.Textbox(visible="hidden")
        self.question = gr.Textbox(
            question,
            label="Question",
            max_length=service.limits.question_chars,
            max_lines=3,
            elem_id="vtc-question",
        )
        with gr.Row(elem_id="vtc-buttons"):
            self.ask = gr.Button("Ask both", variant="primary", elem_id="vtc-ask", scale=3, min_width=120)
            self.stop = gr.Button("Stop", elem_id="vtc-stop", scale=1, min_width=72)
        gr.HTML("<p class='vtc-hint'>Another picture or clip: it is asked at once</p>")
        examples = html.examples(EXAMPLES, media.example)
        self._examples = gr.HTML(examples, js_on_load=_PICK, elem_id="vtc-examples")
        megabytes = service.limits.file_bytes / 2**20
        gr.HTML(f"<p class='vtc-hint'>Or yours, up to {megabytes:g} MiB; it is read, then removed from the disk</p>")
        self._upload = upload(
            label="Your own picture or video",
            show_label=False,
            file_types=["image", "video"],
            height=64,
            elem_id="vtc-upload",
        )
        self.preview = gr.HTML(html.preview(media), elem_id="vtc-preview")
        self.outputs = [self.key, self.question, self.preview, self._frame, self._note, self._examples, self.go]

    @staticmethod
    def at_once() -> str:
        """A value of `go`: what is on the page is asked."""
        return secrets.token_hex(4)

    def connect(self, cleared: Callable[[Media], Mapping[Any, Any]]) -> None:
        """Answer picks and uploads; each also sets what is `cleared`, which is about what was there before."""
        self._cleared = cleared
        outputs = [*self.outputs, *cleared(self._service.open_example(OPENING["example"])[0])]
        self._examples.pick(self._picked, None, outputs, **QUIET)
        self._upload.upload(self._uploaded, [self._upload], [*outputs, self._upload], concurrency_limit=2, **QUIET)

    def open(self, given: Mapping[str, str], wrong: list[str]) -> list[Any]:
        """Values for `outputs` from a link; what can't be used is added to `wrong`, which is told."""
        media, question = self._service.open_example(OPENING["example"])
        try:
            if "example" in given:
                media, question = self._service.open_example(given["example"])
        except InputError as error:
            wrong.append(str(error))
        question = given.get("q", question)[: self._service.limits.question_chars]
        note = html.refused(f"The link could not be used as it is. {' '.join(wrong)}") if wrong else ""
        return [
            media.example,
            question,
            html.preview(media),
            _frames(media),
            note,
            html.examples(EXAMPLES, media.example),
            self.at_once(),
        ]

    def _picked(self, event: gr.EventData, request: gr.Request) -> dict[Any, Any]:
        try:
            media, question = self._service.open_example(dict(event._data or {}).get("name", ""))
        except (InputError, TypeError, ValueError) as error:
            return {self._note: html.refused(str(error))}
        self._service.turns.stop(user_of(request))
        asked = {self.key: media.example, self.question: question, self.go: self.at_once()}
        return {**self._shown(media), **asked}

    def _uploaded(self, path: str | None, request: gr.Request) -> dict[Any, Any]:
        """The box is emptied, whatever came, so that it takes the next file."""
        if path is None:
            return {self._upload: None}
        try:
            media = self._service.open_upload(path)
        except InputError as error:
            return {self._note: html.refused(str(error)), self._upload: None}
        self._service.turns.stop(user_of(request))
        key = self._service.keep_upload(media)
        return {**self._shown(media), self.key: key, self._examples: html.examples(EXAMPLES), self._upload: None}

    def _shown(self, media: Media) -> dict[Any, Any]:
        changed = {self.preview: html.preview(media), self._frame: _frames(media), self._note: ""}
        return {**self._cleared(media), **changed}


def _frames(media: Media) -> Any:
    frames = len(media.shown.frames) if isinstance(media.shown, Video) else 1
    return gr.Slider(maximum=max(1, frames - 1), value=0, visible=frames > 1)
