"""`vtc report`: one page that needs nothing outside it, sorted tables, changed answers with their pictures, escapes."""

import csv
import html
import io
import json
import re
import shutil
from pathlib import Path

import pytest

from vtc.eval.cli import main
from vtc.eval.report import page as report_page

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
    assert main(["report", str(runs / "runs" / "one"), "--output", str(runs / "report.html")]) == 0
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
    assert page.count("<svg ") == page.count("</svg>") == 2 * 3
    for cost in ("equivalent visual tokens", "GFLOP of the prefill", "prefill, ms per batch"):
        assert page.count(f'against {cost}, 3 settings"') == 2


def test_the_front_is_what_no_other_point_beats():
    points = [(4, 0.5), (1, 0.2), (2, 0.6), (2, 0.4), (8, 0.9), (9, 0.9)]
    assert report_page.front_of(points) == [(1, 0.2), (2, 0.6), (8, 0.9)]


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
