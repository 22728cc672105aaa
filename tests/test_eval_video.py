"""`vtc eval --tasks video` from the outside: tokens of each frame, resume, one's own files, what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from eval_runs import made_once
from PIL import Image
from video_files import needs_ffmpeg, numbered, numbers

from vtc.eval import clips
from vtc.eval.cli import main
from vtc.eval.media.images import open_repeated
from vtc.eval.media.video import Video
from vtc.eval.models import Loaded
from vtc.eval.run.evaluate import METHODS

QUESTIONS, FRAMES, TOKENS = 2, 8, 64
SETTINGS = ["none", "evs:keep=0.25", "frame_stride:keep=0.25"]


def arguments(output: Path) -> list[str]:
    return [
        *("eval", "--tasks", "video", "--methods", "none,evs,frame_stride", "--keep", "0.25"),
        *("--limit", str(QUESTIONS), "--batch-size", "1", "--max-new-tokens", "4", "--output", str(output)),
    ]


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    def make(folder: Path) -> None:
        assert main(arguments(folder)) == 0

    return made_once(tmp_path_factory, "video", make)


def test_every_frames_tokens_are_counted(run):
    samples = lines(run / "samples.jsonl")
    assert len(samples) == QUESTIONS * len(SETTINGS)
    for sample in samples:
        counts = sample["tokens_per_frame"]
        assert len(counts) == FRAMES
        # Beside the frames' own tokens there is one newline behind the last frame.
        assert sample["visual_tokens"] == FRAMES * TOKENS + 1
        assert 0 <= sample["kept_tokens"] - sum(counts) <= 1
        if sample["setting"] == "none":
            assert counts == [TOKENS] * FRAMES
        if sample["setting"] == "evs:keep=0.25":
            assert counts[0] == TOKENS and sum(counts) == FRAMES * TOKENS // 4
        if sample["setting"] == "frame_stride:keep=0.25":
            assert sorted(counts) == [0] * 6 + [TOKENS] * 2


def test_results_and_tables_show_their_means(run):
    samples, results = lines(run / "samples.jsonl"), json.loads((run / "results.json").read_text())
    assert [row["setting"] for row in results["settings"]] == SETTINGS
    table = (run / "results.md").read_text()
    assert f"| tokens of frame | {' | '.join(map(str, range(1, FRAMES + 1)))} |" in table
    for row in results["settings"]:
        counts = [sample["tokens_per_frame"] for sample in samples if sample["setting"] == row["setting"]]
        assert row["tokens_per_frame"] == pytest.approx(np.mean(counts, axis=0).tolist())
        assert f"| {row['setting']} | {' | '.join(f'{count:.1f}' for count in row['tokens_per_frame'])} |" in table


def test_questions_are_those_of_the_bundled_clips(run):
    asked = [sample for sample in lines(run / "samples.jsonl") if sample["setting"] == "none"]
    there = clips.benchmark(QUESTIONS)
    assert [(s["id"], s["question"], s["answer"]) for s in asked] == [(c.id, c.question, c.answer) for c in there]


def test_bundled_clips_may_be_longer(tmp_path):
    folder = tmp_path / "run"
    assert main([*arguments(folder), "--frames", "16"]) == 0
    results, samples = json.loads((folder / "results.json").read_text()), lines(folder / "samples.jsonl")
    assert results["config"]["benchmark"] == "clips/test, 16 frames" and results["blind"] is None
    for sample in samples:
        assert len(sample["tokens_per_frame"]) == 16 and sample["visual_tokens"] == 16 * TOKENS + 1
    short = clips.benchmark(QUESTIONS)
    asked = [sample for sample in samples if sample["setting"] == "none"]
    assert [(s["id"], s["question"], s["answer"]) for s in asked] == [(c.id, c.question, c.answer) for c in short]


@pytest.mark.parametrize("name", ["figure.png", "frames.png"])
def test_figures_are_drawn(run, name):
    picture = Image.open(run / name)
    assert min(picture.size) > 250
    assert len(picture.convert("RGB").getcolors(10**6)) > 50


def test_it_goes_on_behind_the_last_batch_and_ends_the_same(run, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    for name in ("samples.jsonl", "results.json", "results.md", "figure.png", "frames.png"):
        (folder / name).unlink()
    journal = folder / "journal-0.jsonl"
    first = journal.read_text().splitlines(keepends=True)[0]
    journal.write_text(first)
    assert main(arguments(folder)) == 0
    assert "1 of 2 batches are in" in capsys.readouterr().err
    assert journal.read_text().startswith(first)
    assert (folder / "samples.jsonl").read_bytes() == (run / "samples.jsonl").read_bytes()
    assert (folder / "frames.png").read_bytes() == (run / "frames.png").read_bytes()


@needs_ffmpeg
def test_files_of_unequal_length_and_a_broken_one(tmp_path, capsys):
    pytest.importorskip("decord", reason="videos are read by decord: pip install 'vtc[video]'")
    whole = numbered(tmp_path / "long.mp4", 40).read_bytes()
    numbered(tmp_path / "short.mp4", 3)
    (tmp_path / "broken.mp4").write_bytes(whole[: len(whole) // 2])
    entries = [
        {"video": f"{name}.mp4", "question": "How many things move?", "answer": "two", "id": name}
        for name in ("long", "short", "broken", "missing")
    ]
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, entries)))
    folder = tmp_path / "run"
    command = ["eval", "--tasks", "video", "--videos", str(tmp_path), "--frames", "4", "--batch-size", "2"]
    assert main([*command, "--methods", "evs", "--keep", "0.5", "--output", str(folder)]) == 0
    results = json.loads((folder / "results.json").read_text())
    assert (results["questions"], [each["id"] for each in results["failed"]]) == (2, ["broken", "missing"])
    for sample in lines(folder / "samples.jsonl"):
        if sample["setting"] is None:
            assert f"{sample['id']}.mp4" in sample["error"]
        else:
            assert len(sample["tokens_per_frame"]) == 4
    assert "2 of 4 questions could not be asked" in capsys.readouterr().err
    assert main([*command, "--methods", "evs", "--keep", "0.5", "--frames", "5", "--output", str(folder)]) == 2
    assert "its benchmark is" in capsys.readouterr().err


@needs_ffmpeg
def test_a_shorter_video_repeats_its_frames(tmp_path):
    pytest.importorskip("decord", reason="videos are read by decord: pip install 'vtc[video]'")
    file = numbered(tmp_path / "short.mp4", 3)
    video = open_repeated(file, 7)
    assert numbers(video.frames) == [0, 0, 1, 1, 1, 2, 2]
    assert video.times == pytest.approx([frame / 30 for frame in (0, 0, 1, 1, 1, 2, 2)], abs=2e-3)
    assert numbers(open_repeated(file, 2).frames) == [0, 2]


@pytest.mark.parametrize(("kind", "task"), [("image", "video"), ("video", "images")])
def test_files_of_the_other_kind_are_refused_before_anything_is_written(tmp_path, capsys, kind, task):
    command = ["eval", "--tasks", task, f"--{kind}s", str(tmp_path / "questions.jsonl")]
    assert main([*command, "--output", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert f"argument --{kind}s: " in error and f"not for --tasks {task}" in error
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_help_tells_the_methods_of_each_task(capsys):
    with pytest.raises(SystemExit):
        main(["eval", "--help"])
    out = "".join(capsys.readouterr().out.split())
    for task, methods in METHODS.items():
        assert f"{task}:{methods}" in out


class Noting:
    """A processor of transformers, as far as `Loaded.inputs` goes, that notes what it is given."""

    chat_template = None
    video_token = "<video>"

    class video_processor:
        do_sample_frames = True

    def __call__(self, **given):
        self.given = given
        raise KeyboardInterrupt


def test_processors_are_told_that_frames_are_sampled_and_when_they_are_shown():
    frames = np.zeros((3, 8, 8, 3), np.uint8)
    noting = Noting()
    loaded = Loaded(model=None, processor=noting, decoder=None, tower=None)
    with pytest.raises(KeyboardInterrupt):
        loaded.inputs([[Video(frames, (0.0, 1.0, 2.0), 30.0, 61)]], ["?"])
    assert noting.given["videos"][0] is frames
    metadata = {"total_num_frames": 61, "fps": 30.0, "frames_indices": [0, 30, 60]}
    assert noting.given["videos_kwargs"] == {"do_sample_frames": False, "video_metadata": [metadata]}
    for without in (frames, Video(frames, None, None, 3)):
        with pytest.raises(KeyboardInterrupt):
            loaded.inputs([[without]], ["?"])
        assert noting.given["videos_kwargs"] == {"do_sample_frames": False}
