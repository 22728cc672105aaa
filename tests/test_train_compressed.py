"""`vtc train-compressed`: the numbers are those of `vtc eval`, of steps under the patch, and can be gone on with."""

import io
import json
import re

import pytest
import torch
from eval_runs import exit_code, made_once
from PIL import Image

import vtc
from vtc.eval import embedded
from vtc.eval.train.compressed import command, figure, results, runs

torch.set_num_threads(1)

SPEC = "random:keep=16"
ASKED = ["--methods", "random", "--keep", "16", "--limit", "9"]
TRAINED = ["train-compressed", *ASKED, "--ways", "lora", "--points", "1", "--batch", "2", "--rate-lora", "0.02"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The run of one method, LoRA, one step of two questions."""
    return made_once(tmp_path_factory, "compressed", lambda path: exit_code([*TRAINED, "--output", str(path)]))


@pytest.fixture
def curve(folder):
    return json.loads((folder / command.CURVE).read_text())


def test_before_the_first_step_answers_are_those_of_vtc_eval(curve, tmp_path):
    """`random` draws anew in each batch, so that batches have to be the same as well."""
    assert exit_code(["eval", *ASKED, "--output", str(tmp_path / "run")]) == 0
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    for name, right in curve["untouched"].items():
        assert right == [int(sample["correct"]) for sample in samples if sample["setting"] == name]
    assert 0 < sum(curve["untouched"][SPEC]) < sum(curve["untouched"]["none"]), "else nothing could differ"


@pytest.mark.parametrize("trained", ["none", SPEC])
def test_the_first_loss_is_that_of_a_plain_forward(trained, curve):
    """The two questions of the step, in whatever order: LoRA begins as nothing."""
    model, processor = embedded.load()
    samples = embedded.benchmark(2, "train")
    texts = [f"{embedded.prompt(processor, each.question)} {each.answer}</s>" for each in samples]
    pictures = [[each.image] for each in samples]
    inputs = processor(images=pictures, text=texts, padding=True, padding_side="left", return_tensors="pt")
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[:, -2:] = inputs["input_ids"][:, -2:]  # an answer is one word, and the end
    with torch.no_grad(), vtc.patched(model, trained):
        loss = model(**inputs, labels=labels).loss.item()
    (point,) = results.run_of(curve, trained, "lora")["points"]
    assert point["step"] == 1 and point["loss"] == pytest.approx(loss, abs=2e-5)


def test_what_is_done_is_not_done_again(folder, curve, tmp_path, monkeypatch):
    """Of a run that was killed before its last fine-tuning, that one alone; with the same answers."""
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    rest = {**curve, "runs": curve["runs"][:-1]}
    (tmp_path / command.CURVE).write_text(json.dumps(rest))
    begun = []
    real = runs.fine_tuned
    monkeypatch.setattr(
        runs,
        "fine_tuned",
        lambda plan, way, setting, *more: begun.append(setting.name) or real(plan, way, setting, *more),
    )
    assert exit_code([*TRAINED, "--output", str(tmp_path)]) == 0
    assert begun == [curve["runs"][-1]["trained"]]
    assert json.loads((tmp_path / command.CURVE).read_text()) == curve
    for name in (command.TABLE, command.FIGURE):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


MADE_UP = {
    "config": {
        "settings": ["none", "divprune:keep=0.25", "tome:keep=0.25"], "ways": ["full", "lora"], "points": [5, 10],
        "batch": 4, "questions": 4, "held_out": "embedded/test", "learned_on": "embedded/train", "trainer": "trl",
    },
    "untouched": {"none": [1, 1, 1, 1], "divprune:keep=0.25": [1, 0, 0, 0], "tome:keep=0.25": [0, 0, 0, 0]},
    "runs": [],
}  # fmt: skip
for _trained in MADE_UP["config"]["settings"]:
    for _way in ("full", "lora"):
        _last = {"none": [0, 1, 1, 1], "divprune:keep=0.25": [1, 1, 1, 1], "tome:keep=0.25": [0, 0, 0, 0]}
        if _trained == "none":
            _last = {"none": [1, 1, 1, 1], "divprune:keep=0.25": [1, 1, 0, 0], "tome:keep=0.25": [1, 0, 0, 0]}
        _points = [{"step": step, "loss": 1.0, "right": _last} for step in (5, 10)]
        MADE_UP["runs"].append({"trained": _trained, "way": _way, "points": _points})


def test_the_table_tells_gains_and_losses_alike():
    text = results.table(MADE_UP)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:3] == "| `"]
    ends, curves = rows[:4], rows[4:]
    assert [row[:2] for row in ends[:2]] == [["`divprune:keep=0.25`", "all weights"], ["`divprune:keep=0.25`", "LoRA"]]
    means = [[float(re.match(r"[+-]?[\d.]+", cell)[0]) for cell in row[2:]] for row in ends]
    assert means[0] == means[1] == [25.0, 100.0, 75.0, 50.0, 75.0]
    assert means[2] == means[3] == [0.0, 0.0, 0.0, -25.0, 75.0]
    assert curves[0] == ["`divprune:keep=0.25`", "all weights", "`divprune:keep=0.25`", "25.0", "100.0", "100.0"]
    assert curves[1] == ["`none`", "all weights", "`divprune:keep=0.25`", "25.0", "50.0", "50.0"]
    assert curves[4] == ["`none`", "all weights", "`none`", "100.0", "", "100.0"] and len(curves) == 10
    assert "4 questions of embedded/test, 10 steps of 4 questions of embedded/train by the Trainer of trl" in text


def test_the_figure_draws_every_fine_tuning_and_both_lines():
    drawn = figure.composed(MADE_UP)
    assert len(drawn.axes) == 2
    for axes, name in zip(drawn.axes, MADE_UP["config"]["settings"][1:]):
        lines = [list(line.get_ydata()) for line in axes.get_lines()]
        before = results.share(MADE_UP["untouched"][name])[0]
        assert [100.0, 100.0] in lines and [before, before] in lines
        for run in MADE_UP["runs"]:
            if run["trained"] in ("none", name):
                assert [before, *(results.share(point["right"][name])[0] for point in run["points"])] in lines
    picture = Image.open(io.BytesIO(figure.draw(MADE_UP)))
    assert picture.format == "PNG" and picture.size[0] == figure.WIDTH * figure.DPI


@pytest.mark.parametrize(
    ("words", "said"),
    [("--points 2,1", "'2,1'"), ("--points 0", "'0'"), ("--ways full,lore", "'lore'"), ("--keep 0.5,0.25", "give one"),
     ("--methods divprun", "divprun"), ("--trainer trll", "trll")],
)  # fmt: skip
def test_what_can_not_be_used_is_refused_before_anything_is_written(words, said, tmp_path, capsys):
    assert exit_code(["train-compressed", "--output", str(tmp_path / "run"), *words.split()]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "run").exists()
