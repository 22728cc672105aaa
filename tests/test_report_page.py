"""`vtc report`: one page that needs nothing outside it, sorted tables, changed answers with their pictures, escapes."""

import contextlib
import csv
import html
import io
import json
import re
import shutil
from itertools import product
from pathlib import Path

import pytest
from chromium import NEEDED

from vtc.eval.cli import main

NASTY = "<script>alert('x')</script>"


@pytest.fixture(scope="module")
def runs(both_tasks, tmp_path_factory) -> Path:
    """Two tasks of one run, in whose answers there is something to escape."""
    folder = tmp_path_factory.mktemp("report")
    shutil.copytree(both_tasks, folder / "runs" / "one")
    samples = folder / "runs" / "one" / "images" / "samples.jsonl"
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    for line in lines:
        line["prediction"] = NASTY + "\u2028"  # a line to some readers, but not to JSON
    samples.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture(scope="module")
def page(runs) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert main(["report", str(runs / "runs" / "one"), "--output", str(runs / "report.html")]) == 0
    assert said.getvalue().splitlines()[-1] == f"page: {runs / 'report.html'}"
    return (runs / "report.html").read_text()


def test_nothing_is_fetched_and_nothing_that_a_model_said_is_run(page):
    assert page.count("<script>") == 1 and html.escape(NASTY, quote=False) in page.replace("&#39;", "'")
    fetched = re.findall(r"""(?:\b(?:src|href)=["']|url\()([^"')]+)""", page)
    assert fetched and all(each.startswith(("data:", "#")) for each in fetched)
    assert "default-src 'none'" in page
    assert not re.search(r'"https?://(?!www\.w3\.org|purl\.org|creativecommons)', page)


def test_the_leaderboard_is_in_the_page_and_in_both_files(runs, page):
    results = [json.loads(file.read_text()) for file in sorted((runs / "runs").rglob("results.json"))]
    rows = list(csv.DictReader(io.StringIO((runs / "report.csv").read_text())))
    expected = {(each["config"]["task"], row["setting"]) for each in results for row in each["settings"]}
    assert {(row["task"], row["setting"]) for row in rows} == expected
    by_name = {(row["task"], row["setting"]): row for row in rows}
    for each in results:
        for row in each["settings"]:
            found = by_name[each["config"]["task"], row["setting"]]
            assert float(found["value"]) == row["metrics"]["exact_match"]["value"]
            assert float(found["tokens"]) == row["equivalent_tokens"]
            assert f'data-value="{row["setting"]}"' in page
    table = (runs / "report.md").read_text()
    assert all(f"| {task} " in table and f" {setting} " in table for task, setting in expected)


def test_changed_answers_are_shown_with_what_was_kept(runs, page):
    samples = [
        json.loads(line) for line in (runs / "runs" / "one" / "video" / "samples.jsonl").read_text().splitlines()
    ]
    changed = [sample for sample in samples if sample["picture"]]
    assert changed, "eight tokens of a clip change no answer"
    assert page.count("data:image/jpeg;base64,") >= 1
    assert all(sample["correct"] is not None for sample in changed)
    assert any(html.escape(sample["question"]) in page for sample in changed)


