"""Visual tokens per frame over the time of a video, one panel a method."""

import io
import math

from vtc.eval.report.panels import COLOURS, GREY, MARKERS
from vtc.eval.results.results import Results, SettingResult
from vtc.eval.results.settings import NONE

_COLUMNS = 4


def draw(results: Results) -> bytes | None:
    """The figure as PNG: tokens of each frame that enter the last decoder layer, mean over the questions.

    One panel a series, one line a budget, the tokens of the untouched model in grey. None where nothing was counted by
    frames.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [row for row in results["settings"] if row["tokens_per_frame"] is not None]
    series: dict[str, list[SettingResult]] = {}
    for row in rows:
        if row["setting"] != NONE:
            series.setdefault(row["series"], []).append(row)
    if not series:
        return None
    keeps = list(dict.fromkeys(row["keep"] for row in rows if row["setting"] != NONE))  # one colour each, in all panels
    none = next((row["tokens_per_frame"] for row in rows if row["setting"] == NONE), None)
    lines = math.ceil(len(series) / _COLUMNS)
    figure = Figure(figsize=(2.5 * min(_COLUMNS, len(series)) + 0.4, 1.9 * lines + 0.9), layout="constrained")
    panels = figure.subplots(lines, min(_COLUMNS, len(series)), sharex=True, sharey=True, squeeze=False).flatten()
    for panel, (name, budgets) in zip(panels, series.items()):
        if none is not None:
            panel.plot(range(1, len(none) + 1), none, color=GREY, linestyle=":", linewidth=1.2)
        for row in budgets:
            place = keeps.index(row["keep"])
            counts = row["tokens_per_frame"] or []
            label = "other budgets" if row["keep"] is None else f"keep={row['keep']:g}"
            style = {"color": COLOURS[place % len(COLOURS)], "marker": MARKERS[place % len(MARKERS)]}
            panel.plot(range(1, len(counts) + 1), counts, markersize=3.5, linewidth=1.2, label=label, **style)
        panel.set_title(name, loc="left", fontsize=8)
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.25, linewidth=0.6)
        for side in ("top", "right"):
            panel.spines[side].set_visible(False)
    for panel in panels[len(series) :]:
        panel.set_visible(False)
    lines_drawn = {line.get_label(): line for panel in panels for line in panel.get_lines()[none is not None :]}
    figure.legend(lines_drawn.values(), lines_drawn, loc="outside upper center", ncols=8, frameon=False, fontsize=7)
    figure.supxlabel("frame", fontsize=9)
    figure.supylabel("tokens entering the last layer", fontsize=9)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()
