"""The setting of one of the two sides: its method and the controls of its fields."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from vtc.demo import controls
from vtc.demo.controls import Control
from vtc.demo.view.events import MODEL, QUIET
from vtc.demo.view.html import refused
from vtc.demo.visitors.limits import Limits
from vtc.eval.cli.errors import InputError
from vtc.eval.results.settings import NONE
from vtc.method.base import Method


class Form:
    """A spec whose fields are shown as controls; each is another, so that pasting the same spec again shows it anew."""

    def __init__(self, text: str):
        self.text = text


class Panel:
    """Components of one side.

    Attributes:
        spec: what counts: whatever the other controls say ends up here.
        form: the spec whose fields are shown as controls.
    """

    def __init__(self, letter: str, spec: str, limits: Limits):
        self.letter, self._limits = letter, limits
        self._build_controls(letter, spec)

    def _build_controls(self, letter: str, spec: str) -> None:
        with gr.Column(elem_classes=["vtc-panel", f"vtc-side-{letter.lower()}"], min_width=280):
            gr.HTML(f"<h2>{letter}</h2>", elem_classes="vtc-letter")
            methods = controls.parse(spec, self._limits.spec_chars)
            with gr.Row():
                self.first = gr.Dropdown(
                    controls.first_names(),
                    value=methods[0].name,
                    label=f"{letter}: method",
                    info="selector: before the decoder; prune: inside it; reducer: in the vision tower",
                    min_width=230,
                    scale=2,
                )
                self.second = gr.Dropdown(
                    controls.second_names(),
                    value=NONE,
                    label=f"{letter}: then",
                    info="a prune after it",
                    min_width=140,
                    scale=1,
                )
            self.form = gr.State(Form(spec))
            self.refusal = gr.HTML(elem_classes="vtc-note")
            with gr.Accordion(f"{letter}: parameters", open=True):
                gr.render(inputs=[self.form], show_progress="hidden", queue=False)(self._draw_controls)
            self.spec = gr.Textbox(
                spec,
                label=f"{letter}: spec",
                info="the same in one line; paste one and press Enter",
                max_length=self._limits.spec_chars,
                elem_id=f"vtc-spec-{letter.lower()}",
                max_lines=1,
                buttons=["copy"],
            )
        self._connect()

    @property
    def choice(self) -> list[Any]:
        """The components that say which setting this is, as `show` fills them."""
        return [self.first, self.second, self.form, self.spec, self.refusal]

    def show(self, methods: Sequence[Method]) -> tuple[Any, ...]:
        """Values for `choice`."""
        text = controls.to_text(methods)
        second = NONE if len(methods) == 1 else methods[1].name if len(methods) == 2 else None
        known = {name for _, name in controls.second_names()}
        return methods[0].name, second if second in known else None, Form(text), text, ""

    def refuse(self, error: Exception) -> tuple[Any, ...]:
        """Values for `choice` that say why nothing changes."""
        return gr.skip(), gr.skip(), gr.skip(), gr.skip(), refused(str(error))

    def parse(self, text: str) -> list[Method]:
        """The methods of a spec.

        Raises:
            InputError: it is none.
        """
        return controls.parse(text, self._limits.spec_chars)

    def _connect(self) -> None:
        # queued, for outside of the queue the change of a state is not told to what depends on it
        self.first.input(self._picked_first, [self.first, self.spec], self.choice, **MODEL)
        self.second.input(self._picked_second, [self.second, self.spec], self.choice, **MODEL)
        self.spec.submit(self._pasted, [self.spec], self.choice, **MODEL)
        self.spec.blur(self._left, [self.spec, self.form], self.choice, **MODEL)

    def _picked_first(self, name: str, text: str) -> tuple[Any, ...]:
        try:
            methods = self.parse(text)
        except InputError:
            methods = self.parse(NONE)
        return self._shown(lambda: controls.with_first(methods, name))

    def _picked_second(self, name: str | None, text: str) -> tuple[Any, ...]:
        return self._shown(lambda: controls.with_second(self.parse(text), name or NONE))

    def _pasted(self, text: str) -> tuple[Any, ...]:
        return self._shown(lambda: self.parse(text))

    def _left(self, text: str, form: Form) -> tuple[Any, ...]:
        """The field was left; where it says what the controls say, they stay as they are."""
        return (gr.skip(),) * 5 if text == form.text else self._pasted(text)

    def _shown(self, make: Callable[[], Sequence[Method]]) -> tuple[Any, ...]:
        try:
            return self.show(make())
        except (InputError, TypeError, ValueError) as error:
            return self.refuse(error)

    def _draw_controls(self, form: Form) -> None:
        """The controls of a spec's fields, each of which changes the spec when it is used."""
        try:
            methods = self.parse(form.text)
        except InputError:
            return
        found = controls.controls(methods)
        for stage, method in enumerate(methods):
            about = "Every visual token is kept." if method.name == NONE else controls.about(method)
            gr.Markdown(f"**{method.name}** {about}", elem_classes="vtc-hint")
            with gr.Row():
                for control in found:
                    if control.stage != stage:
                        continue
                    if control.name == "keep":
                        self._draw_unit(method, stage)
                    if control.kind != "text" or control.name != "keep":
                        self._connect_control(control, _component(control, self.letter))

    def _draw_unit(self, method: Method, stage: int) -> None:
        choices = list(controls.units(method))
        unit = gr.Radio(
            choices, value=controls.unit(method), label=f"{self.letter}: unit of keep", min_width=200, interactive=True
        )

        def picked(chosen: str, text: str) -> tuple[Any, ...]:
            return self._shown(lambda: controls.in_unit(self.parse(text), stage, chosen))

        unit.input(picked, [unit, self.spec], self.choice, **MODEL)

    def _connect_control(self, control: Control, component: Any) -> None:
        def used(given: Any, text: str, form: Form) -> tuple[Any, Any]:
            try:
                form.text = controls.to_text(controls.changed(self.parse(text), control, given))
            except InputError as error:
                return gr.skip(), refused(str(error))
            return form.text, ""

        event = component.blur if control.kind == "text" else component.input
        event(
            used,
            [component, self.spec, self.form],
            [self.spec, self.refusal],
            queue=False,
            trigger_mode="always_last",
            **QUIET,
        )


def _component(control: Control, letter: str) -> Any:
    """The component that shows a control."""
    given: dict[str, Any] = {"label": f"{letter}: {control.name}", "min_width": 170, "interactive": True}
    about = control.about if len(control.about) < 90 else re.split(r"[:;.] ", control.about)[0]
    about = about.replace("`", "")
    if control.kind == "switch":
        return gr.Checkbox(control.value, info=about, **given)
    given["info"] = about
    if control.kind == "keep":
        given["min_width"] = 220  # for the numbers at its ends
        return gr.Slider(min(0.005, control.value), 1.0, value=control.value, step=0.005, **given)
    if control.kind == "choice":
        return gr.Dropdown(list(control.choices), value=control.value, **given)
    if control.kind == "count":
        return gr.Number(control.value, precision=0, minimum=1, **given)
    if control.kind in ("whole", "number"):
        return gr.Number(control.value, precision=0 if control.kind == "whole" else None, **given)
    return gr.Textbox(control.value, max_length=100, max_lines=1, **given)
