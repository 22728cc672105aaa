"""Tasks of one's own: YAML in lmms-eval's form, functions beside it, data of every form, and what is refused."""

import json
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from vtc.eval import embedded
from vtc.eval.cli import main
from vtc.eval.cli.errors import InputError
from vtc.eval.tasks import data as task_data
from vtc.eval.tasks.index import find_tasks
from vtc.eval.tasks.yaml_task import load_task

YAML = """
task: {name}
dataset_path: somewhere/mine
test_split: test
doc_to_visual: !function mine.pictures
doc_to_text: !function mine.text
doc_to_target: answer
process_results: !function mine.score
metric_list:
  - metric: right
    aggregation: mean
    higher_is_better: true
  - metric: of_colours
    aggregation: !function mine.of_colours
    higher_is_better: true
generation_kwargs:
  max_new_tokens: 4
  until: ["\\n"]
lmms_eval_specific_kwargs:
  default: {{post_prompt: ""}}
  shy: {{post_prompt: " please"}}
metadata:
  version: 1.0
  group_by: kind
"""
PYTHON = """
def pictures(doc):
    return [doc["image"]]

def text(doc, lmms_eval_specific_kwargs):
    return doc["question"] + lmms_eval_specific_kwargs["post_prompt"]

def score(doc, results):
    right = float(results[0].lower().strip(" .") == doc["answer"].lower())
    return {"right": right, "of_colours": {"kind": doc["kind"], "score": right}, "parsed": results[0] != "what?"}

def of_colours(values):
    mine = [value["score"] for value in values if value["kind"] == "colour"]
    return sum(mine) / len(mine) if mine else 0.0
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A newcomer's folder with a task, and one with its data."""
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "mine.yaml").write_text(YAML.format(name="mine"))
    (tmp_path / "tasks" / "mine.py").write_text(PYTHON)
    data = tmp_path / "data" / "mine"
    (data / "pictures").mkdir(parents=True)
    rows = []
    for number, sample in enumerate(embedded.benchmark(4)[:]):
        sample.image.save(data / "pictures" / f"{number}.png")
        row = {"image": f"pictures/{number}.png", "question": sample.question, "answer": sample.answer}
        rows.append({**row, "kind": sample.group})
    (data / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def load(mine: Path, **more):
    return load_task("mine", **{"data": mine / "data", "include": [mine / "tasks"], **more})


def write(mine: Path, **changes: str | None) -> None:
    """Change lines of the YAML file: a new value for a key, or None to leave it out."""
    lines = (mine / "tasks" / "mine.yaml").read_text().splitlines()
    for key, value in changes.items():
        lines = [line for line in lines if not line.startswith(f"{key}:")]
        lines += [] if value is None else [f"{key}: {value}"]
    (mine / "tasks" / "mine.yaml").write_text("\n".join(lines))


def test_a_newcomers_task_runs_from_the_command_line(mine, tmp_path, capsys):
    output = tmp_path / "run"
    command = ["eval", "--tasks", "mine,images", "--include_path", str(mine / "tasks"), "--data", str(mine / "data")]
    options = ["--methods", "divprune", "--keep", "0.25", "--limit", "3", "--output", str(output)]
    assert main([*command, *options]) == 0
    results = json.loads((output / "mine" / "results.json").read_text())
    row = results["settings"][0]
    assert list(row["metrics"]) == ["right", "of_colours"] and results["questions"] == 3
    samples = [json.loads(line) for line in (output / "mine" / "samples.jsonl").read_text().splitlines()]
    there = embedded.benchmark(3)[:]
    assert [s["question"] for s in samples if s["setting"] == "none"] == [sample.question for sample in there]
    assert {s["group"] for s in samples} == {sample.group for sample in there}
    right = [s["score"] for s in samples if s["setting"] == "none"]
    assert row["metrics"]["right"]["value"] == sum(right) / 3 > 0
    assert "mine right" in (output / "summary.md").read_text()
    capsys.readouterr()
    assert main(["tasks", "mine", *command[3:]]) == 0
    assert there[0].question in capsys.readouterr().out


def test_prompts_answers_and_scores_are_the_files(mine):
    task = load(mine)
    question = task.get(1)
    assert (task.size, task.max_new_tokens, task.until, task.kind) == (4, 4, ("\n",), "image")
    assert load(mine, prompts="shy").get(1).text == question.text + " please"
    right, unread = question.score(question.answer + "."), question.score("what?")
    assert (right.score, right.correct, right.parsed) == (1.0, True, True)
    assert (unread.score, unread.correct, unread.parsed) == (0.0, False, False)
    assert not question.score("  ").parsed
    assert task.cut("red\nand more") == "red"
    assert task.metrics[1].aggregation([{"kind": "colour", "score": 1.0}, {"kind": "word", "score": 0.0}]) == 1.0
    (shown,) = question.shown()
    assert shown.size == embedded.benchmark(2)[1].image.size


def test_the_fingerprint_follows_what_is_asked(mine):
    names = {load(mine).fingerprint, load(mine, prompts="shy").fingerprint}
    (mine / "tasks" / "mine.py").write_text(PYTHON + "\n# another\n")
    names.add(load(mine).fingerprint)
    rows = mine / "data" / "mine" / "test.jsonl"
    rows.write_text(rows.read_text().replace("Is", "is") + rows.read_text().splitlines()[0])
    names.add(load(mine).fingerprint)
    assert len(names) == 4


def test_includes_are_read_below_the_file_that_names_them(mine):
    (mine / "tasks" / "base.yaml").write_text("test_split: other\ngeneration_kwargs: {max_new_tokens: 9}\n")
    write(mine, include="base.yaml")
    assert load(mine).max_new_tokens == 4
    (mine / "tasks" / "base.yaml").write_text("include: mine.yaml\n")
    with pytest.raises(InputError, match="includes itself"):
        load(mine)


def test_a_task_without_process_results_is_scored_by_exact_match(mine):
    lines = (mine / "tasks" / "mine.yaml").read_text().splitlines()
    start = lines.index("metric_list:")
    stop = lines.index("generation_kwargs:")
    metric = ["metric_list:", "  - metric: exact_match", "    aggregation: mean", "    ignore_case: true"]
    lines[start:stop] = [*metric, "    ignore_punctuation: true"]
    (mine / "tasks" / "mine.yaml").write_text("\n".join(line for line in lines if "process_results" not in line))
    question = load(mine).get(0)
    assert question.score(question.answer.upper() + "!").score == 1.0
    assert question.score(question.answer + " x").score == 0.0


def test_templates_are_filled_from_the_row(mine):
    write(mine, doc_to_text='"Q: {{question}}"', doc_to_target='"{{kind}}-{{answer}}"')
    question, sample = load(mine).get(0), embedded.benchmark(1)[0]
    assert (question.text, question.answer) == (f"Q: {sample.question}", f"{sample.group}-{sample.answer}")


@pytest.mark.parametrize("form", ["parquet", "json", "csv", "hub layout"])
def test_rows_come_in_many_forms(mine, form):
    datasets = pytest.importorskip("datasets")
    data = mine / "data" / "mine"
    rows = [json.loads(line) for line in (data / "test.jsonl").read_text().splitlines()]
    (data / "test.jsonl").unlink()
    if form == "json":
        (data / "test.json").write_text(json.dumps(rows))
    elif form == "csv":
        lines = [",".join(f'"{row[key]}"' for key in rows[0]) for row in rows]
        (data / "test.csv").write_text("\n".join([",".join(rows[0]), *lines]))
    else:
        pictures = [{**row, "image": str(data / row["image"])} for row in rows]
        made = datasets.Dataset.from_list(pictures).cast_column("image", datasets.Image())
        name = "test.parquet" if form == "parquet" else "data/test-00000-of-00001.parquet"
        (data / name).parent.mkdir(exist_ok=True)
        made.to_parquet(data / name)
    task = load(mine)
    for number, sample in enumerate(embedded.benchmark(4)[:]):
        question = task.get(number)
        assert question.text == sample.question
        (shown,) = question.shown()
        assert shown.tobytes() == sample.image.convert("RGB").tobytes()


def test_a_broken_picture_inside_a_table_stops_nothing_but_itself(mine):
    datasets = pytest.importorskip("datasets")
    data = mine / "data" / "mine"
    rows = [{"image": {"bytes": b"no picture", "path": None}, "question": "?", "answer": "a", "kind": "x"}]
    datasets.Dataset.from_list(rows).cast_column("image", datasets.Image()).to_parquet(data / "test.parquet")
    question = load(mine).get(0)
    assert question.text == "?"
    with pytest.raises(Exception, match=r"can.t be read|cannot identify"):
        question.shown()


def test_a_file_is_found_by_the_end_of_its_path_if_there_is_one(mine):
    data = mine / "data" / "mine"
    (data / "deep").mkdir()
    (data / "pictures").rename(data / "deep" / "pictures")
    assert load(mine).get(0).shown()
    (data / "twice" / "pictures").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(data / "twice" / "pictures" / "0.png")
    with pytest.raises(InputError, match="2 files end so"):
        load(mine).get(0).shown()
    with pytest.raises(InputError, match="there is none"):
        (data / "deep" / "pictures" / "1.png").unlink()
        load(mine).get(1).shown()


REFUSED = {
    "output_type": ("loglikelihood", "output_type 'loglikelihood'"),
    "metrics_list": ("[]", "did you mean 'metric_list'"),
    "process_results": ("!function mine.nothing", "has no 'nothing'"),
    "doc_to_text": ("!function other.text", "does not exist"),
    "test_split": (None, "no 'test_split'"),
    "doc_to_visual": ("pictures", "doc_to_visual is 'pictures'"),
    "dataset_path": (None, "no 'dataset_path'"),
    "task": ("../mine", "other signs than letters"),
}


@pytest.mark.parametrize("key", REFUSED)
def test_what_a_file_must_not_say_is_told(mine, key):
    value, said = REFUSED[key]
    write(mine, **{key: value})
    with pytest.raises(InputError, match=said) as caught:
        load_task(str(mine / "tasks" / "mine.yaml"), data=mine / "data")
    assert "mine.yaml" in str(caught.value)


def test_a_metric_that_nothing_gives_is_told(mine):
    write(mine, process_results=None)
    with pytest.raises(InputError, match="metric 'right' needs process_results"):
        load(mine)


def test_missing_data_is_told_with_what_to_put_where(mine):
    (mine / "data" / "mine" / "test.jsonl").unlink()
    with pytest.raises(InputError, match=r"--data: no rows of task 'mine' \(split 'test'\).*download 'somewhere/mine'"):
        load(mine)
    with pytest.raises(InputError, match="--data"):
        load(mine, data=mine / "nothing")


def test_without_a_hub_and_without_data_the_way_out_is_told(mine, monkeypatch):
    datasets = pytest.importorskip("datasets")

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no hub can be reached")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    monkeypatch.setattr(task_data, "_unreachable", [])
    with pytest.raises(InputError, match=r"'somewhere/mine', which can't be had here .*--data FOLDER"):
        load(mine, data=None)


def test_files_of_a_hub_are_fetched_and_unpacked_when_they_are_asked_for(mine, monkeypatch):
    datasets, hub = pytest.importorskip("datasets"), pytest.importorskip("huggingface_hub")
    snapshot, data = mine / "snapshots" / "abc", mine / "data" / "mine"
    snapshot.mkdir(parents=True)
    with zipfile.ZipFile(snapshot / "pictures.zip", "w") as archive:
        for file in (data / "pictures").iterdir():
            archive.write(file, f"some/where/pictures/{file.name}")
        archive.writestr("../outside.txt", "kept inside")
    rows = [json.loads(line) for line in (data / "test.jsonl").read_text().splitlines()]
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_list(rows))
    monkeypatch.setattr(hub, "snapshot_download", lambda path, **_: asked.append(path) or str(snapshot))
    monkeypatch.setattr(hub.constants, "HF_HOME", str(mine / "cache"))
    monkeypatch.setattr(task_data, "_unreachable", [])
    task = load(mine, data=None)
    assert not asked
    for number, sample in enumerate(embedded.benchmark(4)[:]):
        (shown,) = task.get(number).shown()
        assert shown.tobytes() == sample.image.convert("RGB").tobytes()
    assert asked == ["somewhere/mine"]
    assert [file.parent.name for file in mine.rglob("outside.txt")] == ["abc"]


