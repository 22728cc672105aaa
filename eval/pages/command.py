"""`vtc pages`: a page of documentation for every method, made of what the code says and what a run measured.

The output folder gets NAME.md for each method, README.md that lists them, `results.json` (what the pages show of the
run that `--run` names; without `--run` the one that is there stays) and, drawn of it, NAME.png (the method's curve) and
figure.png (all of them).
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vtc.eval.cli.errors import InputError
from vtc.eval.pages.docstring import Described, describe, functions
from vtc.eval.pages.presets import preset_section
from vtc.eval.pages.results import for_method, of_run, table
from vtc.eval.results.folder import write_atomically
from vtc.method.registry import method_class, shipped
from vtc.presets import presets

RESULTS, INDEX, FIGURE = "results.json", "README.md", "figure.png"

_KINDS = {
    "selector": "selector (acts once, on the projected visual tokens, before the first decoder layer)",
    "prune": "prune (acts in front of chosen decoder layers, during prefill)",
    "reducer": "reducer (acts between blocks of the vision tower)",
}

_READING = (
    "Equivalent tokens: mean over decoder layers of the visual tokens that enter the layer. The model is small and was "
    "trained for this benchmark: compare methods with these numbers, not models."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `vtc pages`."""
    parser.add_argument("--run", type=Path, help="folder of a vtc eval run whose numbers and curves the pages get")
    parser.add_argument("--output", type=Path, default=Path("docs/methods"), help="folder of the pages")


def main(args: argparse.Namespace) -> None:
    """Write the pages.

    Raises:
        InputError: the run's results or the output folder can't be used.
    """
    results = stored(args.output) if args.run is None else of_run(args.run)
    written = pages(results)
    try:
        args.output.mkdir(parents=True, exist_ok=True)
        if results is not None:
            text = json.dumps(results, indent=1, ensure_ascii=False)
            write_atomically(args.output / RESULTS, text + "\n")
            _draw_all(args.output, results)
        for name, text in written.items():
            write_atomically(args.output / name, text)
    except OSError as error:
        raise InputError(
            f"argument --output: {str(args.output)!r} can't be written ({error}); give another folder"
        ) from None
    print(f"{len(written)} pages in {str(args.output)!r}" + ("" if results else ", without curves: give --run"))


def stored(folder: Path) -> dict[str, Any] | None:
    """The results that an earlier `--run` left in the folder; None where there are none."""
    file = folder / RESULTS
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def pages(results: dict[str, Any] | None) -> dict[str, str]:
    """File name -> text of every page and the index. `results` is what `of_run` gave."""
    found = {name: describe(method_class(name)) for name in shipped()}
    return {INDEX: _index(found, results)} | {f"{name}.md": _page(name, found[name], results) for name in shipped()}


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the heading first, as Markdown; a bar in a cell is escaped."""
    lines = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def _draw_all(folder: Path, results: dict[str, Any]) -> None:
    """Draw a run's figure and curves, and take away those of an earlier one that it has no numbers for."""
    from vtc.eval.report import figure

    write_atomically(folder / FIGURE, figure.draw(results))  # type: ignore[arg-type]
    for name in shipped():
        file = folder / f"{name}.png"
        mine = for_method(results, name) if _has_curve(name) else None
        if mine is None:
            file.unlink(missing_ok=True)
        else:
            write_atomically(file, figure.draw(mine))


def _has_curve(name: str) -> bool:
    return name != "none"


def _index(found: dict[str, Described], results: dict[str, Any] | None) -> str:
    counts = {name: sum(each.startswith(f"{name}/") for each in presets()) for name in found}
    rows = [["method", "kind", "what it does", "paper", "presets"]]
    for name, said in found.items():
        count = str(counts[name] or "–")
        rows.append([f"[`{name}`]({name}.md)", method_class(name).kind, said.first, _paper(said), count])
    return _join(
        "# Methods",
        "One page a method, written by `vtc pages` from the code, the published numbers in `vtc/presets.toml` and a "
        "run on the bundled model. `vtc methods` and `vtc presets` tell the same at the terminal.",
        markdown_table(rows),
        f"![Right answers against equivalent visual tokens]({FIGURE})" if results else "",
    )


def _page(name: str, said: Described, results: dict[str, Any] | None) -> str:
    cls = method_class(name)
    mine = for_method(results, name) if results else None
    return _join(
        f"# {name}",
        said.first,
        *said.body,
        f"Kind: {_KINDS.get(cls.kind, cls.kind)}. Paper: {_paper(said)}. Class: {_reference(cls)}.",
        _usage(name, cls.__name__, said),
        _field_section(said),
        f"## What the paper's budget means in keep\n\n{said.budget}" if said.budget else "",
        _measured(name, mine),
        preset_section(name, markdown_table),
        _mathematics(cls),
    )


def _paper(said: Described) -> str:
    return f"[{said.paper}](https://arxiv.org/abs/{said.paper})" if said.paper else "–"


def _reference(cls: type) -> str:
    """The class, as a link to where the site's reference has it."""
    return f"[`vtc.{cls.__name__}`](../reference/{cls.__module__.split('.')[1]}.md#vtc.{cls.__name__})"


def _usage(name: str, class_name: str, said: Described) -> str:
    """How to ask for the method: from Python, as a spec, as a preset."""
    spec = f"{name}:keep=0.25" if any(field.name == "keep" for field in said.fields) else name
    by_hand = f"vtc.{class_name}(keep=0.25)" if spec != name else f"vtc.{class_name}()"
    lines = [f'vtc.patch(model, "{spec}")', f"vtc.patch(model, {by_hand})  # the same"]
    preset = next((each for each in presets() if each.startswith(f"{name}/")), None)
    if preset is not None:
        lines.append(f'vtc.patch(model, vtc.preset("{preset}"))  # as published')
    shell = f"vtc ask --image photo.jpg --question 'What is on the sign?' --compress {spec}"
    return "## Use\n\n```python\n" + "\n".join(lines) + f"\n```\n\n```sh\n{shell}\n```"


def _field_section(said: Described) -> str:
    if not said.fields:
        return ""
    rows = [["field", "default", "meaning"], *([f"`{f.name}`", f"`{f.default}`", f.text] for f in said.fields)]
    return "## Fields\n\n" + markdown_table(rows)


def _mathematics(cls: type) -> str:
    blocks = [f"```python\n{signature}\n```\n\n```text\n{text}\n```" for signature, text in functions(cls)]
    return "\n\n".join(["## The mathematics", f"Pure functions in `{cls.__module__}`.", *blocks]) if blocks else ""


def _measured(name: str, results: Any) -> str:
    if results is None:
        return ""
    config = results["config"]
    versions = ", ".join(f"{package} {version}" for package, version in config["versions"].items())
    return _join(
        "## On the bundled model",
        f"![Accuracy against equivalent visual tokens]({name}.png)" if _has_curve(name) else "",
        markdown_table(table(results)),
        f"{results['questions']} questions of {config['benchmark']}, model {config['model']}, {config['dtype']}, "
        f"batches of {config['batch_size']}; {versions}. {_READING}",
    ).rstrip("\n")


def _join(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part) + "\n"
