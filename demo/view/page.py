"""The page: results first, then what is asked, four tabs, the API, and links that open it as it is."""

import asyncio
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from vtc.demo import reproduce
from vtc.demo.jobs.inference import Media
from vtc.demo.service import UPLOAD, Service
from vtc.demo.view.code_tab import CodeTab
from vtc.demo.view.compare_tab import CompareTab
from vtc.demo.view.events import OPENING, QUIET, upload
from vtc.demo.view.methods_tab import MethodsTab
from vtc.demo.view.question import Asked
from vtc.demo.view.results import Results
from vtc.demo.view.sweep_tab import SweepTab
from vtc.eval.cli.arguments import EMBEDDED
from vtc.eval.cli.errors import InputError

TITLE = "vtc demo: the same model, with fewer visual tokens"
TABS = {"compare": "Settings", "code": "Code", "sweep": "Sweep", "methods": "All methods"}
#: What this is, in a heading and a sentence.
_SAYS = (
    f"<h1>{TITLE}</h1>"
    "<p>The same weights answer the same question twice: A with part of the picture's tokens dropped or merged by a "
    "compression method, B with all of them unless you change it.</p>"
)

_HERE = Path(__file__).parent


def theme() -> gr.themes.Base:
    """Fonts of the visitor's system: nothing is fetched."""
    return gr.themes.Soft(
        primary_hue="blue",
        secondary_hue="blue",
        neutral_hue="slate",
        font=("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"),
        font_mono=("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"),
    ).set(  # what Gradio has is too pale to be read by everybody
        input_border_width="1px",
        input_border_color="*neutral_400",
        input_border_color_dark="*neutral_500",
        block_title_text_color="*neutral_700",
        block_title_text_color_dark="*neutral_200",
        block_title_background_fill="none",
        block_title_background_fill_dark="none",
        block_title_padding="0",
        block_label_text_color="*neutral_700",
        block_label_text_color_dark="*neutral_200",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        checkbox_label_background_fill_selected="*primary_600",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_hover_dark="*primary_700",
    )


def css() -> str:
    """The page's own style."""
    return (_HERE / "demo.css").read_text(encoding="utf-8")


def head() -> str:
    """The page's own script."""
    return f"<script>{(_HERE / 'page.js').read_text(encoding='utf-8')}</script>"


