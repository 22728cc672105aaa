"""Drawn pages, what PixelPrune leaves of them, and the page made again of that."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vtc.eval.media.pages import HEIGHT, KINDS, WIDTH, cells, page, restored
from vtc.eval.report import pages_figure
from vtc.eval.report.pages_figure import SIDES, STEPS, kept_of, measured, tinted

GUIDE = Path(__file__).parent.parent / "docs" / "guide"


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_is_a_function_of_its_seed_at_sides_that_every_cell_divides(kind):
    one = page(kind, 3)
    assert (
        one.mode == "RGB"
        and one.size == (WIDTH, HEIGHT)
        and not any(each % side for each in one.size for side in SIDES)
    )
    assert one.tobytes() == page(kind, 3).tobytes() != page(kind, 4).tobytes()
    assert all(cells(one, side).shape == (HEIGHT // side, WIDTH // side, side, side, 3) for side in SIDES)
    assert np.array_equal(cells(one, 28)[2, 5], np.asarray(one)[56:84, 140:168] / 255)


@pytest.mark.parametrize("steps", [0.0, 5.5, 15.5])
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_page_is_made_again_of_the_cells_that_stay_and_of_nothing_else(kind, side, steps):
    picture = page(kind, 1)
    kept = kept_of(picture, side, steps)
    pixels = np.asarray(picture).copy()
    pixels[np.kron(~kept.numpy(), np.ones((side, side), dtype=bool))] = 123
    made = restored(Image.fromarray(pixels), kept.flatten().nonzero()[:, 0], side, steps / 255)
    assert abs(np.asarray(made, dtype=int) - np.asarray(picture, dtype=int)).max() <= steps


def test_what_is_lost_is_seen():
    picture = page("text", 1)
    kept = kept_of(picture, 32, 0.0).flatten().nonzero()[:, 0]
    for gone in (0, len(kept) // 2):
        rest = torch.cat([kept[:gone], kept[gone + 1 :]])
        assert restored(picture, rest, 32).tobytes() != picture.tobytes()


def test_the_guide_shows_what_is_measured():
    """Letters of another release of Pillow may differ a little."""
    stored = json.loads((GUIDE / "pages.json").read_text())
    again = measured(stored["pages"])["kept"]
    assert stored["steps"] == list(STEPS) and stored["kept"].keys() == KINDS.keys()
    for kind, sides in stored["kept"].items():
        for side, shares in sides.items():
            assert shares == pytest.approx(again[kind][side], abs=0.03)
    table = re.findall(
        r"^\| [^|]+ \| ([\d.]+) % \| ([\d.]+) % \| ([\d.]+) % \|$", (GUIDE / "pages.md").read_text(), re.M
    )
    lossy = STEPS.index(15.5)
    told = [[s["28"][0], s["32"][0], s["32"][lossy]] for s in stored["kept"].values()]
    assert [[*map(float, row)] for row in table] == pytest.approx(np.array(told) * 100, abs=0.051)


def test_the_figure_is_written_beside_its_numbers(tmp_path, monkeypatch):
    curve = json.loads((GUIDE / "pages.json").read_text())
    monkeypatch.setattr(pages_figure, "measured", lambda: curve)
    pages_figure.main([str(tmp_path / "new")])
    assert json.loads((tmp_path / "new" / "pages.json").read_text()) == curve
    drawn = Image.open(tmp_path / "new" / "pages.png")
    assert drawn.width == 1200 and Image.open(io.BytesIO((GUIDE / "pages.png").read_bytes())).size == drawn.size


def test_cells_that_are_gone_are_tinted():
    picture = page("slide")
    kept = kept_of(picture, 32, 0.0)
    before, after = np.asarray(picture), np.asarray(tinted(picture, kept))
    changed = (cells(Image.fromarray(after), 32) != cells(Image.fromarray(before), 32)).any(axis=(2, 3, 4))
    assert np.array_equal(changed, ~kept.numpy())
