"""`vtc compare`: differences on the same questions, with the numbers of the run recomputed here."""

import json
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest

from vtc.eval.cli import main
from vtc.eval.cli.errors import InputError
from vtc.eval.report.command import read_runs
from vtc.eval.report.compare import compare, decides_by, tables
from vtc.eval.results.results import VERSION

QUESTIONS = 40


def scores(right: str) -> list[float]:
    """Of `QUESTIONS` questions, from the first letters of a pattern that repeats."""
    return [float(right[index % len(right)]) for index in range(QUESTIONS)]


ANSWERS = {
    "none": scores("1"),
    **{"random:keep=16": scores("10"), "a:keep=16": scores("1110"), "b:keep=16": scores("1101")},
    **{"random:keep=8": scores("01"), "a:keep=8": scores("01"), "b:keep=9": scores("1")},
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with two methods beside `random`, one of them without a setting at 8 tokens."""
    folder, samples, settings = tmp_path / "run", [], []
    folder.mkdir()
    for setting, right in ANSWERS.items():
        series, _, keep = setting.partition(":keep=")
        groups = {"even": right[::2], "odd": right[1::2]}
        settings.append({
            "setting": setting, "series": series, "keep": int(keep or 64), "equivalent_tokens": float(keep or 64),
            "overall": {"accuracy": fmean(right)}, "groups": {g: {"accuracy": fmean(v)} for g, v in groups.items()},
        })  # fmt: skip
        samples += [
            {"id": str(i), "setting": setting, "score": value, "cluster": None} for i, value in enumerate(right)
        ]
    (folder / "results.json").write_text(json.dumps({"version": VERSION, "config": {}, "settings": settings}))
    (folder / "samples.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    (folder / "config.json").write_text("{}")
    return folder


def read(folder: Path):
    (found,), _ = read_runs([folder])
    return found


def interval(mine: list[float], others: list[float]) -> tuple[float, float]:
    """The percentile bootstrap of the mean difference on the same questions, drawn by itself."""
    apart = np.array(mine) - np.array(others)
    drawn = np.random.default_rng(1).integers(len(apart), size=(20000, len(apart)))
    return tuple(np.percentile(apart[drawn].mean(axis=1), [2.5, 97.5]))


def test_a_difference_is_on_the_same_questions(run):
    first, second = compare(read(run), "random")
    assert (first.title, second.title, first.none) == ("pictures, 16", "pictures, 8", 1.0)
    for name, cell in first.cells.items():
        assert cell.accuracy == fmean(ANSWERS[cell.setting])
        assert cell.difference == pytest.approx(fmean(ANSWERS[cell.setting]) - fmean(ANSWERS["random:keep=16"]))
        if name != "random":
            expected = interval(ANSWERS[cell.setting], ANSWERS["random:keep=16"])
            assert (cell.low, cell.high) == pytest.approx(expected, abs=0.03)
    assert {name for name, cell in first.cells.items() if cell.level} == {"a", "b"}  # 0.75 each, and 0.5
    assert second.cells["a"].difference == second.cells["a"].low == second.cells["a"].high == 0.0
    assert second.left_out == ["b"] and first.left_out == []
    assert first.cells["b"].groups == {"even": 0.5, "odd": 1.0}


def test_the_table_says_what_the_numbers_are(run):
    lines = tables(compare(read(run), "random"), "random")
    text = "\n".join(lines)
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| `")]
    rows = {row[0]: row for row in cells if row[2].count(".")}
    assert rows["`random`"][2:] == ["50.0", "50.0 ="] and rows["`a`"][2].startswith("75.0 +25.0 [+")
    assert rows["`a`"][2].endswith("] =") and rows["`b`"][3] == "–"
    assert "Without a setting within 2% of pictures, 8 tokens: b." in text
    assert "By group of questions, pictures, 8 tokens:" in text and "on the same questions" in text


def test_what_decides_is_told_of_methods_and_compositions():
    assert (
        decides_by("divprune") == "diversity" and decides_by("cdpruner:relevance_weight=1.0") == "question, diversity"
    )
    assert (
        decides_by("hiprune+divprune") == "saliency, diversity"
        and decides_by("nobody's") == decides_by("random") == "–"
    )


def test_each_run_has_its_table_by_group_and_what_is_left_out_is_said(run, tmp_path, capsys):
    more = tmp_path / "more"
    more.mkdir()
    for name in ("samples.jsonl", "config.json"):
        (more / name).write_bytes((run / name).read_bytes())
    results = json.loads((run / "results.json").read_text())
    results["settings"] = [
        row for row in results["settings"] if row["equivalent_tokens"] < 16 or row["setting"] == "none"
    ]
    (more / "results.json").write_text(json.dumps(results))
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "config.json").write_text("{}")
    assert main(["compare", str(run), str(more), str(tmp_path / "unfinished")]) == 0
    said = capsys.readouterr()
    assert said.out.count("By group of questions") == 2 and "left out: " in said.err and "unfinished" in said.err


def test_samples_that_belong_together_are_drawn_together(run):
    whole = compare(read(run), "random")[0].cells["a"]
    clustered = read(run)
    for sample in clustered.samples:
        sample["cluster"] = str(int(sample["id"]) // 20)
    few = compare(replace(clustered), "random")[0].cells["a"]
    assert few.difference == whole.difference and (few.low, few.high) != (whole.low, whole.high)


def test_the_command_prints_and_writes_the_same(run, tmp_path, capsys):
    for name in ("deep/compare.md", "compare.json"):
        assert main(["compare", str(run), "--output", str(tmp_path / name)]) == 0
    printed = capsys.readouterr().out
    assert (tmp_path / "deep/compare.md").read_text() in printed
    stored = json.loads((tmp_path / "compare.json").read_text())
    assert stored[0]["cells"]["a"]["accuracy"] == 0.75 and stored[1]["left_out"] == ["b"]


def test_what_can_t_be_compared_is_told(run, tmp_path, capsys):
    with pytest.raises(InputError, match=r"argument --against: 'divprune' is not in .*; there are random, a, b"):
        compare(read(run), "divprune")
    assert main(["compare", str(run), "--output", str(tmp_path / "x.pdf")]) == 2
    assert main(["compare", str(tmp_path / "nothing")]) == 2
    (run / "results.json").unlink()
    assert main(["compare", str(run)]) == 2
    errors = capsys.readouterr().err
    for part in ("argument --output: ", "is no folder; give folders of runs", "argument RUNS: nothing to compare"):
        assert part in errors


def test_a_real_run_has_what_is_read(both_tasks, capsys):
    assert main(["compare", str(both_tasks), "--against", "random"]) == 0
    printed = capsys.readouterr().out
    assert "pictures, " in printed and "clips, " in printed and "`divprune`" in printed
