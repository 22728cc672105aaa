"""What several tasks have in common: each method's relative accuracy per task, and the mean of these."""

from collections.abc import Sequence
from typing import TypedDict

from vtc.eval.results import stats, table
from vtc.eval.results.results import Results


class SettingSummary(TypedDict):
    """One setting over all tasks that it ran on.

    Attributes:
        setting: spec string.
        headline: the first metric of each task, in its unit.
        relative: the same divided by that of "none"; None where that is 0.
        mean_relative: mean of these over the tasks that have one, as papers average; None where none has.
        equivalent_tokens: of each task.
    """

    setting: str
    headline: dict[str, float]
    relative: dict[str, float | None]
    mean_relative: float | None
    equivalent_tokens: dict[str, float]


class Summary(TypedDict):
    """The file `summary.json`.

    Attributes:
        tasks: name -> its headline metric.
        settings: in the order in which they first come.
        failed: questions of each task that could not be asked.
    """

    tasks: dict[str, str]
    settings: list[SettingSummary]
    failed: dict[str, int]


def build(done: Sequence[Results]) -> Summary:
    """The summary of some tasks' results."""
    found: dict[str, SettingSummary] = {}
    tasks: dict[str, str] = {}
    for results in done:
        task = results["config"]["task"]
        tasks[task] = next(iter(results["config"]["metrics"]), "")
        for row in results["settings"]:
            each = found.setdefault(row["setting"], _empty(row["setting"]))
            if tasks[task] in row["metrics"]:
                each["headline"][task] = row["metrics"][tasks[task]]["value"]
                each["relative"][task] = row["relative_accuracy"]
            each["equivalent_tokens"][task] = row["equivalent_tokens"]
    for each in found.values():
        each["mean_relative"] = stats.mean_relative(each["relative"])
    failed = {results["config"]["task"]: len(results["failed"]) for results in done}
    return {"tasks": tasks, "settings": list(found.values()), "failed": failed}


def plain(summary: Summary) -> str:
    """For the terminal."""
    return markdown(summary).rstrip()


def markdown(summary: Summary) -> str:
    """For a file."""
    heading = ["setting", *(f"{task} {metric}" for task, metric in summary["tasks"].items()), "mean of none %"]
    rows = [[each["setting"], *_cells(each, summary["tasks"])] for each in summary["settings"]]
    failed = ", ".join(f"{count} of {task}" for task, count in summary["failed"].items() if count)
    said = f"\nQuestions that could not be asked: {failed}.\n" if failed else ""
    return "\n".join(table.aligned([heading, *rows])) + f"\n\n{_LEGEND}\n{said}"


_LEGEND = "In brackets: % of none on the same questions; the last column is the mean of these over tasks."


def _cells(each: SettingSummary, tasks: dict[str, str]) -> list[str]:
    cells = []
    for task in tasks:
        value, relative = each["headline"].get(task), each["relative"].get(task)
        cells.append(
            "–" if value is None else f"{value:.4g}" + (f" ({100 * relative:.1f})" if relative is not None else "")
        )
    mean = each["mean_relative"]
    return [*cells, "–" if mean is None else f"{100 * mean:.1f}"]


def _empty(setting: str) -> SettingSummary:
    return {"setting": setting, "headline": {}, "relative": {}, "mean_relative": None, "equivalent_tokens": {}}
