"""`vtc recipe`: published tables as data, measured here in the same layout, and what is missing said at once."""

import json

import pytest

from vtc.eval.cli import main
from vtc.eval.recipes.command import _values
from vtc.eval.recipes.recipe import MEASURES, at_the_same_share, published_average, recipe, recipes
from vtc.eval.tasks import data as task_data
from vtc.eval.tasks.config import read_config
from vtc.eval.tasks.index import find_tasks, index
from vtc.presets import presets


def test_every_published_setting_is_a_row_of_one_recipe(capsys):
    rows = [row.name for each in recipes().values() for row in each.rows]
    assert sorted(rows) == sorted(presets())
    assert main(["recipe", "list"]) == 0
    listed = capsys.readouterr().out
    assert all(f"| {name} " in listed for name in recipes())
    assert main(["recipe", "list", "--method", "hiprune"]) == 0
    assert "divprune" not in capsys.readouterr().out


@pytest.mark.parametrize("benchmark", MEASURES)
def test_measures_name_metrics_that_the_tasks_have(benchmark):
    measure, files = MEASURES[benchmark], index().files
    for task in find_tasks(measure.task):
        metrics = [entry["metric"] for entry in read_config(files[task]).get("metric_list")]
        assert set(measure.metrics) <= set(metrics)


def test_a_measure_is_in_the_papers_unit():
    assert MEASURES["GQA"].value({"exact_match": {"value": 0.593}}) == pytest.approx(59.3)
    found = {"mme_perception_score": {"value": 1506.0}, "mme_cognition_score": {"value": 356.0}}
    assert MEASURES["MME"].value(found) == 1862.0
    assert MEASURES["POPE"].value({}) is None


def test_a_group_is_the_mean_of_its_tasks_and_nothing_without_one_of_them():
    tasks = find_tasks("mvbench")
    measured = {
        task: {spec: {"mvbench_accuracy": {"value": value}} for spec, value in (("none", 50.0), ("x", float(number)))}
        for number, task in enumerate(tasks)
    }
    assert _values(measured, "MVBench", MEASURES["MVBench"], "x") == (9.5, 50.0)
    del measured[tasks[3]]
    assert _values(measured, "MVBench", MEASURES["MVBench"], "x") == (None, None)


def test_averages_are_printed_or_made_of_the_printed_numbers():
    row = presets()["hiprune/llava-1.5/192"]
    assert published_average(row) == row.results.average or row.results.average is None
    row = presets()["divprune/llava-1.5/0.098"]
    ratios = [score / row.results.untouched[name] for name, score in row.results.scores.items()]
    assert row.results.average is not None or published_average(row) == pytest.approx(100 * sum(ratios) / len(ratios))


def test_counts_become_shares_and_shares_stay():
    assert at_the_same_share("hiprune:keep=192", 576) == "hiprune:keep=0.333333"
    assert at_the_same_share("divprune:keep=0.098", None) == "divprune:keep=0.098"
    with pytest.raises(ValueError, match="not published"):
        at_the_same_share("hiprune:keep=192", None)


def test_on_the_bundled_model_the_same_layout_has_our_numbers(tmp_path, capsys):
    command = [
        "recipe",
        "run",
        "hiprune/llava-1.5",
        "--model",
        "embedded",
        "--limit",
        "3",
        "--output",
        str(tmp_path / "run"),
    ]
    assert main(command) == 0
    cells = json.loads((tmp_path / "run" / "recipe.json").read_text())
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    ours = {row["setting"]: 100 * row["metrics"]["exact_match"]["value"] for row in results["settings"]}
    assert list(dict.fromkeys(cell["setting"] for cell in cells)) == ["untouched", "192", "128", "64"]
    for cell in cells:
        if cell["benchmark"] == "images":
            assert cell["paper"] is None and cell["ours"] == pytest.approx(ours[cell["spec"]])
        elif cell["setting"] != "untouched":
            assert cell["paper"] == published_average(presets()[f"hiprune/llava-1.5/{cell['setting']}"])
    assert "| 64 " in capsys.readouterr().out and (tmp_path / "run" / "recipe.md").exists()


def test_a_setting_that_the_bundled_model_refuses_is_said_and_left_out(tmp_path, capsys):
    command = ["recipe", "run", "todre_stage2/llava-next", "--model", "embedded", "--output", str(tmp_path / "run")]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert (
        "left out on the bundled model: todre_stage2/llava-next/0.1" in said and "can run on --model embedded" in said
    )
    assert not (tmp_path / "run").exists()


def test_what_is_not_at_hand_is_named_all_at_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(task_data, "_unreachable", ["no hub here"])
    model = str(tmp_path / "no" / "weights")
    assert main(["recipe", "run", "hiprune/llava-1.5", "--model", model, "--output", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert "weights: LLaVA-1.5-7B" in said and "--model FOLDER" in said
    for task in recipe("hiprune/llava-1.5").tasks:
        assert f"FOLDER/{task}" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("hiprun/llava-1.5", "did you mean 'hiprune/llava-1.5'"),
        ("tome/vit-b-16", "has no checkpoint"),
        ("fastv/video-llava", "none of the benchmarks"),
    ],
)
def test_what_cannot_be_run_is_refused(tmp_path, capsys, name, said):
    assert main(["recipe", "run", name, "--output", str(tmp_path / "run")]) == 2
    assert said in capsys.readouterr().err