class Page:
    """Builds the page and answers its events.

    Attributes:
        blocks: of Gradio.
    """

    def __init__(self, service: Service):
        self._service = service
        with gr.Blocks(title=TITLE, analytics_enabled=False) as self.blocks:
            gr.HTML(_SAYS, elem_classes="vtc-title")
            with gr.Row(elem_id="vtc-top"):
                with gr.Column(elem_id="vtc-results", min_width=0):
                    self._results = Results(service)
                with gr.Column(elem_id="vtc-side", min_width=0):
                    self._asked = Asked(service, self._results.frame, self._results.note)
                    gr.HTML(_about(service.source.model), elem_id="vtc-model")
            with gr.Tabs(selected=OPENING["tab"], elem_id="vtc-tabs") as self._tabs:
                with _tab("compare") as compare:
                    self._compare = CompareTab(service, self._asked, self._results)
                with _tab("code") as code:
                    self._code = CodeTab(service, self._asked, self._compare)
                with _tab("sweep") as sweep:
                    self._sweep = SweepTab(service, self._asked)
                with _tab("methods") as methods:
                    self._methods = MethodsTab(service, self._asked)
            self._asked.connect(self._cleared)
            self._link([compare, code, sweep, methods])
            self._build_api()

    def _cleared(self, media: Media) -> dict[Any, Any]:
        """The page without what is about something else."""
        return {**self._results.cleared(media), **self._sweep.cleared(), **self._methods.cleared()}

    def _link(self, tabs: list[gr.Tab]) -> None:
        """The address bar follows the page, and the page what it is opened with."""
        tab, query = gr.Textbox(OPENING["tab"], visible="hidden"), gr.Textbox(visible="hidden")
        for name, each in zip(TABS, tabs):
            each.select(lambda name=name: name, None, [tab], queue=False, **QUIET)
        shown: list[Any] = [tab, self._asked.key, self._asked.question, *self._compare.specs]
        shown += [*self._sweep.linked, *self._methods.linked]
        live: dict[str, Any] = {"queue": False, "trigger_mode": "always_last", **QUIET}
        written = gr.on([each.change for each in shown], self._query, shown, [query], **live)
        written.then(fn=None, inputs=[query], outputs=[self._code.link], js="(query) => window.vtcLink(query)")
        self.blocks.load(fn=None, outputs=[self._code.link], js="() => window.location.href")
        parts = (self._compare, self._sweep, self._methods, self._asked)
        outputs = [*(each for part in parts for each in part.outputs), self._tabs, tab]
        self._linked = outputs
        self.blocks.load(self._opened, None, outputs, **QUIET)

    def _query(self, tab: str, key: str, question: str, a: str, b: str, *rest: Any) -> str:
        swept = len(self._sweep.linked)
        given = {"a": a, "b": b, "tab": tab, **self._sweep.values(*rest[:swept]), **self._methods.values(*rest[swept:])}
        return reproduce.query("" if key.startswith(UPLOAD) else key, question, given, OPENING)

    def _opened(self, request: gr.Request) -> list[Any]:
        """What a link says; what of it can't be used is told, and left as it was."""
        given, wrong = dict(request.query_params), list[str]()
        if not given:  # whoever is quick keeps what they chose while the page was loading
            return [Asked.at_once() if each is self._asked.go else gr.skip() for each in self._linked]
        values = [*self._compare.open(given, wrong), *self._sweep.open(given, wrong), *self._methods.open(given, wrong)]
        values += self._asked.open(given, wrong)  # the last, since it says what is wrong
        tab = given["tab"] if given.get("tab") in TABS else OPENING["tab"]
        return [*values, gr.Tabs(selected=tab), tab]

    def _build_api(self) -> None:
        """`/compare`, for `gradio_client`."""
        file = upload(visible=False, label="file")
        texts = [gr.Textbox(visible=False, label=name, value="") for name in ("example", "question")]
        specs = [gr.Textbox(visible=False, label=side, value=OPENING[side]) for side in "ab"]
        gr.Button(visible=False).click(
            self._answers,
            [file, *texts, *specs],
            gr.JSON(visible=False, label="answers"),
            api_name="compare",
            api_description="Ask one question under two settings. Give a file, or the name of a bundled example.",
            concurrency_limit=None,
        )

    async def _answers(
        self,
        file: str | None = None,
        example: str = "",
        question: str = "",
        a: str = OPENING["a"],
        b: str = OPENING["b"],
        request: gr.Request | None = None,
    ) -> dict[str, Any]:
        try:
            if file:
                media, asked = await asyncio.to_thread(self._service.open_upload, file), ""
            else:
                media, asked = await asyncio.to_thread(self._service.open_example, example or OPENING["example"])
            # every call has a session of its own: those from one address are one visitor's
            user = "" if request is None or request.client is None else request.client.host
            return await self._service.answers(user, media, question or asked, [a, b])
        except InputError as error:
            raise gr.Error(str(error), print_exception=False) from None


def _tab(name: str) -> gr.Tab:
    return gr.Tab(TABS[name], id=name)


def _about(model: str) -> str:
    """Which model answers."""
    about = (
        "The bundled model is tiny: it knows coloured shapes, digits, words and short clips, and choosing tokens can "
        "cost it more time than it saves. <code>vtc demo --model</code> takes yours."
        if model == EMBEDDED
        else f"Model: <code>{escape(model)}</code>."
    )
    return f"<p class='vtc-hint'>{about}</p>"
