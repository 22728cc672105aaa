"""The figure of the curve: right answers against training steps, one panel a method."""

from typing import TYPE_CHECKING, Any

import numpy as np

from vtc.eval.report.figure import DPI, HEIGHT, STYLE, WIDTH, png
from vtc.eval.report.panels import COLOURS, GREY, SMALL, TEXT
from vtc.eval.results.settings import NONE
from vtc.eval.train.compressed.results import WAYS, methods_of, run_of, share

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = {"full": "o", "lora": "s"}


def draw(curve: dict[str, Any]) -> bytes:
    """The figure as PNG."""
    return png(composed(curve))


def composed(curve: dict[str, Any]) -> "Figure":
    """All panels, as a figure of matplotlib."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    names = methods_of(curve)
    config = curve["config"]
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.8 + HEIGHT), dpi=DPI, layout="constrained")
        grid = figure.subplots(1, len(names), sharey=True, squeeze=False).flatten()
        for axes, name in zip(grid, names):
            _panel(axes, curve, name)
        title = f"{config['questions']} questions of {config['held_out']}, fine-tuned on {config['learned_on']}"
        figure.suptitle(title, x=0.01, ha="left", fontsize=TEXT + 1.5)
        figure.supylabel("right answers, % (bars: 95 % interval)", fontsize=TEXT)
        handles, labels = grid[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=SMALL)
    return figure


def _panel(axes: "Axes", curve: dict[str, Any], name: str) -> None:
    """One method: its fine-tunings, the controls, and two lines for the untouched model."""
    steps = [0, *curve["config"]["points"]]
    axes.axhline(share(curve["untouched"][NONE])[0], color=GREY, lw=0.9, label="untouched, all tokens")
    axes.axhline(share(curve["untouched"][name])[0], color=GREY, lw=0.9, ls=":", label="untouched, compressed")
    for colour, way in zip(COLOURS, curve["config"]["ways"]):
        for trained, style, label in ((name, "-", "while compressed"), (NONE, "--", "with all tokens (control)")):
            points = [curve["untouched"], *(point["right"] for point in run_of(curve, trained, way)["points"])]
            values = np.array([share(right[name]) for right in points])
            drawn: dict[str, Any] = {"color": colour, "ls": style, "marker": MARKERS[way], "lw": 1.2, "markersize": 4}
            drawn["markerfacecolor"] = colour if trained == name else "white"
            if trained == name:
                bars = np.abs(values[:, 1:] - values[:, :1]).T
                axes.errorbar(steps, values[:, 0], yerr=bars, elinewidth=0.6, label=f"{WAYS[way]}, {label}", **drawn)
            else:
                axes.plot(steps, values[:, 0], label=f"{WAYS[way]}, {label}", **drawn)
    axes.set_title(name, fontsize=TEXT, loc="left")
    axes.set_xlabel(f"steps of {curve['config']['batch']} questions", fontsize=SMALL)
    axes.set_xticks(steps)
    axes.tick_params(labelsize=SMALL)
    axes.spines[["top", "right"]].set_visible(False)
