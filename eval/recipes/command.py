"""`vtc recipe list|run`: published tables, and the same table measured here: paper, ours, difference.

`run` does what `vtc eval` does, for all settings and tasks of a table, in the same folders: stopped, it goes on. On the
bundled model counts of tokens become the same share of its tokens, and its own benchmark stands in for the papers'.
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from vtc.eval.cli.arguments import DTYPES, EMBEDDED, positive, say
from vtc.eval.cli.errors import InputError
from vtc.eval.recipes.recipe import (
    MEASURES,
    Recipe,
    at_the_same_share,
    published_average,
    recipe,
    recipes,
)
from vtc.eval.run import evaluate

if TYPE_CHECKING:
    from vtc.eval.run.work import Work

#: What stands for all of a table's benchmarks.
AVERAGE = "average, % of untouched"
#: The task of the bundled model.
BUNDLED = "images"


class Cell(TypedDict):
    """One number of a table.

    Attributes:
        setting: of the paper; "untouched" is the model as it is.
        spec: that was run; None where it can't be.
        benchmark: as the paper calls it.
        paper, ours: in the paper's unit; None where there is none.
        paper_relative, ours_relative: the same in % of untouched.
        note: where the two differ, or why there is none of ours.
    """

    setting: str
    spec: str | None
    benchmark: str
    paper: float | None
    ours: float | None
    paper_relative: float | None
    ours_relative: float | None
    note: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `vtc recipe`."""
    commands = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = commands.add_parser("list", help="the published tables")
    listing.add_argument("--method", help="those of this method only")
    running = commands.add_parser("run", help="measure a table", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    running.add_argument("name", help="METHOD/MODEL, or METHOD/MODEL/SETTING for one row")
    running.add_argument("--model", help="'embedded', or the folder or hub id of the weights (default: the paper's)")
    running.add_argument("--data", type=Path, metavar="DIR", help="local data: DIR/TASK (default: the hub)")
    running.add_argument("--tasks", type=evaluate.names_or_files, help="only these (default: all of the table's)")
    running.add_argument("--limit", type=positive, help="questions of each task (default: all; 270 of the bundled one)")
    running.add_argument("--output", type=Path, required=True, help="folder for the results; resumes what is in it")
    running.add_argument("--batch-size", type=positive, default=8, help="questions at once")
    running.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    running.add_argument("--dtype", choices=DTYPES, help="float type of the weights (default: the model's own)")
    running.add_argument("--attn", help="attention implementation, such as sdpa, eager, flash_attention_2")


def main(args: argparse.Namespace) -> None:
    """List the tables, or measure one.

    Raises:
        InputError: no such table, or what it needs is not at hand; says what to put where.
    """
    if args.action == "list":
        _list(args.method)
        return
    evaluate.check_packages("recipe")
    chosen = recipe(args.name)
    specs, notes = _specs(chosen, args.model)
    work = _work(args, chosen, [spec for spec in specs.values() if spec])
    evaluate.evaluate(work, evaluate.Here(work))
    from vtc.eval.run.outcome import write

    cells = _cells(chosen, specs, notes, _measured(work), bundled=args.model == EMBEDDED)
    text = markdown(chosen, args.model or "", cells)
    print(text)
    write(
        args.output, {"recipe.json": json.dumps(cells, indent=2, ensure_ascii=False) + "\n", "recipe.md": text + "\n"}
    )


def _list(method: str | None) -> None:
    from vtc.eval.results import table

    found = [each for each in recipes().values() if method in (None, each.name.partition("/")[0])]
    if not found:
        known = ", ".join(dict.fromkeys(name.partition("/")[0] for name in recipes()))
        raise InputError(f"argument --method: no table of {method!r}; there are tables of {known}")
    rows = [["recipe", "settings", "model", "weights", "tasks here", "source"]]
    for each in found:
        weights = each.checkpoint.hub_id if each.checkpoint else "–"
        counted = f"{len(each.tasks)} ({len(each.benchmarks)} published)"
        rows.append([each.name, str(len(each.rows)), each.model, weights, counted, f"arXiv {each.rows[0].source}"])
    print("\n".join(table.aligned(rows)))


def _specs(chosen: Recipe, model: str | None) -> tuple[dict[str, str | None], dict[str, str]]:
    """What is run for each row, by its name, and why nothing is."""
    if model != EMBEDDED:
        return {row.name: row.spec for row in chosen.rows}, {}
    specs: dict[str, str | None] = {}
    notes: dict[str, str] = {}
    for row in chosen.rows:
        try:
            spec = at_the_same_share(row.spec, chosen.checkpoint.tokens if chosen.checkpoint else None)
            _try(spec)
            specs[row.name] = spec
        except (TypeError, ValueError) as error:
            specs[row.name], notes[row.name] = None, str(error)
            say(f"vtc recipe: left out on the bundled model: {row.name}: {error}")
    return specs, notes


def _try(spec: str) -> None:
    """Patch the bundled model, which refuses what it can't do.

    Raises:
        ValueError: it refuses.
    """
    import vtc
    from vtc.eval import embedded

    model, _ = embedded.load()
    vtc.unpatch(vtc.patch(model, spec))


def _work(args: argparse.Namespace, chosen: Recipe, specs: list[str]) -> "Work":
    """The run, all of whose weights and data are at hand.

    Raises:
        InputError: something is missing; names all of it.
    """
    from vtc.eval.run.work import Work

    if not specs:
        raise InputError(
            f"argument NAME: no setting of {chosen.name!r} can run on --model {args.model}; give its own model"
        )
    if args.model is None and chosen.checkpoint is None:
        raise InputError(
            f"argument --model: {chosen.model} has no checkpoint that transformers loads as a VLM; "
            "give --model embedded, or another"
        )
    bundled = args.model == EMBEDDED
    args.model = args.model or chosen.checkpoint.hub_id  # type: ignore[union-attr]
    tasks = args.tasks or ([BUNDLED] if bundled else chosen.tasks)
    if not tasks:
        raise InputError(
            f"argument NAME: none of the benchmarks of {chosen.name!r} is a task here "
            f"({', '.join(chosen.benchmarks)}); give --tasks"
        )
    command = ["--model", args.model, "--output", str(args.output), "--batch-size", str(args.batch_size)]
    command += ["--device", args.device, "--methods", "none", "--tasks", ",".join(tasks)]
    command += ["--frames", str(chosen.checkpoint.frames)] if chosen.checkpoint else []
    for name in ("data", "limit", "dtype", "attn"):
        command += [f"--{name}", str(value)] if (value := getattr(args, name)) is not None else []
    for spec in specs:
        command += ["--compress", spec]
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    try:
        work = Work(parser.parse_args(command))
        work.model_for(next(iter(work.tasks.values())))
    except InputError:
        _say_what_is_missing(args, chosen, tasks)
        raise
    return work


def _say_what_is_missing(args: argparse.Namespace, chosen: Recipe, tasks: list[str]) -> None:
    """After something was not at hand: look for all of it.

    Raises:
        InputError: names all that is missing.
    """
    from vtc.eval.tasks.config import read_config
    from vtc.eval.tasks.data import load_rows
    from vtc.eval.tasks.index import file_of, find_tasks

    missing = []
    if args.model != EMBEDDED and not _has_weights(args.model):
        missing.append(f"weights: {chosen.model} is {args.model!r}; put its folder anywhere, and give --model FOLDER")
    for name in [each for task in tasks if task != BUNDLED for each in find_tasks(task)]:
        try:
            load_rows(read_config(file_of(name)), args.data)
        except InputError as error:
            missing.append(f"data: {error}")
    if missing:
        raise InputError("not all is at hand:\n  " + "\n  ".join(missing))


def _has_weights(name: str) -> bool:
    from transformers import AutoConfig

    try:
        AutoConfig.from_pretrained(name)
    except (OSError, ValueError):
        return False
    return True


def _measured(work: "Work") -> dict[str, dict[str, dict[str, Any]]]:
    """By task and setting: the metrics."""
    found = {}
    for task in work.tasks.values():
        results = json.loads((work.folder(task) / "results.json").read_text(encoding="utf-8"))
        found[task.name] = {row["setting"]: row["metrics"] for row in results["settings"]}
    return found


def _cells(
    chosen: Recipe, specs: dict[str, str | None], notes: dict[str, str], measured: dict[str, Any], bundled: bool
) -> list[Cell]:
    from vtc.eval.results.settings import NONE, make_settings

    cells = []
    for row in [None, *chosen.rows]:
        spec = NONE if row is None else specs[row.name]
        name = NONE if row is None or spec is None else make_settings([], [], [spec])[1].name
        label = "untouched" if row is None else row.name.rpartition("/")[2]
        note = "" if row is None else notes.get(row.name, "")
        first = chosen.rows[0].results
        scores = first.untouched if row is None else row.results.scores
        untouched = first.untouched if row is None else row.results.untouched
        ratios = []
        for benchmark in [BUNDLED] if bundled else chosen.benchmarks:
            measure = None if bundled else MEASURES.get(benchmark)
            ours, before = _values(measured, benchmark, measure, None if spec is None else name)
            relative = None if ours is None or not before else 100 * ours / before
            ratios += [] if relative is None else [relative]
            paper, base = scores.get(benchmark), untouched.get(benchmark)
            said = note or (measure.note if measure else "" if bundled else "no task here")
            of_base = None if paper is None or not base else 100 * paper / base
            cells.append(_cell(label, spec, benchmark, paper, ours, of_base, relative, said))
        paper = 100.0 if row is None else published_average(row)
        mean = sum(ratios) / len(ratios) if ratios else None
        cells.append(_cell(label, spec, AVERAGE, paper, mean, paper, mean, note))
    return cells


def _values(
    measured: dict[str, Any], benchmark: str, measure: Any, setting: str | None
) -> tuple[float | None, float | None]:
    """Ours, and of the untouched model; of a group the mean over its tasks, all of which were asked."""
    from vtc.eval.tasks.index import find_tasks

    if setting is None:
        return None, None
    if benchmark == BUNDLED:
        mine, before = (measured[BUNDLED][each]["exact_match"]["value"] for each in (setting, "none"))
        return 100 * mine, 100 * before
    found = [measured.get(task, {}) for task in find_tasks(measure.task)] if measure else [{}]
    pairs = [(measure.value(of[setting]), measure.value(of["none"])) for of in found if setting in of]
    if len(pairs) < len(found) or any(None in pair for pair in pairs):
        return None, None
    mine, before = (sum(column) / len(found) for column in zip(*pairs))
    return mine, before


def _cell(*values: Any) -> Cell:
    return dict(zip(Cell.__annotations__, values, strict=True))  # type: ignore[return-value]


def markdown(chosen: Recipe, model: str, cells: list[Cell]) -> str:
    """The table: paper, ours, difference, and both in % of untouched."""
    from vtc.eval.results import table

    first = chosen.rows[0]
    about = [
        f"{chosen.name}: arXiv {first.source}, {chosen.model} there, {model} here. Prompt: {first.prompt}; "
        f"precision: {first.precision}; software: {first.software}. {first.evidence}.",
    ]
    rows = [["setting", "benchmark", "paper", "ours", "difference", "paper %", "ours %", "spec here", "note"]]
    for cell in cells:
        paper, ours = cell["paper"], cell["ours"]
        difference = "–" if paper is None or ours is None else f"{ours - paper:+.1f}"
        numbers = [_number(cell[key]) for key in ("paper", "ours", "paper_relative", "ours_relative")]  # type: ignore[literal-required]
        named = cell["setting"], cell["benchmark"]
        rows.append([*named, *numbers[:2], difference, *numbers[2:], cell["spec"] or "–", cell["note"]])
    return "\n".join([*about, "", *table.aligned(rows)])


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"
