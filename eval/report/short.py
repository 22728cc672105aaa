"""The short table: untouched, the baselines, and the best methods of each kind among those that ran."""

import textwrap
from dataclasses import dataclass

from vtc.eval.report.tables import heading, shown
from vtc.eval.results.kinds import BASELINE, BEST, KINDS, by_kind
from vtc.eval.results.results import Results, SettingResult
from vtc.eval.results.settings import NONE

#: Of the lines, in characters.
WIDTH = 100

LEGEND = (
    "tokens: equivalent tokens, the mean over decoder layers of the visual tokens that enter the layer. prefill ×: how "
    "much faster the whole prefill was, tower and all; of ×: what its FLOPs promise."
)


@dataclass(frozen=True)
class Group:
    """Settings of one kind.

    Attributes:
        title: what they are.
        rows: of the results, those of one method together, the best method first.
    """

    title: str
    rows: list[SettingResult]


def groups(results: Results) -> list[Group]:
    """What is shown below "none"."""
    found = []
    for kind, series in by_kind(results["settings"]).items():
        chosen = list(series)[: None if kind == BASELINE else BEST]
        title = KINDS[kind] if len(chosen) == len(series) else f"{KINDS[kind]}, the best {BEST} of {len(series)}"
        found.append(Group(title, [row for name in chosen for row in series[name]]))
    return found


def columns(results: Results) -> list[str]:
    """Headings behind the setting's; with the task's headline metric where it isn't the share of right answers."""
    return ["right %", "95 %", *([name] if (name := headline(results)) else []), "tokens", "prefill ×", "of ×"]


def cells(results: Results, row: SettingResult) -> list[str]:
    """A row's cells behind its setting."""
    low, high = row["overall"]["interval_95"]
    name = headline(results)
    metric = row["metrics"].get(name) if name else None
    return [
        f"{100 * row['overall']['accuracy']:.1f}",
        f"{100 * low:.1f}–{100 * high:.1f}",
        *(["–" if metric is None else f"{metric['value']:.4g}"] if name else []),
        f"{row['equivalent_tokens']:.1f}",
        f"{row['prefill_speedup']['median']:.2f}",
        f"{row['prefill_speedup_ideal']:.2f}",
    ]


def headline(results: Results) -> str | None:
    """The task's first metric; None where it tells what the share of right answers tells."""
    for row in results["settings"]:
        for name, metric in row["metrics"].items():
            if abs(metric["value"] - row["overall"]["accuracy"]) > 1e-9:
                return name
            break
    return None


def none(results: Results) -> SettingResult:
    """The untouched model's row."""
    return next(row for row in results["settings"] if row["setting"] == NONE)


def blank(results: Results) -> tuple[str, str] | None:
    """What the untouched model gets right without seeing anything: label and share, where it is known."""
    share = (results["blind"] or {}).get("overall")
    return None if share is None else (f"none, blank {shown(results)}", f"{100 * share:.1f}")


def plain(results: Results) -> str:
    """For the terminal."""
    if not results["settings"]:
        return heading(results)
    rows: list[list[str]] = [["", *columns(results)], [NONE, *cells(results, none(results))]]
    if (without := blank(results)) is not None:
        rows.append(list(without))
    for group in groups(results):
        rows += [[], [group.title], *([f"  {row['setting']}", *cells(results, row)] for row in group.rows)]
    return "\n\n".join([heading(results), "\n".join(_aligned(rows)), textwrap.fill(LEGEND, WIDTH)])


def _aligned(rows: list[list[str]]) -> list[str]:
    """Columns below each other; a setting too long for its column has a line of its own."""
    widths = [max(map(len, column)) for column in zip(*(row for row in rows if len(row) == len(rows[0])))]
    names = max(len(row[0]) for row in rows if len(row) > 1)
    widths[0] = min(names, WIDTH - sum(2 + width for width in widths[1:]))
    lines = []
    for first, *rest in (row or [""] for row in rows):
        if rest and len(first) > widths[0]:
            lines.append(first)
            first = ""
        numbers = (f"  {cell:>{width}}" for cell, width in zip(rest, widths[1:]))
        lines.append((first.ljust(widths[0]) + "".join(numbers)) if rest else first)
    return lines
