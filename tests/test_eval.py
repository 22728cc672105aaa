"""`vtc eval` from the outside: files that agree with each other, resume after kill -9, refusals, torn pictures."""

import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from covering import REST
from eval_runs import untimed
from PIL import Image

from vtc.eval import embedded
from vtc.eval.cli import main

QUESTIONS, BATCH = 9, 3
SETTINGS = ["none", "random:keep=0.25", "random:keep=8", "divprune:keep=0.25", "divprune:keep=8"]
FILES = ("config.json", "journal-0.jsonl", "samples.jsonl", "batches.jsonl", "results.json", "results.md", "figure.png")


def arguments(output: Path) -> list[str]:
    return [
        *("eval", "--methods", "none,random,divprune", "--keep", "0.25,8", "--limit", str(QUESTIONS)),
        *("--batch-size", str(BATCH), "--max-new-tokens", "4", "--output", str(output)),
    ]


def read(folder: Path) -> tuple[list[dict], list[dict], dict]:
    samples, batches = (
        [json.loads(line) for line in (folder / name).read_text().splitlines()]
        for name in ("samples.jsonl", "batches.jsonl")
    )
    return samples, batches, json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("eval") / "run"
    assert main(arguments(folder)) == 0
    return folder


def test_every_file_is_written(run):
    names = {file.name for file in run.iterdir()}
    assert names == {
        "config.json", "journal-0.jsonl", "samples.jsonl", "batches.jsonl", "results.json", "results.md", "figure.png",
        "flips",
    }  # fmt: skip
    figure = Image.open(run / "figure.png")
    assert min(figure.size) > 400
    assert len(figure.convert("RGB").getcolors(10**6)) > 50
    table = (run / "results.md").read_text()
    assert all(f"| {setting} |" in table for setting in SETTINGS)


def test_it_ends_with_the_short_table_and_says_where_everything_is(run, capsys):
    assert main(arguments(run)) == 0  # it is finished: nothing is asked again
    table, _, named = capsys.readouterr().out.rpartition("\n\n")
    _, _, results = read(run)
    for row in results["settings"]:
        (line,) = [line for line in table.splitlines() if line.split()[:1] == [row["setting"]]]
        right, tokens = f"{100 * row['overall']['right'] / QUESTIONS:.1f}", f"{row['equivalent_tokens']:.1f}"
        faster = (row["prefill_speedup"]["median"], row["prefill_speedup_ideal"])
        assert [line.split()[1], *line.split()[3:]] == [right, tokens, *(f"{ratio:.2f}" for ratio in faster)]
    assert max(map(len, table.splitlines())) <= 100
    files = [line.rpartition(": ")[2] for line in named.splitlines()]
    assert files == [str(run / name) for name in ("results.md", "figure.png", "samples.jsonl")]
    assert "figure: " + str(run / "figure.png") in named.splitlines()


def test_all_settings_saw_the_same_questions(run):
    samples, _, _ = read(run)
    expected = [(sample.id, sample.question, sample.answer) for sample in embedded.benchmark(QUESTIONS)[:]]
    for setting in SETTINGS:
        mine = [s for s in samples if s["setting"] == setting]
        assert [(s["id"], s["question"], s["answer"]) for s in mine] == expected


def test_results_agree_with_the_lines_they_are_made_of(run):
    samples, batches, results = read(run)
    assert [row["setting"] for row in results["settings"]] == SETTINGS
    assert (results["version"], results["questions"], results["failed"]) == (2, QUESTIONS, [])
    for row in results["settings"]:
        mine = [s for s in samples if s["setting"] == row["setting"]]
        right = sum(s["prediction"].lower().strip(" .") == s["answer"].lower() for s in mine)
        assert (row["overall"]["right"], row["overall"]["asked"]) == (right, QUESTIONS)
        assert sum(score["right"] for score in row["groups"].values()) == right
        low, high = row["overall"]["interval_95"]
        for bound in (low, high):  # the bounds solve |right/n - p| = z sqrt(p (1-p) / n)
            gap = abs(right / QUESTIONS - bound)
            assert math.isclose(gap, 1.959964 * math.sqrt(bound * (1 - bound) / QUESTIONS), abs_tol=1e-6)
        assert row["equivalent_tokens"] == statistics.mean(s["equivalent_tokens"] for s in mine)
        rounds = [measured for batch in batches for measured in batch["rounds"]]
        ratios = [measured["none"]["decoder_ms"] / measured[row["setting"]]["decoder_ms"] for measured in rounds]
        assert math.isclose(row["decoder_speedup"]["median"], statistics.median(ratios))
        kv = sum(measured[row["setting"]]["kv_bytes"] for measured in rounds) / QUESTIONS
        assert math.isclose(row["kv_bytes"], kv)


