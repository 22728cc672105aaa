"""The page."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import gradio as gr

from vtc.demo import comparing, reproduce, showing
from vtc.demo.asking import Answer, Media, Timing
from vtc.demo.panel import Panel
from vtc.demo.service import EXAMPLES, MOST_QUESTIONS, Service
from vtc.demo.turns import Waiting
from vtc.eval.arguments import EMBEDDED
from vtc.eval.errors import InputError
from vtc.eval.video_file import Video

#: What the page opens with.
OPENING = {"example": "images/5", "a": "divprune:keep=0.25", "b": "none"}
TABS = {"compare": "Compare", "code": "Code", "sweep": "Sweep", "methods": "All methods"}

_QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
_HERE = Path(__file__).parent
_PICK = """
element.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-example]");
  if (!button) return;
  element.querySelectorAll("button").forEach((each) => each.setAttribute("aria-pressed", String(each === button)));
  trigger("pick", { name: button.dataset.example });
});
"""


def theme() -> gr.themes.Base:
    """Fonts of the visitor's system: nothing is fetched."""
    return gr.themes.Soft(
        primary_hue="blue",
        secondary_hue="blue",
        neutral_hue="slate",
        font=("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"),
        font_mono=("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"),
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
        media, question = service.open_example(OPENING["example"])
        with gr.Blocks(title="vtc: two settings side by side", analytics_enabled=False) as self.blocks:
            self._media = gr.State(media, time_to_live=service.limits.session_s)
            self._answers = gr.State({}, time_to_live=service.limits.session_s)
            gr.HTML(self._title(), elem_classes="vtc-title")
            self._build_source(media, question)
            with gr.Tabs(selected="compare") as self._tabs:
                with gr.Tab(TABS["compare"], id="compare"):
                    self._build_compare()
                with gr.Tab(TABS["code"], id="code"):
                    self._build_code()
                with gr.Tab(TABS["sweep"], id="sweep"):
                    self._build_sweep()
                with gr.Tab(TABS["methods"], id="methods"):
                    self._build_methods()
            self._build_api()
            self._connect()

    def _title(self) -> str:
        model = self._service.source.model
        about = (
            "The bundled model is tiny and knows coloured shapes, digits, words and short clips; "
            "<code>vtc demo --model</code> takes yours."
            if model == EMBEDDED
            else f"Model: <code>{showing.html.escape(model)}</code>."
        )
        return (
            "<h1>Two settings, side by side</h1>"
            f"<p>One picture, one question, two settings of the same weights. {about}</p>"
        )

    def _build_source(self, media: Media, question: str) -> None:
        with gr.Row():
            with gr.Column(scale=2, min_width=280):
                self._preview = gr.HTML(showing.preview(media), elem_id="vtc-preview")
                self._frame = gr.Slider(
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
                self._examples = gr.HTML(
                    showing.examples(EXAMPLES, media.example), js_on_load=_PICK, elem_id="vtc-examples"
                )
                megabytes = self._service.limits.file_bytes / 2**20
                self._upload = _upload(
                    label="Your own picture or video",
                    file_types=["image", "video"],
                    height=130,
                    elem_id="vtc-upload",
                )
                gr.HTML(f"<p class='vtc-hint'>Up to {megabytes:g} MiB. It is read, then removed from the disk.</p>")
                self._note = gr.HTML(elem_id="vtc-note")
                self._question = gr.Textbox(
                    question,
                    label="Question",
                    max_length=self._service.limits.question_chars,
                    max_lines=3,
                    elem_id="vtc-question",
                )
                with gr.Row():
                    self._ask = gr.Button("Ask both", variant="primary", elem_id="vtc-ask", scale=3, min_width=160)
                    self._stop = gr.Button("Stop", elem_id="vtc-stop", scale=1, min_width=90)
                self._status = gr.HTML(elem_id="vtc-status")

    def _build_compare(self) -> None:
        with gr.Row(equal_height=True):
            self._panels = (
                Panel("A", OPENING["a"], self._service.limits),
                Panel("B", OPENING["b"], self._service.limits),
            )
        with gr.Row(equal_height=True):
            for panel in self._panels:
                panel.build_result()
        self._numbers = gr.HTML(elem_id="vtc-numbers", elem_classes="vtc-scroll")
        with gr.Row():
            self._copies = {
                name: gr.Button(f"Copy {name}", size="sm", elem_id=f"vtc-copy-{name}", min_width=120)
                for name in ("Python", "command", "link")
            }

    def _build_code(self) -> None:
        gr.HTML(
            "<p class='vtc-hint'>What is on the screen, to run elsewhere. An upload is not part of a link; "
            "in code it is read from a file of its name.</p>"
        )
        self._python = gr.Code(
            language="python",
            label="Python",
            interactive=False,
            elem_id="vtc-python",
            wrap_lines=True,
            show_line_numbers=False,
            lines=2,
        )
        self._command = gr.Code(
            language="shell",
            label="Commands",
            interactive=False,
            elem_id="vtc-command",
            wrap_lines=True,
            show_line_numbers=False,
            lines=2,
        )
        self._client = gr.Code(
            language="python",
            label="This server's API",
            interactive=False,
            elem_id="vtc-client",
            wrap_lines=True,
            show_line_numbers=False,
            lines=2,
        )
        self._link = gr.Textbox(label="Link", interactive=False, elem_id="vtc-link", buttons=["copy"])
        self._query = gr.Textbox(visible="hidden")

    def _build_sweep(self) -> None:
        names = [name for _, name in _method_choices()]
        with gr.Row():
            self._sweep_methods = gr.Dropdown(
                names, value=["divprune", "fastv", "random"], multiselect=True, label="Methods", scale=3, min_width=260
            )
            self._sweep_keeps = gr.Textbox(
                "0.5, 0.25, 0.125, 0.0625",
                label="keep",
                info="shares or counts",
                min_width=180,
                elem_id="vtc-sweep-keeps",
            )
        with gr.Row():
            about = ["this question", "benchmark questions"]
            self._sweep_about = gr.Radio(about, value=about[0], label="Ask", elem_id="vtc-sweep-about", scale=2)
            self._sweep_count = gr.Slider(
                6, MOST_QUESTIONS, step=6, value=24, label="Benchmark questions", visible=False, scale=2
            )
        with gr.Row():
            self._sweep_run = gr.Button("Sweep", variant="primary", elem_id="vtc-sweep", min_width=140)
            self._sweep_stop = gr.Button("Cancel", elem_id="vtc-sweep-stop", min_width=90)
        self._sweep_progress = gr.HTML(elem_id="vtc-sweep-progress")
        self._curves = gr.HTML(elem_id="vtc-curves")
        self._points = gr.HTML(elem_id="vtc-points", elem_classes="vtc-scroll")

    def _build_methods(self) -> None:
        with gr.Row():
            self._deal_keep = gr.Slider(
                0.02, 1.0, value=0.25, step=0.01, label="keep", info="share, for every method", scale=3
            )
            self._deal_run = gr.Button("Show all methods", variant="primary", elem_id="vtc-deal", min_width=160)
            self._deal_stop = gr.Button("Cancel", elem_id="vtc-deal-stop", min_width=90)
        self._deal_progress = gr.HTML(elem_id="vtc-deal-progress")
        self._cards = gr.HTML(elem_id="vtc-cards")

    def _build_api(self) -> None:
        """`/compare`, for `gradio_client`."""
        file = _upload(visible=False, label="file")
        example = gr.Textbox(visible=False, label="example", value="")
        question = gr.Textbox(visible=False, label="question", value="")
        a, b = (gr.Textbox(visible=False, label=side, value=OPENING[side]) for side in "ab")
        answer = gr.JSON(visible=False, label="answers")
        gr.Button(visible=False).click(
            self._compare_for_client,
            [file, example, question, a, b],
            answer,
            api_name="compare",
            api_description="Ask one question under two settings. Give a file, or the name of a bundled example.",
            concurrency_limit=None,
        )

    def _connect(self) -> None:
        a, b = self._panels
        model: dict[str, Any] = {**_QUIET, "concurrency_limit": None}
        shown = [self._media, self._question, self._preview, self._frame, self._note]
        self._examples.pick(self._picked, None, shown, **_QUIET)
        self._upload.upload(
            self._uploaded, [self._upload], [*shown, self._upload, self._examples], **_QUIET, concurrency_limit=2
        )
        self._frame.input(
            self._moved_frame,
            [self._media, self._answers, self._frame, a.layer, b.layer],
            [self._preview, a.kept, b.kept],
            trigger_mode="always_last",
            queue=False,
            **_QUIET,
        )
        for side, panel in enumerate(self._panels):
            panel.layer.input(
                _redrawing(side, panel.letter),
                [self._answers, panel.layer, self._frame],
                [panel.kept],
                trigger_mode="always_last",
                queue=False,
                **_QUIET,
            )
        given = [self._media, self._question, a.spec, b.spec, self._frame]
        outputs = [a.answer, a.kept, a.layer, b.answer, b.kept, b.layer, self._numbers, self._status, self._answers]
        asked = gr.on(
            [self._ask.click, self._question.submit], self._compare, given, outputs, trigger_mode="always_last", **model
        )
        self._stop.click(self._stopped, None, [self._status], cancels=[asked], **_QUIET)
        sources = [self._media, self._question, a.spec, b.spec]
        code = [self._python, self._command, self._client, self._query]
        written = gr.on(
            [
                self._ask.click,
                self._question.submit,
                self._media.change,
                a.spec.change,
                b.spec.change,
                self._question.change,
            ],
            self._write_code,
            sources,
            code,
            queue=False,
            trigger_mode="always_last",
            **_QUIET,
        )
        written.then(fn=None, inputs=[self._query], outputs=[self._link], js="(query) => window.vtcLink(query)")
        for name, box in (("Python", self._python), ("command", self._command), ("link", self._link)):
            self._copies[name].click(
                fn=None, inputs=[box], js=f"(text) => {{ window.vtcCopy(text, 'vtc-copy-{name}') }}"
            )
        self._sweep_about.input(
            lambda about: gr.Slider(visible=about != "this question"),
            [self._sweep_about],
            [self._sweep_count],
            queue=False,
            **_QUIET,
        )
        swept = self._sweep_run.click(
            self._sweep,
            [self._media, self._question, self._sweep_methods, self._sweep_keeps, self._sweep_about, self._sweep_count],
            [self._sweep_progress, self._curves, self._points],
            **model,
        )
        self._sweep_stop.click(self._cancelled, None, [self._sweep_progress], cancels=[swept], **_QUIET)
        dealt = self._deal_run.click(
            self._deal, [self._media, self._question, self._deal_keep], [self._deal_progress, self._cards], **model
        )
        self._deal_stop.click(self._cancelled, None, [self._deal_progress], cancels=[dealt], **_QUIET)
        opened = [*shown, self._examples, *a.choice, *b.choice, self._tabs, self._status]
        self.blocks.load(self._opened, None, opened, **_QUIET)

    # -- what is asked about

    def _picked(self, event: gr.EventData) -> tuple[Any, ...]:
        try:
            media, question = self._service.open_example(event._data.get("name", ""))
        except InputError as error:
            return gr.skip(), gr.skip(), gr.skip(), gr.skip(), showing.refused(str(error))
        return media, question, showing.preview(media), _frames(media), ""

    def _uploaded(self, path: str | None) -> tuple[Any, ...]:
        if path is None:
            return (gr.skip(),) * 7
        try:
            media = self._service.open_upload(path)
        except InputError as error:
            return gr.skip(), gr.skip(), gr.skip(), gr.skip(), showing.refused(str(error)), None, gr.skip()
        return media, gr.skip(), showing.preview(media), _frames(media), "", None, showing.examples(EXAMPLES)

    def _moved_frame(
        self, media: Media | None, answers: dict[int, Answer], frame: int, *layers: int
    ) -> tuple[str, str, str]:
        pictures = [_kept(answers, side, "AB"[side], layer, frame) for side, layer in enumerate(layers)]
        return showing.preview(media, frame), pictures[0], pictures[1]

    # -- comparing

    async def _compare(
        self, media: Media | None, question: str, spec_a: str, spec_b: str, frame: int, request: gr.Request
    ) -> AsyncIterator[dict[Any, Any]]:
        answers: dict[int, Answer] = {}
        specs = [spec_a, spec_b]
        blank = {each: "" for panel in self._panels for each in (panel.answer, panel.kept)}
        hidden = {panel.layer: gr.Slider(visible=False) for panel in self._panels}
        yield {**blank, **hidden, self._numbers: "", self._status: "", self._answers: {}}
        try:
            async for item in self._service.compare(_user(request), media, question, specs):
                yield self._seen(item, answers, specs, frame)
        except InputError as error:
            yield {self._status: showing.refused(str(error))}
        except Exception as error:  # a fault of ours or of the model: it is told, and the others go on
            yield {self._status: showing.refused(f"this failed: {type(error).__name__}: {error}")}
            raise

    def _seen(self, item: Any, answers: dict[int, Answer], specs: list[str], frame: int) -> dict[Any, Any]:
        """What changes on the page by one piece of news."""
        if isinstance(item, Waiting):
            return {self._status: showing.waiting(item.ahead)}
        if isinstance(item, comparing.Timed):
            return {self._numbers: _numbers(answers, specs, item.timings)}
        panel = self._panels[item.side]
        if isinstance(item, comparing.Heard):
            return {panel.answer: showing.said(item.text, panel.letter, done=False), self._status: ""}
        if isinstance(item, comparing.Refused):
            return {panel.answer: showing.refused(item.reason), self._status: ""}
        answer = answers[item.side] = item.answer
        layers = len(answer.trace.tokens_per_layer)
        return {
            panel.answer: showing.said(answer.text, panel.letter),
            panel.kept: showing.kept(answer, panel.letter, layers, frame),
            panel.layer: gr.Slider(maximum=layers, value=layers, visible=bool(answer.views)),
            self._numbers: _numbers(answers, specs, {}),
            self._answers: dict(answers),
            self._status: "",
        }

    def _stopped(self) -> str:
        return '<p class="vtc-hint" role="status">Stopped.</p>'

    async def _compare_for_client(
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
                media, asked = await _in_thread(self._service.open_upload, file), ""
            else:
                media, asked = self._service.open_example(example or OPENING["example"])
            return await self._service.answers(_user(request), media, question or asked, [a, b])
        except InputError as error:
            raise gr.Error(str(error), print_exception=False) from None

    # -- code and links

    def _write_code(self, media: Media | None, question: str, a: str, b: str, request: gr.Request) -> tuple[str, ...]:
        if media is None:
            return "", "", "", ""
        address = _address(request)
        source, specs = self._service.source, [a, b]
        return (
            reproduce.python(source, media, question, specs),
            reproduce.commands(source, media, question, specs),
            reproduce.client(address, media, question, specs),
            reproduce.query(media, question, specs),
        )

    def _opened(self, request: gr.Request) -> tuple[Any, ...]:
        """What a link says; what of it can't be used is told, and left as it was."""
        given, wrong = dict(request.query_params), list[str]()
        media, question = self._service.open_example(OPENING["example"])
        try:
            if "example" in given:
                media, question = self._service.open_example(given["example"])
        except InputError as error:
            wrong.append(str(error))
        question = given.get("q", question)[: self._service.limits.question_chars]
        sides: list[Any] = []
        for side, panel in zip("ab", self._panels):
            methods = panel.parse(OPENING[side])
            try:
                methods = panel.parse(given.get(side, OPENING[side]))
            except InputError as error:
                wrong.append(f"{panel.letter}: {error}")
            sides += panel.show(methods)
        tab = given["tab"] if given.get("tab") in TABS else "compare"
        note = showing.refused(f"The link could not be used as it is. {' '.join(wrong)}") if wrong else ""
        shown = media, question, showing.preview(media), _frames(media), ""
        return *shown, showing.examples(EXAMPLES, media.example), *sides, gr.Tabs(selected=tab), note

    # -- sweep and all methods

    async def _sweep(
        self,
        media: Media | None,
        question: str,
        methods: list[str],
        keeps: str,
        about: str,
        count: int,
        request: gr.Request,
    ) -> AsyncIterator[tuple[Any, ...]]:
        of_benchmark = about != "this question"
        yield showing.progress(0, 1, "turns"), "", ""
        try:
            run = self._service.sweep(
                _user(request), media, question, methods, keeps, int(count) if of_benchmark else 0
            )
            async for item in run:
                if isinstance(item, Waiting):
                    yield showing.waiting(item.ahead), gr.skip(), gr.skip()
                    continue
                bar = showing.progress(item.done, item.total, "turns")
                yield bar, showing.chart(item.points, of_benchmark), showing.points(item.points, of_benchmark)
        except InputError as error:
            yield showing.refused(str(error)), gr.skip(), gr.skip()

    async def _deal(
        self, media: Media | None, question: str, keep: float, request: gr.Request
    ) -> AsyncIterator[tuple[Any, ...]]:
        yield showing.progress(0, 1, "methods"), ""
        try:
            async for item in self._service.deal(_user(request), media, question, keep):
                if isinstance(item, Waiting):
                    yield showing.waiting(item.ahead), gr.skip()
                    continue
                yield showing.progress(len(item.cards), item.total, "methods"), showing.cards(item.cards)
        except InputError as error:
            yield showing.refused(str(error)), gr.skip()

    def _cancelled(self) -> str:
        return '<p class="vtc-hint" role="status">Cancelled; what was found stays.</p>'


def _upload(**given: Any) -> gr.File:
    """A file as the path at which it landed; what it shows is looked at by `uploads` alone."""
    made = gr.File(**given)
    # Its own method makes an empty file as well, that nobody removes; a subclass would write a stub beside this module.
    made.preprocess = _path  # type: ignore[method-assign, assignment]
    return made


def _path(payload: Any) -> str | None:
    return None if payload is None else payload.path


def _user(request: gr.Request | None) -> str:
    return (request and (request.session_hash or str(request.client))) or ""


def _address(request: gr.Request) -> str:
    """Under which the visitor sees this server."""
    scheme = request.request.url.scheme if request.request is not None else "http"
    return f"{scheme}://{request.headers.get('host', 'localhost')}/"


async def _in_thread(function: Any, *args: Any) -> Any:
    import asyncio

    return await asyncio.to_thread(function, *args)


def _frames(media: Media) -> Any:
    frames = len(media.shown.frames) if isinstance(media.shown, Video) else 1
    return gr.Slider(maximum=max(1, frames - 1), value=0, visible=frames > 1)


def _redrawing(side: int, letter: str) -> Any:
    def redraw(answers: dict[int, Answer], layer: int, frame: int) -> str:
        return _kept(answers, side, letter, layer, frame)

    return redraw


def _kept(answers: dict[int, Answer], side: int, letter: str, layer: int, frame: int) -> str:
    return showing.kept(answers[side], letter, int(layer), int(frame)) if side in answers else ""


def _numbers(answers: dict[int, Answer], specs: list[str], timings: dict[int, list[Timing]]) -> str:
    costs = [comparing.numbers(answers[i], timings.get(i, ())) if i in answers else None for i in (0, 1)]
    return showing.numbers(costs, specs)


def _method_choices() -> list[tuple[str, str]]:
    from vtc.demo.controls import first_names
    from vtc.eval.settings import NONE

    return [(label, name) for label, name in first_names() if name != NONE]
