"""Panels as SVG for a page, in the colours of its light or dark style."""

import html
import io
import re
from typing import Any

from vtc.eval.report.figure import STYLE
from vtc.eval.report.panels import COLOURS, GREY, INK, PALE, SMALL, Cost, Multiples, Worth
from vtc.eval.results.results import Results

#: Of a panel, in inches of 72 CSS pixels.
WIDTH, HEIGHT = 3.8, 3.0
#: Colour -> what the page calls it: `currentColor` for text and axes, variables of its style for the rest.
_PAGE = {INK: "currentColor", GREY: "var(--grey)", PALE: "var(--pale)"} | {
    colour: f"var(--c{number})" for number, colour in enumerate(COLOURS)
}


def draw(results: Results, cost: Cost, worth: Worth, name: str) -> list[str]:
    """A panel for each kind of method, and the key to what is in all of them.

    Args:
        results: with at least "none".
        cost: to the right.
        worth: upwards.
        name: tells ids in these from those of other figures in the page.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    drawn, made = Multiples(results, cost, worth), []
    with rc_context({**STYLE, "svg.fonttype": "none"}):
        for number, panel in enumerate(drawn.panels):
            figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
            axes = figure.add_subplot()
            drawn.draw(axes, panel, 0.85 * WIDTH)
            axes.set_ylabel(worth.title, fontsize=SMALL)
            settings = sum(len(rows) for rows in (*panel.series.values(), *panel.baselines.values()))
            label = f"{panel.title}: {worth.title} against {cost.title}, {settings} settings and none"
            made.append(_svg(figure, label, f"{name} {number}"))
        key = Figure(figsize=(WIDTH, 0.75), layout="constrained")
        key.legend(*drawn.common(axes), loc="center left", ncols=2, frameon=False, fontsize=SMALL)
        made.append(_svg(key, "key to what all panels show", f"{name} key"))
    return made


def _svg(figure: Any, label: str, name: str) -> str:
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": name}):  # ids are made of it
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    svg = re.sub(r"<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # not referred to
    for colour, called in _PAGE.items():
        svg = svg.replace(colour, called)
    start = f'<svg role="img" aria-label="{html.escape(label, quote=True)}" '
    return re.sub(r"^.*?<svg ", start, svg, count=1, flags=re.DOTALL)