def test_budgets_are_what_was_asked_for(run):
    _, _, results = read(run)
    by_name = {row["setting"]: row for row in results["settings"]}
    assert [by_name[name]["equivalent_tokens"] for name in SETTINGS] == [256, 64, 8, 64, 8]
    assert by_name["none"]["decoder_speedup_ideal"] == 1.0
    assert 3 < by_name["divprune:keep=0.25"]["decoder_speedup_ideal"] < 5
    assert by_name["divprune:keep=8"]["kv_bytes"] < by_name["divprune:keep=0.25"]["kv_bytes"]


def test_a_finished_run_ends_with_the_same_bytes_when_asked_again(run, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(run, again)
    for name in FILES[2:]:
        (again / name).unlink()
    assert main(arguments(again)) == 0
    for name in FILES:
        assert (again / name).read_bytes() == (run / name).read_bytes(), name


def test_what_is_left_of_a_run_is_gone_on_with_and_ends_the_same(run, tmp_path):
    folder = tmp_path / "torn"
    folder.mkdir()
    shutil.copy(run / "config.json", folder)
    (first, *_) = (run / "journal-0.jsonl").read_bytes().splitlines(keepends=True)
    # what a kill in the middle of a write leaves behind
    (folder / "journal-0.jsonl").write_bytes(first + b'{"batch": 2, "samples": [{"id": "test-0-7", "group": "wo')
    assert main(arguments(folder)) == 0
    assert (folder / "journal-0.jsonl").read_bytes().startswith(first)
    assert untimed(folder) == untimed(run)


@REST
def test_killed_with_signal_9_it_resumes_and_ends_the_same(run, tmp_path):
    folder = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-m", "vtc.eval.cli", *arguments(folder)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    journal = folder / "journal-0.jsonl"
    deadline = time.monotonic() + 120
    while not (journal.exists() and journal.read_bytes().count(b"\n")) and time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert 1 <= journal.read_bytes().count(b"\n") < QUESTIONS // BATCH
    assert not (folder / "results.json").exists()
    before = journal.read_bytes()
    with journal.open("ab") as file:  # what a kill in the middle of a write leaves behind
        file.write(b'{"batch": 2, "samples": [{"id": "test-0-7", "group": "wo')
    assert main(arguments(folder)) == 0
    assert journal.read_bytes().startswith(before)
    assert untimed(folder) == untimed(run)


def test_another_runs_folder_is_refused_and_left_alone(run, capsys):
    before = {file: file.read_bytes() for file in run.rglob("*.*")}
    for change in (["--seed", "1"], ["--keep", "0.25"], ["--batch-size", "4"], ["--dtype", "bfloat16"]):
        assert main([*arguments(run), *change]) == 2
        error = capsys.readouterr().err
        field = {"--seed": "seed", "--keep": "settings", "--batch-size": "batch_size", "--dtype": "dtype"}[change[0]]
        assert "--output" in error and f"its {field} is" in error
    assert {file: file.read_bytes() for file in run.rglob("*.*")} == before


def test_a_picture_that_cannot_be_read_is_recorded_and_the_run_goes_on(tmp_path, capsys):
    samples = embedded.benchmark(5)[:]
    lines = []
    for number, sample in enumerate(samples):
        sample.image.save(tmp_path / f"{number}.png")
        entry = {"image": f"{number}.png", "question": sample.question, "answer": sample.answer, "group": sample.group}
        lines.append(json.dumps(entry))
    whole = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "2.png").write_text("not a picture")
    (tmp_path / "3.png").unlink()
    (tmp_path / "questions.jsonl").write_text("\n".join(lines))
    folder = tmp_path / "run"
    command = ["eval", "--images", str(tmp_path), "--methods", "stride", "--keep", "0.25", "--batch-size", "2"]
    assert main([*command, "--output", str(folder)]) == 0
    written, _, results = read(folder)
    assert (results["questions"], [failure["id"] for failure in results["failed"]]) == (2, ["2", "3", "4"])
    failed = [s for s in written if s["error"]]
    assert [s["setting"] for s in failed] == [None] * 3
    assert all(f"{number}.png" in s["error"] for number, s in enumerate(failed, 1))
    assert {s["id"] for s in written if s["setting"] == "stride:keep=0.25"} == {"1", "5"}
    assert "3 of 5 questions could not be asked" in capsys.readouterr().err