def test_figures_are_drawn_for_each_task_and_cost(page):
    assert page.count("<svg ") == page.count("</svg>") == 2 * 3 * 2  # the selectors, and the key
    for cost in ("equivalent visual tokens", "GFLOP of the prefill", "prefill, ms per batch"):
        assert page.count(f'against {cost}, 2 settings and none"') == 2
    ids = re.findall(r'\bid="([^"]+)"', page)
    named = {one or other for one, other in re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', page)}
    assert len(ids) == len(set(ids)) and named and named <= set(ids)


def test_figures_have_the_colours_of_the_page_and_none_of_their_own(page):
    drawn = "".join(re.findall(r"<svg .*?</svg>", page, re.DOTALL))
    assert set(re.findall(r"(?:fill|stroke): ([^;\"]+)", drawn)) <= {
        *("none", "currentColor", "var(--grey)", "var(--pale)", "#b0b0b0"), *(f"var(--c{n})" for n in range(7)),
    }  # fmt: skip
    styles = re.findall(r":root \{(.*?)\}", page, re.DOTALL)
    used = set(re.findall(r"var\((--\w+)\)", page))
    assert len(styles) == 2 and all(used <= set(re.findall(r"(--\w+):", style)) for style in styles)


def test_the_short_table_stands_before_everything_else(page):
    assert page.count('<table class="short">') == 2
    first, leaderboard, metrics = (page.index(text) for text in ('class="short"', 'id="leaderboard"', "<h3>Metrics"))
    assert first < page.index("<svg ") < leaderboard < metrics
    for text in ("baselines", "selectors", "<td>divprune:keep=8</td>", "<td>none, blank picture</td>"):
        assert text in page[first:leaderboard]


@NEEDED
def test_it_can_be_read_in_a_browser_wide_and_narrow_light_and_dark(runs, page, browser):
    for width, scheme in product((1280, 390), ("light", "dark")):
        options = {"viewport": {"width": width, "height": 900}, "color_scheme": scheme, "offline": True}
        visit = browser.new_context(**options).new_page()
        asked, errors = [], []
        visit.on("request", lambda request, asked=asked: asked.append(request.url))
        visit.on("console", lambda line, errors=errors: errors.append(line.text))
        visit.on("pageerror", lambda error, errors=errors: errors.append(str(error)))
        visit.goto((runs / "report.html").as_uri())
        assert visit.evaluate("document.documentElement.scrollWidth") <= width
        assert [url for url in asked[1:] if not url.startswith("data:")] == [] and errors == []
        sizes, inks, back = visit.evaluate(SEEN)
        assert len(sizes) > 50 and min(sizes) >= 9
        assert all(contrast(ink, back) >= 4.5 for ink in inks)
        assert contrast(visit.evaluate("getComputedStyle(document.querySelector('.short td')).color"), back) >= 7


#: Of each text in a figure that is shown: its height in pixels and its colour; and the colour behind the page.
SEEN = """() => {
  const texts = [...document.querySelectorAll("figure svg text")].filter(text => text.getClientRects().length);
  const scale = svg => svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
  return [
    texts.map(text => parseFloat(getComputedStyle(text).fontSize) * scale(text.ownerSVGElement)),
    [...new Set(texts.map(text => getComputedStyle(text).fill))],
    getComputedStyle(document.body).backgroundColor,
  ];
}"""


def contrast(one: str, other: str) -> float:
    """WCAG's contrast of two colours that a browser tells as rgb(r, g, b)."""

    def luminance(colour: str) -> float:
        shares = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
        return sum(weight * each for weight, each in zip((0.2126, 0.7152, 0.0722), linear))

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_a_run_that_has_not_ended_is_said_and_left_out(runs, tmp_path, capsys):
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "config.json").write_text("{}")
    output = tmp_path / "report.html"
    assert main(["report", str(unfinished), str(runs / "runs" / "one"), "--output", str(output)]) == 0
    assert "unfinished" in capsys.readouterr().err and "unfinished" in output.read_text()
    assert main(["report", str(unfinished), "--output", str(tmp_path / "none.html")]) == 2
    assert "nothing to report" in capsys.readouterr().err and not (tmp_path / "none.html").exists()


@pytest.mark.parametrize(("argument", "said"), [("missing", "no folder"), ("page.txt", "no page")])
def test_bad_arguments_are_named(runs, tmp_path, capsys, argument, said):
    folder = str(tmp_path / "missing") if argument == "missing" else str(runs / "runs" / "one")
    output = str(tmp_path / ("page.txt" if argument == "page.txt" else "page.html"))
    assert main(["report", folder, "--output", output]) == 2
    assert said in capsys.readouterr().err
