"""The video tasks: prompts, scores and metrics equal to lmms-eval's own; nothing is ever guessed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vtc.eval.tasks.index import find_tasks
from vtc.eval.tasks.task import Task
from vtc.eval.tasks.yaml_task import load_task

EXPECTED = json.loads((Path(__file__).parent / "expected" / "videos.json").read_text(encoding="utf-8"))
#: They draw a letter where none can be read.
DRAWING = {"egoschema_subset", "longvideobench_val_v"}
SPLITS = {"mvbench_object_shuffle": "train", "longvideobench_val_v": "validation"}


def load(name: str, folder: Path, prompts: str = "default") -> Task:
    """The task with the made-up rows in a local folder."""
    rows = "".join(json.dumps(doc) + "\n" for doc in EXPECTED[name]["docs"])
    (folder / f"{SPLITS.get(name, 'test')}.jsonl").write_text(rows, encoding="utf-8")
    return load_task(name, data=folder, prompts=prompts)


@pytest.mark.parametrize("name", EXPECTED)
def test_prompts_are_those_of_lmms_eval(name: str, tmp_path: Path) -> None:
    for model, prompts in EXPECTED[name]["prompts"].items():
        task = load(name, tmp_path, model)
        assert [task.get(index).text for index in range(task.size)] == prompts, model
        assert task.kind == "video"


@pytest.mark.parametrize("name", EXPECTED)
def test_metrics_are_those_of_lmms_eval(name: str, tmp_path: Path) -> None:
    task, theirs = load(name, tmp_path), EXPECTED[name]
    metric = next(each for each in task.metrics if each.name == theirs["metric"])
    values: dict[tuple[int, int], Any] = {}
    for run in theirs["runs"]:
        scored = task.get(run["row"]).score(theirs["answers"][run["answer"]])
        values[run["row"], run["answer"]] = scored.metrics[metric.name]
        answer = theirs["answers"][run["answer"]]
        if run["metric"] is None:
            assert (scored.score, scored.parsed) == (0.0, False), answer
        else:
            assert metric.aggregation([values[run["row"], run["answer"]]]) == pytest.approx(run["metric"], abs=1e-9), (
                answer
            )
            assert scored.parsed or scored.score == 0.0
    whole = [values[row, answer] for row, answer in theirs["all"]["samples"]]
    assert metric.aggregation(whole) == pytest.approx(theirs["all"]["metric"], abs=1e-9)


@pytest.mark.parametrize("name", EXPECTED)
def test_expected_values_tell_right_from_wrong(name: str) -> None:
    found = {run["metric"] for run in EXPECTED[name]["runs"]}
    assert len(EXPECTED[name]["answers"]) >= 25 and len(found - {None}) > 1
    assert (None in found) == (name in DRAWING)


@pytest.mark.parametrize("name", EXPECTED)
def test_nothing_said_is_not_parsed_and_nothing_aggregated_is_nothing(name: str, tmp_path: Path) -> None:
    task = load(name, tmp_path)
    assert (task.get(0).score("").score, task.get(0).score("").parsed) == (0.0, False)
    assert all(metric.aggregation([]) == 0.0 for metric in task.metrics)


def test_questions_about_one_video_are_one_cluster(tmp_path: Path) -> None:
    assert load("videomme", tmp_path).get(1).cluster == "v1"


def test_mvbench_is_twenty_tasks_each_with_the_folder_of_its_videos(tmp_path: Path) -> None:
    names = find_tasks("mvbench")
    assert len(names) == 20
    frames = tmp_path / "tvqa" / "video_fps3_hq_segment" / "0.mp4"  # one of them has folders of frames
    frames.mkdir(parents=True)
    for number in range(5):
        Image.new("RGB", (8, 6), (50 * number, 0, 0)).save(frames / f"{number:05d}.jpg", quality=95)
    rows = "".join(json.dumps(doc) + "\n" for doc in EXPECTED["mvbench_object_shuffle"]["docs"])
    (tmp_path / "train.jsonl").write_text(rows, encoding="utf-8")
    (video,) = load_task("mvbench_episodic_reasoning", data=tmp_path, frames=3).get(0).shown()
    assert video.shape == (3, 6, 8, 3) and video.dtype == np.uint8
    assert [round(float(frame[..., 0].mean()) / 50) for frame in video] == [0, 2, 4]
