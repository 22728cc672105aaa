"""`vtc compare RUN...`: methods at equal tokens beside each other, question by question.

Two settings of a run were asked the same questions, so what tells them apart is the difference on these, not whether
two intervals overlap. Each row is a method, with what decides in it; each column a run and a number of equivalent
tokens.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtc.eval.cli.arguments import say
from vtc.eval.cli.errors import InputError
from vtc.eval.report.command import read_runs

if TYPE_CHECKING:
    from vtc.eval.report.page import Run

#: How far two settings' equivalent tokens may lie apart to count as equal, as a share.
NEAR = 0.02
LEGEND = """\
Right answers in %; difference to {against} on the same questions, with a paired bootstrap 95 % interval; = where the
difference to the best of the column is within its own such interval. Interval and = are of one comparison each: among
{rows} rows a few are told apart, or not, by chance."""


@dataclass(frozen=True)
class Cell:
    """A method at a number of tokens.

    Attributes:
        setting: spec string.
        accuracy: share of right answers.
        difference: to the method that all are held against; low and high: its interval.
        level: whether it can't be told from the best of the column.
        groups: accuracy by group of questions.
    """

    setting: str
    accuracy: float
    difference: float
    low: float
    high: float
    level: bool
    groups: dict[str, float]


@dataclass
class Column:
    """A run at a number of equivalent tokens.

    Attributes:
        title: what was asked about, and the tokens.
        tokens: equivalent tokens of the method that all are held against.
        none: accuracy of the untouched model.
        fewest: whether no other column of the run has as few.
        cells: by series.
        left_out: series that have no setting with as many tokens.
    """

    title: str
    tokens: float
    none: float
    fewest: bool = False
    cells: dict[str, Cell] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `vtc compare`."""
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs, or folders that hold some")
    parser.add_argument("--against", default="random", help="the method that all are held against")
    parser.add_argument("--output", type=Path, help="write the tables there as well, as .md or .json")


def main(args: argparse.Namespace) -> None:
    """Print the tables.

    Raises:
        InputError: there is no run that has ended, or one without the method that all are held against.
    """
    from vtc.eval.results.folder import write_atomically, write_json

    if args.output is not None and args.output.suffix not in (".md", ".json"):
        raise InputError(f"argument --output: {str(args.output)!r} is neither; give e.g. compare.md or compare.json")
    runs, unread = read_runs(args.runs)
    if not runs:
        raise InputError(
            f"argument RUNS: nothing to compare ({'; '.join(unread) or 'no folder holds a results.json'}); give the "
            "--output of a vtc eval that has ended"
        )
    for reason in unread:
        say(f"vtc compare: left out: {reason}")
    columns = [column for run in runs for column in compare(run, args.against)]
    text = "\n".join(tables(columns, args.against))
    if args.output is not None:
        try:
            args.output.parent.mkdir(parents=True, exist_ok=True)
            if args.output.suffix == ".json":
                write_json(args.output, json.loads(json.dumps(columns, default=vars)))
            else:
                write_atomically(args.output, text + "\n")
        except OSError as error:
            raise InputError(f"argument --output: {str(args.output)!r} can't be written ({error.strerror})") from None
    print(text)


