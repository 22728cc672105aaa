"""The twelve image tasks: prompts, scores and metrics equal to lmms-eval's own, and what ours adds."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vtc.eval.tasks.packaged.ai2d import ai2d
from vtc.eval.tasks.packaged.gqa import gqa
from vtc.eval.tasks.packaged.mmbench import mmbench
from vtc.eval.tasks.packaged.mme import mme
from vtc.eval.tasks.packaged.pope import pope
from vtc.eval.tasks.packaged.scienceqa import scienceqa
from vtc.eval.tasks.packaged.seedbench import seedbench
from vtc.eval.tasks.task import Task
from vtc.eval.tasks.yaml_task import load_task

EXPECTED = Path(__file__).parent / "expected"
#: Task -> the split that it asks.
SPLITS = {
    "mme": "test",
    "pope": "test",
    "gqa": "testdev",
    "textvqa_val": "validation",
    "scienceqa_img": "test",
    "mmbench_en_dev_static": "dev",
    "vqav2_val": "validation",
    "vizwiz_vqa_val": "val",
    "seedbench": "test",
    "ai2d": "test",
    "chartqa": "test",
    "docvqa_val": "validation",
}
CROWDS = ("textvqa_val", "vqav2_val", "vizwiz_vqa_val")
#: AI2D's prompt for it asks for the option's text, for which the answers would be read by another rule.
LEFT_OUT = {("ai2d", "qwen_vl")}


def expected(name: str) -> dict[str, Any]:
    """What lmms-eval makes of the made-up rows and answers; expected/README.md tells the form."""
    return json.loads((EXPECTED / f"{name}.json").read_text(encoding="utf-8"))


def load(name: str, folder: Path, prompts: str = "default") -> Task:
    """The task with the made-up rows, all with one picture, in a local folder."""
    Image.new("L", (8, 6)).save(folder / "picture.png")
    shown = ["picture.png"] if name == "seedbench" else "picture.png"
    rows = [{**doc, "image": shown} for doc in expected(name)["docs"]]
    (folder / f"{SPLITS[name]}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return load_task(name, data=folder, limit=None, include=[], prompts=prompts)


@pytest.mark.parametrize("name", SPLITS)
def test_prompts_are_those_of_lmms_eval(name: str, tmp_path: Path) -> None:
    for model, prompts in expected(name)["prompts"].items():
        if (name, model) not in LEFT_OUT:
            task = load(name, tmp_path, model)
            assert [task.get(index).text for index in range(task.size)] == prompts, model


@pytest.mark.parametrize("name", SPLITS)
def test_metrics_are_those_of_lmms_eval(name: str, tmp_path: Path) -> None:
    task, theirs = load(name, tmp_path), expected(name)
    aggregations = {metric.name: metric.aggregation for metric in task.metrics}
    questions = [task.get(index) for index in range(task.size)]
    for run in theirs["runs"]:
        samples = [(index, theirs["answers"][answer]) for index, answer in run["samples"]]
        values: dict[str, list[Any]] = {}
        for index, answer in samples:
            for metric, value in questions[index].score(answer.strip()).metrics.items():
                values.setdefault(metric, []).append(value)
        ours = {metric: aggregations[metric](each) for metric, each in values.items()}
        assert ours == pytest.approx(run["metrics"], abs=1e-9, rel=0), samples


@pytest.mark.parametrize("name", SPLITS)
def test_expected_values_tell_right_from_wrong(name: str) -> None:
    theirs = expected(name)
    assert len(theirs["answers"]) >= 25
    for metric in theirs["runs"][0]["metrics"].keys() - {"pope_yes_ratio"}:
        assert len({run["metrics"].get(metric) for run in theirs["runs"]}) > 1, metric


@pytest.mark.parametrize("name", SPLITS)
def test_pictures_are_shown_in_rgb(name: str, tmp_path: Path) -> None:
    (picture,) = load(name, tmp_path).get(0).shown()
    assert (picture.mode, picture.size) == ("RGB", (8, 6))


@pytest.mark.parametrize("name", SPLITS)
def test_a_sample_has_a_score_and_no_answers_are_worth_nothing(name: str, tmp_path: Path) -> None:
    task = load(name, tmp_path)
    for index in range(task.size):
        empty = task.get(index).score("")
        assert not empty.parsed
        assert empty.score == 0.0 or name in CROWDS  # where some of the crowd said nothing either
    assert [metric.aggregation([]) for metric in task.metrics if not metric.is_mean] == [0.0] * sum(
        not metric.is_mean for metric in task.metrics
    )


TARGETS = {
    "textvqa_val": "Red.",
    "vqav2_val": "red",
    "scienceqa_img": "A",
    "ai2d": "B",
    "docvqa_val": "1,000",
    "mmbench_en_dev_static": "B",
}


@pytest.mark.parametrize(("name", "answer"), TARGETS.items())
def test_a_right_answer_scores_one(name: str, answer: str, tmp_path: Path) -> None:
    scored = load(name, tmp_path).get(0).score(answer)
    assert (scored.score, scored.parsed) == (1.0, True)


def test_mme_questions_about_one_picture_are_one_cluster(tmp_path: Path) -> None:
    task = load("mme", tmp_path)
    assert [task.get(index).cluster for index in range(3)] == ["color/1.jpg", "color/1.jpg", "color/2.jpg"]


def test_mmbench_rotations_of_one_question_are_one_cluster(tmp_path: Path) -> None:
    task = load("mmbench_en_dev_static", tmp_path)
    assert [task.get(index).cluster for index in range(6)] == ["7"] * 4 + ["8"] * 2


def test_gqa_pictures_are_files_named_after_the_image(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (5, 4)).save(tmp_path / "images" / "n1.jpg")
    row = expected("gqa")["docs"][0]
    (tmp_path / "testdev.jsonl").write_text(json.dumps(row))
    (picture,) = load_task("gqa", data=tmp_path).get(0).shown()
    assert picture.size == (5, 4)


def test_gqa_rows_of_the_hub_get_their_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    pictures = datasets.Dataset.from_dict(
        {"id": ["n3", "n2", "n1"], "image": [Image.new("RGB", (size, 1)) for size in (3, 2, 1)]}
    )
    for name, rows in ((gqa.QUESTIONS, datasets.Dataset.from_list(expected("gqa")["docs"])), (gqa.PICTURES, pictures)):
        (tmp_path / name).mkdir()
        rows.to_parquet(tmp_path / name / "testdev-00000-of-00001.parquet")
    configs = "".join(
        f"- config_name: {name}\n  data_files:\n  - split: testdev\n    path: {name}/testdev-*\n"
        for name in (gqa.QUESTIONS, gqa.PICTURES)
    )
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    monkeypatch.setattr(gqa, "HUB", str(tmp_path))
    cache = str(tmp_path / "cache")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", cache)
    questions = datasets.load_dataset(str(tmp_path), gqa.QUESTIONS, split="testdev", cache_dir=cache)
    docs = gqa.process_docs(questions)
    assert [gqa.doc_to_visual(doc)[0].size for doc in docs] == [(1, 1), (1, 1), (2, 1), (3, 1)]


def mme_values(*scores: tuple[str, float]) -> list[dict[str, Any]]:
    return [{"category": "color", "question_id": picture, "score": score} for picture, score in scores]


def test_mme_counts_a_picture_with_one_answer_for_accuracy_alone() -> None:
    whole = mme_values(("1", 1.0), ("1", 1.0), ("2", 1.0), ("2", 0.0))
    assert mme.score(whole) == 75 + 50
    assert mme.score([*whole, *mme_values(("3", 1.0))]) == 80 + 50
    assert mme.score(mme_values(("3", 1.0))) == 100
    assert mme.score([]) == 0


def test_mme_counts_a_picture_drawn_twice_as_two_pairs() -> None:
    right, wrong = mme_values(("1", 1.0), ("1", 1.0)), mme_values(("2", 1.0), ("2", 0.0))
    assert mme.score([*right, *right, *wrong]) == pytest.approx(100 * 5 / 6 + 100 * 2 / 3)
    assert mme.score([*right, *wrong, *wrong]) == pytest.approx(100 * 4 / 6 + 100 * 1 / 3)


def test_mmbench_counts_a_question_drawn_twice_twice() -> None:
    right = [{"index": index, "circle": 1, "score": 1.0} for index in (1, 1_000_001)]
    wrong = [{"index": index, "circle": 2, "score": score} for index, score in ((2, 1.0), (1_000_002, 0.0))]
    assert mmbench.circular_accuracy([*right, *wrong]) == 50
    assert mmbench.circular_accuracy([*right, *right, *wrong]) == pytest.approx(200 / 3)


OPTIONS = {"choices": ["x", "y"], "options": ["x", "y"], "answer": 1}
ROW = {"A": "a cat", "B": "a dog", "C": "nan", "D": None, "answer": "B", "index": 1, "category": "color"}
VIDEO = {"answer": "B", "data_type": "video"}
MME = {"answer": "Yes", "category": "OCR", "question_id": "1.jpg"}


@pytest.mark.parametrize(
    ("module", "doc", "readable", "unreadable"),
    [
        (mme, MME, ["yes", "No.", "y", "nonsense"], ["", "maybe", "it is yes", "True"]),
        (pope, {"answer": "yes"}, ["yes", " NO "], ["", "Yes.", "yes, it is", "there is one"]),
        (scienceqa, OPTIONS, ["A", "b", "B. y"], ["", "C", "(B)", "a. x", "y", "AB", "Z. x"]),
        (ai2d, OPTIONS, ["A", "(b)", "B. y", " A."], ["", "C.", "y", "The answer is B", "AB"]),
        (seedbench, VIDEO, ["A", "b) y", "Cats", "D."], ["", "E", "(B)", "The answer is B", "1"]),
        (mmbench, ROW, ["B", "(A).", "a dog!", "the answer is B"], ["", "...", "neither", "no idea"]),
    ],
)
def test_what_cannot_be_read_is_told_and_never_right(
    module: Any, doc: dict[str, Any], readable: list[str], unreadable: list[str]
) -> None:
    assert [answer for answer in readable if not module.process_results(doc, [answer])["parsed"]] == []
    for answer in unreadable:
        result = module.process_results(doc, [answer])
        assert result.pop("parsed") is False, answer
        values = [value["score"] if isinstance(value, dict) else value for value in result.values()]
        assert values and not any(values), answer