def test_a_video_may_have_another_ending(mine):
    videos = mine / "data" / "mine" / "videos"
    videos.mkdir()
    (videos / "a.MP4").write_bytes(b"")
    rows = task_data.Rows(0, dict, dict, "", lambda: [mine / "data" / "mine"])
    assert rows._find("videos/a.mp4") == rows._find("a.mkv") == videos / "a.MP4"
    with pytest.raises(InputError, match="there is none"):
        rows._find("videos/a.png")


def test_names_patterns_groups_and_files(mine):
    tasks = mine / "tasks"
    (tasks / "second.yaml").write_text(YAML.format(name="mine_too"))
    (tasks / "both.yaml").write_text("group: both\ntask: [mine, mine_too]\n")
    assert find_tasks("mine", [tasks]) == ["mine"]
    assert find_tasks("mine*", [tasks]) == ["mine", "mine_too"]
    assert find_tasks("both", [tasks]) == ["mine", "mine_too"]
    assert find_tasks(str(tasks / "second.yaml")) == [str(tasks / "second.yaml")]
    assert load_task(str(tasks / "second.yaml"), data=mine / "data" / "mine").name == "mine_too"
    with pytest.raises(InputError, match="did you mean 'mine'"):
        find_tasks("mien", [tasks])
    with pytest.raises(InputError, match="--include_path"):
        find_tasks("mine", [mine / "nothing"])


def test_every_packaged_task_can_be_read(capsys):
    assert main(["tasks"]) == 0
    listed = capsys.readouterr().out
    pictures = "mme pope gqa textvqa_val scienceqa_img mmbench_en_dev_static vqav2_val vizwiz_vqa_val seedbench ai2d"
    assert all(f"| {name} " in listed for name in (*pictures.split(), "chartqa", "docvqa_val"))
