"""Small multiples: right answers against a cost, one panel a kind of method, the baselines grey in each."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vtc.eval.report.tables import shown
from vtc.eval.results.kinds import BASELINE, KINDS, by_kind, signals_of
from vtc.eval.results.results import Results, SettingResult
from vtc.eval.results.settings import NONE

#: Okabe and Ito's colours, told apart with any colour vision; markers and dashes tell them apart in grey.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d1f")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
STYLES: tuple[Any, ...] = ("-", "--", "-.")
GREY, PALE, INK = "#666666", "#8d8d8d", "#1d2126"
#: Sizes of text in points.
TEXT, SMALL = 8.5, 7.5
_BASELINE_STYLES: tuple[Any, ...] = ((0, (1, 1.2)), (0, (4, 1.5)), (0, (6, 1.5, 1, 1.5)), (0, (2, 2)))
#: A kind with more methods than that has a panel for each signal that decides first.
MOST = 8
#: Of the height of a panel: a line of text.
_LINE = 0.075


@dataclass(frozen=True)
class Cost:
    """What is drawn to the right.

    Attributes:
        title: with its unit.
        read: of a row of the results.
    """

    title: str
    read: Callable[[Any], float]


@dataclass(frozen=True)
class Worth:
    """What is drawn upwards.

    Attributes:
        title: with its unit.
        read: value of a row, and the bounds of its 95 % interval.
        blank: of the untouched model that sees nothing; None where it is not known.
    """

    title: str
    read: Callable[[Any], tuple[float, float, float]]
    blank: float | None = None


TOKENS = Cost("equivalent visual tokens", lambda row: row["equivalent_tokens"])


def right_answers(results: Results) -> Worth:
    """The share of right answers, in %."""

    def read(row: SettingResult) -> tuple[float, float, float]:
        low, high = row["overall"]["interval_95"]
        return 100 * row["overall"]["accuracy"], 100 * low, 100 * high

    blind = (results["blind"] or {}).get("overall")
    return Worth("right answers, %", read, None if blind is None else 100 * blind)


@dataclass(frozen=True)
class Panel:
    """One kind of method.

    Attributes:
        title: the kind.
        series: its methods, the best first.
        baselines: drawn in grey.
    """

    title: str
    series: dict[str, list[SettingResult]]
    baselines: dict[str, list[SettingResult]]


def panels(results: Results) -> list[Panel]:
    """A panel for each kind that ran, or several where it has many methods; a single one of baselines alone."""
    kinds = by_kind(results["settings"])
    baselines = dict(sorted(kinds.pop(BASELINE, {}).items()))
    if not kinds:
        return [Panel(KINDS[BASELINE] if baselines else "", {}, baselines)]
    return [
        Panel(title, some, baselines) for kind, series in kinds.items() for title, some in _parted(KINDS[kind], series)
    ]


def _parted(title: str, series: dict[str, list[SettingResult]]) -> list[tuple[str, dict[str, list[SettingResult]]]]:
    """Titles, and the series of each: all, or where they are many, those in which the same signal decides first."""
    parts: dict[str, dict[str, list[SettingResult]]] = {}
    for name, rows in series.items():
        parts.setdefault((*signals_of(name), "")[0], {})[name] = rows
    alone = {name: rows for part in parts.values() if len(part) == 1 for name, rows in part.items()}
    several = {signal: part for signal, part in parts.items() if len(part) > 1 and signal}
    if len(series) <= MOST or not several:
        return [(title, series)]
    rest = {name: rows for name, rows in series.items() if name in alone or name in parts.get("", {})}
    found = [(f"{title}: {signal}", part) for signal, part in several.items()]
    return [*found, (f"{title}: others", rest)] if rest else found


class Multiples:
    """Panels of one run with the same scales.

    Args:
        results: with at least "none".
        cost: to the right.
        worth: upwards.

    Attributes:
        panels: to be drawn.
        is_log: whether the cost is drawn on a logarithmic scale: where its range is wide.
        front: (cost, worth, series) of the settings that no other beats, by cost; empty where there are not several
            methods to compare.
    """

    def __init__(self, results: Results, cost: Cost, worth: Worth):
        self.panels, self.cost, self.worth = panels(results), cost, worth
        self.seen = f"per {shown(results)}" if cost is TOKENS else ""
        self.none = next(row for row in results["settings"] if row["setting"] == NONE)
        rows = results["settings"]
        points = [(cost.read(row), worth.read(row)[0], row["series"]) for row in rows]
        self.front = front_of(points) if sum(len(panel.series) for panel in self.panels) > 1 else []
        costs = [point[0] for point in points if point[0] > 0] or [1.0]
        self.is_log = max(costs) > 4 * min(costs)
        self._sides = _widened(min(costs), max(costs), self.is_log)
        values = [point[1] for point in points] + [*worth.read(self.none)[1:]]
        values += [] if worth.blank is None else [worth.blank]
        self._bottom, self._top = min(values), max(values)

    @property
    def label(self) -> str:
        """What stands below a panel."""
        return f"{self.cost.title} {self.seen}".rstrip() + (", log scale" if self.is_log else "")

    def draw(self, axes: Any, panel: Panel, width: float, labelled: bool = True) -> None:
        """Draw a panel; what all of them have in common is labelled for a legend of the whole figure (`common`).

        Args:
            axes: of the panel.
            panel: one of `panels`.
            width: of the panel, in inches.
            labelled: whether the cost is told below it.
        """
        axes.set_title(panel.title, loc="left", fontsize=TEXT + 1, fontweight="bold")
        self._scales(axes)
        self._untouched(axes)
        for number, (name, rows) in enumerate(panel.baselines.items()):
            marker, dash = MARKERS[number % len(MARKERS)], _BASELINE_STYLES[number % len(_BASELINE_STYLES)]
            self._line(axes, name, rows, color=PALE, marker=marker, linestyle=dash, markerfacecolor="none", zorder=2.0)
        mine = []
        for number, (name, rows) in enumerate(panel.series.items()):
            turn, place = divmod(number, len(COLOURS))  # the same colour again has another marker and another dash
            marker, dash = MARKERS[(place + turn) % len(MARKERS)], STYLES[turn % len(STYLES)]
            mine.append(self._line(axes, name, rows, color=COLOURS[place], marker=marker, linestyle=dash, zorder=3.0))
        self._name_front(axes, panel)
        if mine:
            self._key(axes, mine, list(panel.series), width, 32 if labelled else 18)
        if labelled:
            axes.set_xlabel(self.label, fontsize=SMALL)

    def common(self, axes: Any) -> tuple[list[Any], list[str]]:
        """Handles and labels of what every panel shows, from one that was drawn."""
        handles, labels = axes.get_legend_handles_labels()
        mine = {name for panel in self.panels for name in panel.series}
        chosen = [(handle, label) for handle, label in zip(handles, labels) if label not in mine]
        return [handle for handle, _ in chosen], [label for _, label in chosen]

    def _key(self, axes: Any, lines: Sequence[Any], names: Sequence[str], width: float, below: float) -> None:
        """Say which line is which, some points below the axis."""
        from matplotlib.transforms import ScaledTranslation

        place = axes.transAxes + ScaledTranslation(0, -below / 72, axes.figure.dpi_scale_trans)  # 72 points are an inch
        axes.legend(
            lines, names, loc="upper left", bbox_to_anchor=(-0.03, 0), bbox_transform=place, borderaxespad=0,
            ncols=_columns(names, width), frameon=False, fontsize=SMALL, handlelength=2.2, columnspacing=1.2,
            labelspacing=0.3,
        )  # fmt: skip

    def _scales(self, axes: Any) -> None:
        if self.is_log:
            axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_xlim(*self._sides)
        axes.tick_params(labelsize=SMALL)
        room = (self._top - self._bottom) or 1.0
        axes.set_ylim(self._bottom - 0.06 * room, self._top + room * (0.06 + _LINE * self._levels()))
        axes.grid(alpha=0.25, linewidth=0.6)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)

    def _untouched(self, axes: Any) -> None:
        value, low, high = self.worth.read(self.none)
        axes.axhspan(low, high, color=GREY, alpha=0.13, linewidth=0)
        axes.axhline(value, color=GREY, linewidth=1.2, label=f"none ({self.none['visual_tokens']:.0f} tokens)")
        if self.worth.blank is not None:
            label = f"none, blank {self.seen.removeprefix('per ') or 'input'}"
            axes.axhline(self.worth.blank, color=GREY, linestyle=":", linewidth=1.2, label=label)
        if self.front:
            costs, values = [point[0] for point in self.front], [point[1] for point in self.front]
            label = "front: what no other setting beats"
            axes.step([*costs, self._sides[1]], [*values, values[-1]], where="post", color=INK, linewidth=1.0,
                      linestyle=(0, (3, 2)), label=label, zorder=2.5)  # fmt: skip

    def _line(self, axes: Any, name: str, rows: Sequence[SettingResult], **style: Any) -> Any:
        rows = sorted(rows, key=self.cost.read)
        read = [self.worth.read(row) for row in rows]
        below = [max(0.0, value - low) for value, low, _ in read]
        above = [max(0.0, high - value) for value, _, high in read]
        drawn = axes.errorbar(
            [self.cost.read(row) for row in rows], [value for value, _, _ in read], yerr=(below, above), label=name,
            elinewidth=0.7, markersize=4.5, linewidth=1.4, **style,
        )  # fmt: skip
        for part in (*drawn[1], *drawn[2]):
            part.set_alpha(0.3)  # the lines are what is read first
        return drawn

    def _named(self, panel: Panel) -> list[tuple[float, float, str]]:
        """The first point on the front of each of a panel's methods, by cost."""
        found: dict[str, tuple[float, float, str]] = {}
        for point in self.front:
            if point[2] in panel.series:
                found.setdefault(point[2], point)
        return list(found.values())

    def _levels(self) -> int:
        """Lines of text that are needed above the highest point, in the panel that needs most."""
        return max((len(self._named(panel)) for panel in self.panels), default=0)

    def _name_front(self, axes: Any, panel: Panel) -> None:
        """Ring the points on the front and name their methods above them, each on a line of its own."""
        mine = [point for point in self.front if point[2] in panel.series or point[2] in panel.baselines]
        ring = {"marker": "o", "markersize": 8.5, "markerfacecolor": "none", "markeredgecolor": INK}
        axes.plot([point[0] for point in mine], [point[1] for point in mine], linestyle="none", zorder=4.0, **ring)
        named = self._named(panel)
        room = (self._top - self._bottom) or 1.0
        for level, (cost, value, name) in enumerate(reversed(named)):
            height = self._top + room * (0.05 + _LINE * level)
            axes.plot([cost, cost], [value, height], color=INK, linewidth=0.6, zorder=2.2)
            side = "left" if self._place(cost) < 0.5 else "right"
            axes.annotate(name, (cost, height), xytext=(2 if side == "left" else -2, -1), textcoords="offset points",
                          ha=side, va="bottom", fontsize=SMALL, fontweight="bold", color=INK, zorder=5)  # fmt: skip

    def _place(self, cost: float) -> float:
        """Where a cost lies between the sides of a panel, from 0 to 1."""
        low, high = self._sides
        return math.log(cost / low) / math.log(high / low) if self.is_log else (cost - low) / (high - low)


def front_of(points: Sequence[tuple[float, float, str]]) -> list[tuple[float, float, str]]:
    """Of points (cost, worth, name) those for which no other costs as little and is worth as much, by cost."""
    front: list[tuple[float, float, str]] = []
    for point in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or point[1] > front[-1][1]:
            front.append(point)
    return front


def _widened(low: float, high: float, is_log: bool) -> tuple[float, float]:
    """Some room on both sides."""
    if is_log:
        room = (high / low) ** 0.05
        return low / room, high * room
    room = 0.06 * (high - low) or 0.5 * high
    return low - room, high + room


def _columns(names: Sequence[str], width: float) -> int:
    """So many columns of a legend fit into a width of inches."""
    each = 0.6 * SMALL * max(map(len, names)) + 3.6 * SMALL  # points: the letters, and the line before them
    return max(1, int(72 * width // each))
