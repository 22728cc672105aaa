"""The figure: what is in each panel, that panels can be compared, what is named, and that it can be read."""

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from matplotlib import colors
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.container import ErrorbarContainer
from matplotlib.text import Annotation, Text

from vtc.eval.pages.results import for_method
from vtc.eval.report import figure
from vtc.eval.report.panels import TOKENS, Multiples, front_of, right_answers

LONG = json.loads((Path(__file__).parent.parent / "docs" / "methods" / "results.json").read_text(encoding="utf-8"))
BEST = ("none", "random", "stride", "pool", "kcenter", "hiprune", "todre", "divprune", "pyramiddrop", "transprune",
        "atp", "holitom_inner", "zero_tprune", "flowcut", "diffrate", "tome")  # fmt: skip
SHORT = {**LONG, "settings": [r for r in LONG["settings"] if r["series"] in BEST and r["keep"] in (None, 0.25, 0.0625)]}
FEW = {**LONG, "settings": [r for r in LONG["settings"] if r["series"] in ("none", "divprune", "fastv")]}
RUNS = {"long": LONG, "short": SHORT, "two kinds": FEW, "one method": for_method(LONG, "sparsevlm"),
        "a baseline": for_method(LONG, "random"), "untouched": {**LONG, "settings": LONG["settings"][:1]}}  # fmt: skip


@pytest.fixture(scope="module", params=RUNS)
def drawn(request):
    """A run and its figure, laid out."""
    made = figure.composed(RUNS[request.param])
    FigureCanvasAgg(made).draw()
    return request.param, RUNS[request.param], made


def texts_of(made) -> set[Text]:
    """What is written in a figure; ticks beyond a scale have a text too, which is not."""
    found, plain = set(), Text.draw
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Text, "draw", lambda text, *args: (found.add(text), plain(text, *args)))
        patch.setattr(Annotation, "draw", lambda text, *args: (found.add(text), text.update_positions(*args)))
        made.canvas.draw()
    return {text for text in found if text.get_visible() and text.get_text().strip()}


def shown(made) -> list:
    return [axes for axes in made.axes if axes.get_visible()]


def lines(axes) -> dict[str, tuple]:
    """Label -> marker, dash, colour, positions and heights of each line with bars in a panel."""
    found = {}
    for each in axes.containers:
        if isinstance(each, ErrorbarContainer):
            line = each.lines[0]
            style = line.get_marker(), str(line._dash_pattern), colors.to_hex(line.get_color())
            found[each.get_label()] = (*style, list(line.get_xdata()), list(line.get_ydata()))
    return found


def test_each_kind_has_a_panel_with_all_its_methods_and_every_baseline_in_grey(drawn):
    name, results, made = drawn
    parts = [f"selectors: {signal}" for signal in ("question", "diversity", "saliency")]  # of many each signal has one
    parts += [f"prunes: {signal}" for signal in ("change", "attention", "others")]
    titles = {"long": [*parts, "reducers", "compositions"], "short": ["selectors", "prunes", "reducers"],
              "two kinds": ["selectors", "prunes"], "one method": ["prunes"], "a baseline": ["baselines"],
              "untouched": [""]}  # fmt: skip
    assert [axes.get_title("left") for axes in shown(made)] == titles[name]
    series = {row["series"] for row in results["settings"]} - {"none"}
    baselines = series & {"random", "stride", "pool"}
    found: set[str] = set()
    for axes in shown(made):
        here = lines(axes)
        assert baselines <= here.keys()
        found |= here.keys()
        for label, (_, _, colour, costs, rights) in here.items():
            red, green, blue = colors.to_rgb(colour)
            assert (red == green == blue) == (label in baselines), label
            rows = sorted(
                (r for r in results["settings"] if r["series"] == label), key=lambda r: r["equivalent_tokens"]
            )
            assert costs == [row["equivalent_tokens"] for row in rows]
            assert rights == pytest.approx([100 * row["overall"]["accuracy"] for row in rows])
    assert found == series


