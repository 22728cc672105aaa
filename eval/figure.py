"""The figure of a run: accuracy against equivalent tokens, one line a method."""

import io
from itertools import cycle
from typing import Any

from vtc.eval.results import Results, SettingResult
from vtc.eval.settings import NONE

#: Okabe and Ito's colours, told apart with any colour vision; markers tell them apart in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D1F")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
GREY = "#666666"


def draw(results: Results) -> bytes:
    """The figure as PNG. `results` has at least "none"."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 5.0), layout="constrained")
    axes = figure.add_subplot()
    none = next(row for row in results["settings"] if row["setting"] == NONE)
    _draw_none(axes, none)
    blind = (results["blind"] or {}).get("overall")
    if blind is not None:
        axes.axhline(100 * blind, color=GREY, linestyle=":", linewidth=1.4, label="none, blank picture")
    series: dict[str, list[SettingResult]] = {}
    for row in results["settings"]:
        if row["setting"] != NONE:
            series.setdefault(row["series"], []).append(row)
    for number, ((name, rows), colour, marker) in enumerate(zip(series.items(), cycle(COLOURS), cycle(MARKERS))):
        style = "-" if number < len(COLOURS) else "--"
        _draw_series(axes, name, rows, color=colour, marker=marker, linestyle=style)
    _label(axes, results)
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


def _draw_none(axes: Any, none: SettingResult) -> None:
    low, high = none["overall"]["interval_95"]
    axes.axhspan(100 * low, 100 * high, color=GREY, alpha=0.15, linewidth=0)
    axes.axhline(
        100 * none["overall"]["accuracy"], color=GREY, linewidth=1.4, label=f"none ({none['visual_tokens']:.0f} tokens)"
    )


def _draw_series(axes: Any, name: str, rows: list[SettingResult], **style: Any) -> None:
    rows = sorted(rows, key=lambda row: row["equivalent_tokens"])
    tokens = [row["equivalent_tokens"] for row in rows]
    middle = [100 * row["overall"]["accuracy"] for row in rows]
    below = [y - 100 * row["overall"]["interval_95"][0] for y, row in zip(middle, rows)]
    above = [100 * row["overall"]["interval_95"][1] - y for y, row in zip(middle, rows)]
    _, caps, bars = axes.errorbar(
        tokens, middle, yerr=(below, above), label=name, elinewidth=0.8, capsize=2, markersize=5.5, **style
    )
    for part in (*caps, *bars):
        part.set_alpha(0.4)  # the lines are what is read first


def _label(axes: Any, results: Results) -> None:
    config = results["config"]
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("equivalent visual tokens per picture (mean over decoder layers, log scale)")
    axes.set_ylabel("right answers, % (bars: 95 % interval)")
    axes.set_title(
        f"{config['model']}: {results['questions']} questions of {config['benchmark'][:24]}", loc="left", fontsize=11
    )
    axes.grid(alpha=0.25, linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
