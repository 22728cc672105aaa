"""What PixelPrune saves of pages against its threshold: `python -m vtc.eval.report.pages_figure`.

Writes pages.json, and drawn of it pages.png, into docs/guide, or the folder that is named.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vtc.cuda import outputs
from vtc.eval.media.pages import KINDS, cells, page
from vtc.eval.report.figure import DPI, HEIGHT, STYLE, WIDTH, png
from vtc.eval.report.panels import COLOURS, MARKERS, SMALL, TEXT
from vtc.eval.results.folder import write_atomically
from vtc.reducers.pixelprune import unpredicted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Side of a cell in pixels -> the models whose visual tokens are of so many.
SIDES = {28: "Qwen2-VL, Qwen2.5-VL", 32: "Qwen3-VL"}
#: Thresholds in steps of brightness of 255, between whole ones; 0 is exact.
STEPS = (0.0, 1.5, 3.5, 5.5, 7.5, 10.5, 15.5, 20.5, 25.5)
#: Colour of the cells that are gone, and how much of the page is still seen under it.
_GONE, _SEEN = (230, 120, 60), 0.35


def kept_of(picture: Image.Image, side: int, steps: float) -> Tensor:
    """BoolTensor [H, W]: the cells of a page that stay."""
    return unpredicted(torch.from_numpy(cells(picture, side)).float(), steps / 255)


def measured(pages: int = 3) -> dict[str, Any]:
    """The share of cells that stay, mean over `pages` of each kind: kind -> side -> one for each of STEPS."""
    kept: dict[str, dict[str, list[float]]] = {kind: {} for kind in KINDS}
    for kind in KINDS:
        shown = [page(kind, seed) for seed in range(pages)]
        for side in SIDES:
            shares = [[kept_of(each, side, steps).float().mean() for each in shown] for steps in STEPS]
            kept[kind][str(side)] = [round(float(torch.stack(share).mean()), 4) for share in shares]
    return {"pages": pages, "steps": list(STEPS), "kept": kept}


def draw(curve: dict[str, Any]) -> bytes:
    """The figure as PNG: a page of each kind, its exact repetition tinted, and the curves."""
    return png(composed(curve))


def composed(curve: dict[str, Any]) -> "Figure":
    """The same as a figure of matplotlib."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    side = max(SIDES)
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 1.9 + HEIGHT), dpi=DPI, layout="constrained")
        halves: Any = figure.subfigures(2, 1, height_ratios=[1.9, HEIGHT])
        above, below = halves
        for axes, kind in zip(above.subplots(1, len(KINDS)), KINDS):
            axes.imshow(tinted(page(kind), kept_of(page(kind), side, 0.0)))
            axes.set_title(kind, fontsize=SMALL)
            axes.set_axis_off()
        panels = below.subplots(1, len(SIDES), sharey=True)
        for axes, (side, models) in zip(panels, SIDES.items()):
            for number, (kind, shares) in enumerate(curve["kept"].items()):
                style = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}
                saved = [100 * (1 - share) for share in shares[str(side)]]
                axes.plot(curve["steps"], saved, lw=1.2, markersize=4, label=kind, **style)
            axes.set_title(f"cells of {side} pixels: {models}", fontsize=TEXT, loc="left")
            axes.set_xlabel("threshold · 255, steps of brightness", fontsize=SMALL)
            axes.tick_params(labelsize=SMALL)
            axes.spines[["top", "right"]].set_visible(False)
        panels[0].set_ylabel("visual tokens saved, %", fontsize=TEXT)
        handles, labels = panels[0].get_legend_handles_labels()
        below.legend(handles, labels, loc="outside lower center", ncols=len(KINDS), frameon=False, fontsize=SMALL)
    return figure


def tinted(picture: Image.Image, kept: Tensor) -> Image.Image:
    """A page whose cells that are gone have a colour of their own."""
    side = picture.height // kept.shape[0]
    gone = np.kron(~kept.numpy(), np.ones((side, side), dtype=bool))
    pixels = np.asarray(picture, dtype=float)
    mixed = _SEEN * pixels + (1 - _SEEN) * np.array(_GONE)
    return Image.fromarray(np.where(gone[:, :, None], mixed, pixels).round().astype(np.uint8))


def main(arguments: Sequence[str]) -> None:
    """Measure, and write."""
    folder = Path(arguments[0] if arguments else "docs/guide")
    curve = measured()
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "pages.json", json.dumps(curve, indent=1) + "\n")
    write_atomically(folder / "pages.png", draw(curve))


if __name__ == "__main__":
    sys.exit(outputs.run(lambda: main(sys.argv[1:]), "python -m vtc.eval.report.pages_figure"))
