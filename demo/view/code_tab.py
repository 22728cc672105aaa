"""The tab with code that gives what is on the screen, and the link to it."""

from typing import Any

import gradio as gr

from vtc.demo import reproduce
from vtc.demo.service import Service
from vtc.demo.view.compare_tab import CompareTab
from vtc.demo.view.events import QUIET, address_of
from vtc.demo.view.question import Asked
from vtc.eval.cli.errors import InputError


class CodeTab:
    """Its components.

    Attributes:
        link: to what is on the screen.
    """

    def __init__(self, service: Service, asked: Asked, compare: CompareTab):
        self._service = service
        gr.HTML(
            "<p class='vtc-hint'>What is on the screen, to run elsewhere. An upload is not part of a link; "
            "in code it is read from a file of its name.</p>"
        )
        python = _code("Python", "python", "vtc-python")
        command = _code("Commands", "shell", "vtc-command")
        client = _code("This server's API", "python", "vtc-client")
        self.link = gr.Textbox(label="Link", interactive=False, elem_id="vtc-link", buttons=["copy"])
        given = [asked.key, asked.question, *compare.specs]
        gr.on(  # whenever one of them changes, and when the page is opened
            None,
            self._write,
            given,
            [python, command, client],
            queue=False,
            trigger_mode="always_last",
            **QUIET,
        )
        for name, box in (("Python", python), ("command", command)):
            copy = f"(text) => {{ window.vtcCopy(text, 'vtc-copy-{name}') }}"
            compare.copies[name].click(fn=None, inputs=[box], js=copy)
        compare.copies["link"].click(fn=None, js="() => { window.vtcCopy(window.location.href, 'vtc-copy-link') }")

    def _write(self, key: str, question: str, a: str, b: str, request: gr.Request) -> tuple[str, ...]:
        try:
            media = self._service.media(key)
        except InputError:
            return "", "", ""
        source, specs = self._service.source, [a, b]
        return (
            reproduce.python(source, media, question, specs),
            reproduce.commands(source, media, question, specs),
            reproduce.client(address_of(request), media, question, specs),
        )


def _code(label: str, language: Any, name: str) -> gr.Code:
    return gr.Code(
        language=language,
        label=label,
        interactive=False,
        elem_id=name,
        wrap_lines=True,
        show_line_numbers=False,
        lines=2,
    )
