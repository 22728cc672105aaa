"""The upper part of the page: the picture or video, and the question."""

from collections.abc import Mapping
from typing import Any

import gradio as gr

from vtc.demo import showing
from vtc.demo.asking import Media
from vtc.demo.events import OPENING, QUIET, upload
from vtc.demo.service import EXAMPLES, Service
from vtc.eval.errors import InputError
from vtc.eval.video_file import Video

_PICK = """
element.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-example]");
  if (!button) return;
  element.querySelectorAll("button").forEach((each) => each.setAttribute("aria-pressed", String(each === button)));
  trigger("pick", { name: button.dataset.example });
});
"""


class Asked:
    """What is asked about, and what is asked.

    Attributes:
        key: of the picture or video, by which the server knows it: what is on the page is what is asked about.
        question: what is asked.
        frame: of a video, that all pictures show.
        preview: the picture, or that frame.
        outputs: what `open` gives values for.
    """

    def __init__(self, service: Service):
        self._service = service
        media, question = service.open_example(OPENING["example"])
        self.key = gr.Textbox(OPENING["example"], visible="hidden")
        with gr.Row():
            with gr.Column(scale=2, min_width=280):
                self.preview = gr.HTML(showing.preview(media), elem_id="vtc-preview")
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
            with gr.Column(scale=3, min_width=320):
                gr.HTML("<p class='vtc-hint'>Pick an example, pictures or clips, or bring your own</p>")
                examples = showing.examples(EXAMPLES, media.example)
                self._examples = gr.HTML(examples, js_on_load=_PICK, elem_id="vtc-examples")
                self._upload = upload(
                    label="Your own picture or video", file_types=["image", "video"], height=130, elem_id="vtc-upload"
                )
                megabytes = service.limits.file_bytes / 2**20
                gr.HTML(f"<p class='vtc-hint'>Up to {megabytes:g} MiB. It is read, then removed from the disk.</p>")
                self._note = gr.HTML(elem_id="vtc-note")
                self.question = gr.Textbox(
                    question,
                    label="Question",
                    max_length=service.limits.question_chars,
                    max_lines=3,
                    elem_id="vtc-question",
                )
        self.outputs = [self.key, self.question, self.preview, self.frame, self._note, self._examples]
        self._examples.pick(self._picked, None, self.outputs[:-1], **QUIET)
        self._upload.upload(self._uploaded, [self._upload], [*self.outputs, self._upload], concurrency_limit=2, **QUIET)

    def open(self, given: Mapping[str, str], wrong: list[str]) -> list[Any]:
        """Values for `outputs` from a link; what can't be used is added to `wrong`, which is told."""
        media, question = self._service.open_example(OPENING["example"])
        try:
            if "example" in given:
                media, question = self._service.open_example(given["example"])
        except InputError as error:
            wrong.append(str(error))
        question = given.get("q", question)[: self._service.limits.question_chars]
        note = showing.refused(f"The link could not be used as it is. {' '.join(wrong)}") if wrong else ""
        return [
            media,
            question,
            showing.preview(media),
            _frames(media),
            note,
            showing.examples(EXAMPLES, media.example),
        ]

    def _picked(self, event: gr.EventData) -> tuple[Any, ...]:
        try:
            media, question = self._service.open_example(dict(event._data or {}).get("name", ""))
        except (InputError, TypeError, ValueError) as error:
            return gr.skip(), gr.skip(), gr.skip(), gr.skip(), showing.refused(str(error))
        return media.example, question, showing.preview(media), _frames(media), ""

    def _uploaded(self, path: str | None) -> tuple[Any, ...]:
        """The box is emptied, whatever came, so that it takes the next file."""
        if path is None:
            return (gr.skip(),) * 7
        try:
            media = self._service.open_upload(path)
        except InputError as error:
            return gr.skip(), gr.skip(), gr.skip(), gr.skip(), showing.refused(str(error)), gr.skip(), None
        key = self._service.keep_upload(media)
        return key, gr.skip(), showing.preview(media), _frames(media), "", showing.examples(EXAMPLES), None


def _frames(media: Media) -> Any:
    frames = len(media.shown.frames) if isinstance(media.shown, Video) else 1
    return gr.Slider(maximum=max(1, frames - 1), value=0, visible=frames > 1)
