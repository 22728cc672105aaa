"""`vtc report RUN...`: one page about any number of runs, with figures, tables, changed answers and a leaderboard.

The page needs nothing but itself. Beside it the leaderboard as CSV and as Markdown.
"""

import argparse
import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vtc.eval.cli.arguments import say
from vtc.eval.cli.errors import InputError
from vtc.eval.results.folder import CONFIG, write_atomically

if TYPE_CHECKING:
    from vtc.eval.report.page import Run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `vtc report`."""
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs, or folders that hold some")
    parser.add_argument("--output", type=Path, default="report.html", help="the page; .csv and .md go beside it")


def main(args: argparse.Namespace) -> None:
    """Write the page.

    Raises:
        InputError: there is no run that has ended, or the page can't be written.
    """
    from vtc.eval.report import page
    from vtc.eval.results import table

    if args.output.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"argument --output: {str(args.output)!r} is no page; give e.g. report.html")
    runs, unread = read_runs(args.runs)
    if not runs:
        reasons = "; ".join(unread) or "no folder holds a results.json"
        raise InputError(
            f"argument RUNS: nothing to report ({reasons}); give the --output of a vtc eval that has ended"
        )
    for reason in unread:
        say(f"vtc report: left out: {reason}")
    rows = page.leaderboard(runs)
    heading = [column.title for column in page.COLUMNS]
    text = [[column.text(row) for column in page.COLUMNS] for row in rows]
    sheet = io.StringIO(newline="")
    csv.writer(sheet, lineterminator="\n").writerows(
        [heading, *([column.plain(row) for column in page.COLUMNS] for row in rows)]
    )
    try:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(args.output, page.page(runs, unread))
        write_atomically(args.output.with_suffix(".csv"), sheet.getvalue())
        write_atomically(args.output.with_suffix(".md"), "\n".join(table.aligned([heading, *text])) + "\n")
    except OSError as error:
        raise InputError(f"argument --output: {str(args.output)!r} can't be written ({error.strerror})") from None
    beside = ", ".join(str(args.output.with_suffix(suffix)) for suffix in (".csv", ".md"))
    print(f"all {len(rows)} rows: {beside}", f"page: {args.output}", sep="\n")


def read_runs(folders: Sequence[Path]) -> tuple[list["Run"], list[str]]:
    """The runs in some folders, and why others are left out.

    Raises:
        InputError: a folder is not there.
    """
    from vtc.eval.report.page import Run
    from vtc.eval.results.results import VERSION

    runs, unread = [], []
    for given in folders:
        if not given.is_dir():
            raise InputError(f"argument RUNS: {str(given)!r} is no folder; give folders of runs")
        inside = [given] if (given / CONFIG).is_file() else sorted(each.parent for each in given.glob(f"*/{CONFIG}"))
        for folder in inside:
            try:
                results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
                samples = [json.loads(line) for line in (folder / "samples.jsonl").read_bytes().splitlines()]
            except (OSError, ValueError):
                unread.append(f"{folder}: it has not ended, or its results can't be read")
                continue
            if results.get("version") != VERSION or not results.get("settings"):
                unread.append(f"{folder}: its results are of version {results.get('version')!r}, or of no question")
                continue
            runs.append(Run(folder, results, samples))
    return runs, unread
