"""The figure of a run: right answers against equivalent tokens, one panel a kind of method."""

import io
import re
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from vtc.eval.report.panels import INK, SMALL, TEXT, TOKENS, Multiples, right_answers
from vtc.eval.results.results import Results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Of the figure and of a row of panels, in inches; at 100 dots per inch it is 800 wide, and no text smaller than 10.
WIDTH, HEIGHT = 8.0, 3.3
DPI = 150
#: Colours of the file, which is a third as large as with all.
TONES = 128
STYLE: dict[Any, Any] = {
    "font.size": TEXT,
    "axes.linewidth": 0.7,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}


def draw(results: Results) -> bytes:
    """The figure as PNG. `results` has at least "none"."""
    return png(composed(results))


def png(figure: "Figure") -> bytes:
    """A figure of matplotlib as PNG, in few colours."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    buffer = io.BytesIO()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    picture.quantize(TONES, dither=Image.Dither.NONE).save(buffer, format="png", optimize=True)
    return buffer.getvalue()


def composed(results: Results) -> "Figure":
    """All panels, as a figure of matplotlib."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    drawn = Multiples(results, TOKENS, right_answers(results))
    count = len(drawn.panels)
    columns = 2 if count in (2, 4) else min(count, 3)
    rows = -(-count // columns)
    width = WIDTH if count > 1 else 0.75 * WIDTH
    with rc_context(STYLE):
        figure = Figure(figsize=(width, 0.8 + HEIGHT * rows), dpi=DPI, layout="constrained")
        grid = figure.subplots(rows, columns, sharey=True, squeeze=False).flatten()
        for number, (axes, panel) in enumerate(zip(grid, drawn.panels)):
            drawn.draw(axes, panel, 0.85 * width / columns, labelled=number + columns >= count)
        for axes in grid[count:]:
            axes.set_visible(False)
        figure.suptitle(_title(results), x=0.01, ha="left", fontsize=TEXT + 1.5)
        figure.supylabel(f"{drawn.worth.title} (bars: 95 % interval)", fontsize=TEXT)
        figure.legend(*drawn.common(grid[0]), loc="outside lower center", ncols=3, frameon=False, fontsize=SMALL)
    return figure


def _title(results: Results) -> str:
    config: dict[str, Any] = results["config"]
    model = config["model"] if len(config["model"]) <= 40 else "…" + config["model"][-39:]
    benchmark = re.sub(r"(sha256:\w{8})\w+", r"\1…", config["benchmark"])
    return f"{model}: {results['questions']} questions of {benchmark}"