def compare(run: "Run", against: str) -> list[Column]:
    """The columns of a run, one for each setting of the method that all are held against, most tokens first.

    Raises:
        InputError: the run has no such method.
    """
    from vtc.eval.report.tables import shown
    from vtc.eval.results.settings import NONE

    rows = [row for row in run.results["settings"] if row["setting"] != NONE]
    held = sorted((row for row in rows if row["series"] == against), key=lambda row: -row["equivalent_tokens"])
    if not held:
        known = ", ".join(dict.fromkeys(row["series"] for row in rows))
        raise InputError(f"argument --against: {against!r} is not in {run.folder}; there are {known}")
    none = next(row for row in run.results["settings"] if row["setting"] == NONE)
    by_setting: dict[str, dict[str, Any]] = {}
    for sample in run.samples:
        by_setting.setdefault(str(sample["setting"]), {})[sample["id"]] = sample
    columns = []
    for reference in held:
        tokens = reference["equivalent_tokens"]
        near: dict[str, tuple[float, Any]] = {}
        for row in rows:
            apart = abs(row["equivalent_tokens"] - tokens)
            if apart <= NEAR * tokens and apart < near.get(row["series"], (NEAR * tokens + 1, None))[0]:
                near[row["series"]] = apart, row
        chosen = {series: row for series, (_, row) in near.items()}
        column = Column(f"{shown(run.results)}s, {tokens:.0f}", tokens, none["overall"]["accuracy"])
        best = max(chosen.values(), key=lambda row: row["overall"]["accuracy"])["setting"]
        for series, row in chosen.items():
            samples = by_setting[row["setting"]]
            mean, low, high = _difference(samples, by_setting[reference["setting"]])
            to_best = _difference(samples, by_setting[best])
            groups = {name: score["accuracy"] for name, score in row["groups"].items()}
            level = to_best[2] >= 0
            column.cells[series] = Cell(row["setting"], row["overall"]["accuracy"], mean, low, high, level, groups)
        column.left_out = [name for name in dict.fromkeys(row["series"] for row in rows) if name not in column.cells]
        columns.append(column)
    columns[-1].fewest = True
    return columns


def _difference(samples: dict[str, Any], others: dict[str, Any]) -> tuple[float, float, float]:
    """Mean difference of scores on the same questions, and its paired interval."""
    from statistics import fmean

    from vtc.eval.results.stats import paired_bootstrap

    shared = [name for name in samples if name in others]
    mine, without = ([some[name]["score"] or 0.0 for name in shared] for some in (samples, others))
    if mine == without:
        return 0.0, 0.0, 0.0
    clusters = [samples[name]["cluster"] for name in shared]
    clustered = None if all(cluster is None for cluster in clusters) else clusters
    low, high = paired_bootstrap(mine, without, fmean, is_mean=True, clusters=clustered)
    return fmean(mine) - fmean(without), low, high


def tables(columns: Sequence[Column], against: str) -> list[str]:
    """The comparison, and accuracy by group of questions at the fewest tokens of each run, in Markdown."""
    from vtc.eval.results.kinds import numbered
    from vtc.eval.results.table import aligned

    names = sorted(
        dict.fromkeys(series for column in columns for series in column.cells),
        key=lambda series: -_mean([column.cells[series].accuracy for column in columns if series in column.cells]),
    )
    about = [about_of(name, numbered(names)) for name in names]
    first = ["method", "decides by", "positions"][: 2 + numbered(names)]
    heading = [*first, *(column.title for column in columns)]
    untouched = ["none", *["–"] * (len(first) - 1), *(f"{100 * column.none:.1f}" for column in columns)]
    rows = [[*cells, *(_cell(column, name, against) for column in columns)] for cells, name in zip(about, names)]
    lines = [*aligned([heading, untouched, *rows]), "", LEGEND.format(against=against, rows=len(names))]
    for column in columns:
        if column.left_out:
            lines += [f"Without a setting within {NEAR:.0%} of {column.title} tokens: {', '.join(column.left_out)}."]
    for column in (column for column in columns if column.fewest):
        groups = list(next(iter(column.cells.values())).groups)
        rows = [
            [*cells, *(f"{100 * column.cells[name].groups[group]:.0f}" for group in groups)]
            for cells, name in zip(about, names)
            if name in column.cells
        ]
        lines += ["", f"By group of questions, {column.title} tokens:", ""]
        lines += aligned([[*first, *groups], *rows])
    return lines


def about_of(series: str, positions: bool) -> list[str]:
    """A method's cells in front of its figures; with how it numbers what is left where rows differ in that."""
    from vtc.eval.results.kinds import positions_of

    return [f"`{series}`", decides_by(series), *([positions_of(series) or "–"] if positions else [])]


def decides_by(series: str) -> str:
    """What decides in a method, in words."""
    from vtc.eval.results.kinds import signals_of

    return ", ".join(signals_of(series)) or "–"


def _cell(column: Column, series: str, against: str) -> str:
    cell = column.cells.get(series)
    if cell is None:
        return "–"
    text = f"{100 * cell.accuracy:.1f}"
    if series != against:
        text += f" {100 * cell.difference:+.1f} [{100 * cell.low:+.1f}, {100 * cell.high:+.1f}]"
    return text + (" =" if cell.level else "")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