def test_panels_have_the_same_scales_and_show_the_untouched_and_the_blind_model(drawn):
    _, results, made = drawn
    none = results["settings"][0]["overall"]
    low, high = (100 * bound for bound in none["interval_95"])
    for axes in shown(made):
        assert axes.get_xlim() == shown(made)[0].get_xlim() and axes.get_ylim() == shown(made)[0].get_ylim()
        level = [line.get_ydata()[0] for line in axes.lines if len(set(line.get_ydata())) == 1]
        assert any(np.isclose(level, 100 * none["accuracy"])) and any(np.isclose(level, 23.0))
        bands = [patch.get_extents().transformed(axes.transData.inverted()) for patch in axes.patches]
        assert any(np.allclose([band.y0, band.y1], [low, high]) for band in bands)
        (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        assert left < min(r["equivalent_tokens"] for r in results["settings"])
        assert right > max(r["equivalent_tokens"] for r in results["settings"])
        assert bottom < 23.0 and top > max(100 * r["overall"]["accuracy"] for r in results["settings"])


def test_what_is_on_the_front_is_named_in_its_own_panel(drawn):
    name, results, made = drawn
    points = [(r["equivalent_tokens"], r["overall"]["accuracy"], r["series"]) for r in results["settings"]]
    best = {
        series
        for cost, worth, series in points
        if not any(c <= cost and w >= worth and (c, w) != (cost, worth) for c, w, _ in points)
    }
    named = {axes.get_title("left"): {text.get_text() for text in axes.texts if isinstance(text, Annotation)}
             for axes in shown(made)}  # fmt: skip
    if name in ("one method", "a baseline", "untouched"):  # nothing to beat
        assert not any(named.values())
        return
    told = set.union(*named.values()) | {"none", "random", "stride", "pool"}
    assert set.union(*named.values()) <= best
    front: dict[tuple, set] = {}
    for cost, worth, series in points:
        if not any(c <= cost and w >= worth and (c, w) != (cost, worth) for c, w, _ in points):
            front.setdefault((cost, worth), set()).add(series)
    assert all(series & told for series in front.values())  # of several at one point one is named
    for axes in shown(made):
        assert named[axes.get_title("left")] <= lines(axes).keys()


def test_lines_of_a_panel_are_told_apart_without_colour(drawn):
    for axes in shown(drawn[2]):
        styles = [line[:2] for line in lines(axes).values()]
        assert len(set(styles)) == len(styles)


def test_at_800_pixels_no_text_is_smaller_than_9_covers_another_or_is_cut_off(drawn):
    made = drawn[2]
    pixels = 800 / figure.WIDTH  # an inch of it
    boxes = {text: text.get_window_extent() for text in texts_of(made)}
    for text, box in boxes.items():
        assert text.get_fontsize() / 72 * pixels >= 9, text.get_text()
        assert made.bbox.x0 - 1 <= box.x0 and box.x1 <= made.bbox.x1 + 1, text.get_text()
        assert made.bbox.y0 - 1 <= box.y0 and box.y1 <= made.bbox.y1 + 1, text.get_text()
    assert len(boxes) > 10
    for (one, box), (other, beside) in combinations(boxes.items(), 2):
        width = min(box.x1, beside.x1) - max(box.x0, beside.x0)
        height = min(box.y1, beside.y1) - max(box.y0, beside.y0)
        assert width <= 1 or height <= 2, f"{one.get_text()!r} covers {other.get_text()!r}"


def test_the_front_is_what_no_other_point_beats():
    points = [(4, 0.5, "a"), (1, 0.2, "b"), (2, 0.6, "c"), (2, 0.4, "d"), (8, 0.9, "e"), (9, 0.9, "f")]
    assert front_of(points) == [(1, 0.2, "b"), (2, 0.6, "c"), (8, 0.9, "e")]


def test_a_narrow_range_of_costs_is_not_drawn_in_octaves():
    wide, narrow = (Multiples(results, TOKENS, right_answers(results)) for results in (LONG, RUNS["untouched"]))
    assert wide.is_log and "log scale" in wide.label
    assert not narrow.is_log and "log" not in narrow.label
