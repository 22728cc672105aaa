"""The figure of a run: accuracy against equivalent tokens, one line a method."""

import io
import math
import re
from typing import Any

from vtc.eval.report.tables import shown
from vtc.eval.results.results import Results, SettingResult
from vtc.eval.results.settings import NONE

#: Okabe and Ito's colours, told apart with any colour vision; markers tell them apart in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D1F")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
STYLES = ("-", "--", ":", "-.")
COLUMNS = 4
GREY = "#666666"


def draw(results: Results) -> bytes:
    """The figure as PNG. `results` has at least "none"."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    series: dict[str, list[SettingResult]] = {}
    for row in results["settings"]:
        if row["setting"] != NONE:
            series.setdefault(row["series"], []).append(row)
    figure = Figure(figsize=(8.4, 4.6 + 0.19 * math.ceil((len(series) + 2) / COLUMNS)), layout="constrained")
    axes = figure.add_subplot()
    none = next(row for row in results["settings"] if row["setting"] == NONE)
    _draw_none(axes, none)
    blind = (results["blind"] or {}).get("overall")
    if blind is not None:
        axes.axhline(100 * blind, color=GREY, linestyle=":", linewidth=1.4, label=f"none, blank {shown(results)}")
    for number, (name, rows) in enumerate(series.items()):
        turn, place = divmod(number, len(COLOURS))  # the same colour again has another marker and another dash
        marker, style = MARKERS[(place + turn) % len(MARKERS)], STYLES[turn % len(STYLES)]
        _draw_series(axes, name, rows, color=COLOURS[place], marker=marker, linestyle=style)
    _label(axes, results)
    figure.legend(loc="outside lower center", ncols=COLUMNS, frameon=False, fontsize=8)
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
    below = [max(0.0, y - 100 * row["overall"]["interval_95"][0]) for y, row in zip(middle, rows)]
    above = [max(0.0, 100 * row["overall"]["interval_95"][1] - y) for y, row in zip(middle, rows)]
    _, caps, bars = axes.errorbar(
        tokens, middle, yerr=(below, above), label=name, elinewidth=0.8, capsize=2, markersize=5.5, **style
    )
    for part in (*caps, *bars):
        part.set_alpha(0.4)  # the lines are what is read first


def _label(axes: Any, results: Results) -> None:
    config = results["config"]
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel(f"equivalent visual tokens per {shown(results)} (mean over decoder layers, log scale)")
    axes.set_ylabel("right answers, % (bars: 95 % interval)")
    model = config["model"] if len(config["model"]) <= 40 else "…" + config["model"][-39:]
    benchmark = re.sub(r"(sha256:\w{8})\w+", r"\1…", config["benchmark"])
    axes.set_title(f"{model}: {results['questions']} questions of {benchmark}", loc="left", fontsize=11)
    axes.grid(alpha=0.25, linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
