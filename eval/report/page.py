"""The page of `vtc report`: what is shown of runs, and how it is drawn."""

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtc.eval.report import short, svg
from vtc.eval.report.panels import TOKENS, Cost, Worth, right_answers
from vtc.eval.results import stats
from vtc.eval.results.records import SampleRecord
from vtc.eval.results.results import Results, SettingResult
from vtc.eval.results.settings import NONE

#: Changed answers that are shown of each setting, of each kind.
EXAMPLES = 2

#: What figures are drawn against beside equivalent tokens.
COSTS = (
    Cost("GFLOP of the prefill", lambda row: row["flops"] / 1e9),
    Cost("prefill, ms per batch", lambda row: row["prefill_ms"]["median"]),
)


@dataclass(frozen=True)
class Run:
    """A run that has ended.

    Attributes:
        folder: of it.
        results: its results.json.
        samples: its samples.jsonl.
    """

    folder: Path
    results: Results
    samples: list[SampleRecord]

    @property
    def task(self) -> str:
        """What was asked."""
        return self.results["config"]["task"]

    @property
    def model(self) -> str:
        """Which model."""
        return self.results["config"]["model"]

    @property
    def headline(self) -> str:
        """The metric that settings are compared by."""
        return self.results["config"]["metrics"][0]


@dataclass(frozen=True)
class Row:
    """A line of the leaderboard: one setting of one run."""

    run: Run
    setting: SettingResult


@dataclass(frozen=True)
class Column:
    """A column of the leaderboard.

    Attributes:
        title: its heading.
        value: of a row: text, a number, or None.
        digits: behind the point, of numbers.
    """

    title: str
    value: Callable[[Row], Any]
    digits: int = 1

    def text(self, row: Row) -> str:
        """As it is read."""
        value = self.value(row)
        return "–" if value is None else value if isinstance(value, str) else f"{value:.{self.digits}f}"

    def plain(self, row: Row) -> Any:
        """As a program reads it: all digits; nothing where there is no number."""
        value = self.value(row)
        return "" if value is None else value

    @property
    def is_number(self) -> bool:
        """Whether it is sorted by size, the greatest first."""
        return self.title not in _TEXTS


_TEXTS = ("task", "model", "setting", "metric")


def _headline(row: Row, key: str) -> Any:
    found = row.setting["metrics"].get(row.run.headline)
    return None if found is None else found[key]  # type: ignore[literal-required]


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


COLUMNS = (
    Column("task", lambda row: row.run.task),
    Column("model", lambda row: row.run.model),
    Column("setting", lambda row: row.setting["setting"]),
    Column("metric", lambda row: row.run.headline),
    Column("value", lambda row: _headline(row, "value"), 3),
    Column("of none %", lambda row: _percent(row.setting["relative_accuracy"])),
    Column("less none", lambda row: _headline(row, "difference"), 3),
    Column("from", lambda row: (_headline(row, "difference_95") or [None])[0], 3),
    Column("to", lambda row: (_headline(row, "difference_95") or [None])[-1], 3),
    Column("tokens", lambda row: row.setting["equivalent_tokens"]),
    Column("GFLOP", lambda row: row.setting["flops"] / 1e9, 2),
    Column("prefill ms", lambda row: row.setting["prefill_ms"]["median"]),
    Column("prefill ×", lambda row: row.setting["prefill_speedup"]["median"], 2),
    Column("first token ms", lambda row: row.setting["first_token_ms"]["median"]),
    Column("KV MB", lambda row: row.setting["kv_bytes"] / 1e6, 2),
    Column("right→wrong", lambda row: row.setting["flips"]["right_to_wrong"], 0),
    Column("wrong→right", lambda row: row.setting["flips"]["wrong_to_right"], 0),
    Column("p", lambda row: row.setting["flips"]["p_value"], 3),
    Column("same answer %", lambda row: _percent(row.setting["agreement"])),
    Column("unparsed", lambda row: row.setting["unparsed"], 0),
)


def leaderboard(runs: Sequence[Run]) -> list[Row]:
    """All settings of all runs, the best of its model's none first, runs of one task together."""
    rows = [Row(run, setting) for run in runs for setting in run.results["settings"]]
    return sorted(rows, key=lambda row: (row.run.task, row.run.model, -(row.setting["relative_accuracy"] or 0.0)))


def page(runs: Sequence[Run], unread: Sequence[str]) -> str:
    """The whole page, with nothing outside it."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(loader=PackageLoader("vtc.eval.report", "."), autoescape=True, undefined=StrictUndefined)
    rows = leaderboard(runs)
    return made.get_template("page.html.j2").render(
        columns=COLUMNS,
        rows=rows,
        runs=[_section(run, number) for number, run in enumerate(runs)],
        means=_means(runs),
        tasks=sorted({run.task for run in runs}),
        unread=unread,
    )


def _section(run: Run, number: int) -> dict[str, Any]:
    headed = [row for row in run.results["settings"] if run.headline in row["metrics"]]
    is_share = short.headline(run.results) is None
    results: Results = run.results if is_share else {**run.results, "settings": headed}
    worth = right_answers(results) if is_share else Worth(run.headline, _reader(run.headline))
    return {
        "run": run,
        "short": short,
        "figure": svg.draw(results, TOKENS, worth, f"run {number}"),
        "figures": [(cost.title, svg.draw(results, cost, worth, f"run {number} {cost.title}")) for cost in COSTS],
        "groups": list(run.results["settings"][0]["groups"]),
        "flips": examples(run),
        "about": _about(run.results),
    }


def _reader(metric: str) -> Callable[[Any], tuple[float, float, float]]:
    """What reads a metric and its interval of a row."""
    return lambda row: (row["metrics"][metric]["value"], *row["metrics"][metric]["interval_95"])


def _about(results: Results) -> list[tuple[str, str]]:
    config, facts = results["config"], results["model"]
    told = {
        key: value
        for key, value in config.items()
        if key not in ("settings", "metrics", "versions") and value is not None
    }
    versions = ", ".join(f"{name} {version}" for name, version in config["versions"].items())
    return [*((key, str(value)) for key, value in {**told, **{f"loaded {k}": v for k, v in facts.items()}}.items()),
            ("versions", versions)]  # fmt: skip


def _means(runs: Sequence[Run]) -> list[tuple[str, str, dict[str, float | None], float | None]]:
    """By model and setting: the share of none of each task, and the mean of these."""
    found: dict[tuple[str, str], dict[str, float | None]] = {}
    for run in runs:
        for row in run.results["settings"]:
            found.setdefault((run.model, row["setting"]), {})[run.task] = row["relative_accuracy"]
    means = [(model, name, ratios, stats.mean_relative(ratios)) for (model, name), ratios in found.items()]
    return sorted(means, key=lambda each: (each[0], -(each[3] or 0.0)))


def examples(run: Run) -> list[dict[str, Any]]:
    """Answers that compression changed from right to wrong, or back, each with its picture where there is one."""
    without = {sample["id"]: sample for sample in run.samples if sample["setting"] == NONE}
    shown: dict[tuple[str | None, bool | None], int] = {}
    found = []
    for sample in run.samples:
        file = run.folder / "flips" / (sample["picture"] or "")
        kind = sample["setting"], sample["correct"]
        if not sample["picture"] or not file.is_file() or shown.get(kind, 0) >= EXAMPLES:
            continue
        shown[kind] = shown.get(kind, 0) + 1
        picture = base64.b64encode(file.read_bytes()).decode()
        before = without[sample["id"]]["prediction"]
        found.append({"sample": sample, "before": before, "picture": f"data:image/jpeg;base64,{picture}"})
    return found
