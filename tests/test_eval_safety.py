"""Nothing is lost: kills at any moment, a full disk, a folder that can't be written, questions that make it raise."""

import json
import multiprocessing
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from covering import FIRST, REST
from eval_runs import untimed

from vtc.eval import embedded
from vtc.eval.cli import main
from vtc.eval.run import work
from vtc.eval.run.journal import Journal, read
from vtc.eval.tasks.task import Question, Scored, Task

pytestmark = FIRST
QUESTIONS = 4


def arguments(output: Path, questions: int = QUESTIONS, batch: int = 1) -> list[str]:
    return [
        *("eval", "--methods", "random,divprune", "--keep", "16", "--limit", str(questions)),
        *("--batch-size", str(batch), "--max-new-tokens", "3", "--output", str(output)),
    ]


@pytest.mark.parametrize(("kills", "folders"), [(4, 1), pytest.param(20, 4, marks=REST)])
def test_killed_at_random_moments_it_ends_the_same(tmp_path, kills, folders):
    """Children are forked off a server that has imported all, so that most of their time is the run's own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["vtc.eval.cli", "vtc.eval.run.work", "vtc.eval.run.outcome", "vtc.eval.embedded.samples"]
    )

    def child(folder: Path) -> multiprocessing.Process:
        process = context.Process(target=main, args=(arguments(folder),))
        process.start()
        return process

    imports = context.Process(target=int)  # the server starts, and imports
    imports.start()
    imports.join()
    began = time.monotonic()
    whole = child(tmp_path / "whole")
    whole.join()
    lasts = time.monotonic() - began
    assert whole.exitcode == 0
    moments, killed, unfinished = random.Random(0), 0, set()
    for number in range(kills):
        # Each is killed several times; one that came to an end begins anew.
        folder = tmp_path / f"killed-{number % folders}"
        if (folder / "results.md").exists():
            shutil.rmtree(folder)
        process = child(folder)
        time.sleep(lasts * moments.random())
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        unfinished.add(len(read(folder)) if folder.exists() else -1)
    assert killed >= kills // 2 and len(unfinished) > 1, "the kills all came at the same point"
    for number in range(folders):
        last = child(tmp_path / f"killed-{number}")
        last.join()
        assert last.exitcode == 0
        assert untimed(tmp_path / f"killed-{number}") == untimed(tmp_path / "whole")


def test_on_a_full_disk_the_run_goes_on_and_tells_what_is_lost(tmp_path, capsys):
    """A limit on the size of files: what is longer is written in part, then refused, as by a disk that is full."""
    assert main(arguments(tmp_path / "whole")) == 0
    room = len((tmp_path / "whole" / "journal-0.jsonl").read_bytes()) // 2
    folder, before = tmp_path / "full", resource.getrlimit(resource.RLIMIT_FSIZE)
    capsys.readouterr()
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        code = main(arguments(folder))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    said = capsys.readouterr()
    kept = len(read(folder))
    assert code == 2 and 0 < kept < QUESTIONS
    assert f"{QUESTIONS - kept} of {QUESTIONS} batches" in said.err and "could not be written" in said.err
    assert f"{QUESTIONS} questions of" in said.out and "divprune:keep=16" in said.out, (
        "the tables count what is lost on the disk"
    )
    assert main(arguments(folder)) == 0
    assert f"{kept} of {QUESTIONS} batches are in" in capsys.readouterr().err
    assert untimed(folder) == untimed(tmp_path / "whole")


def test_what_could_not_be_written_is_written_when_there_is_room_again(tmp_path, monkeypatch, capsys):
    from vtc.eval.run import journal as module

    lines = [{"batch": batch, "samples": [], "rounds": []} for batch in range(3)]
    journal, write = Journal(tmp_path), module._write

    def torn(file: int, content: bytes, offset: int) -> None:
        write(file, content[:7], offset)
        raise OSError(28, "No space left on device")

    journal.append(lines[0])
    monkeypatch.setattr(module, "_write", torn)
    journal.append(lines[1])
    assert [line["batch"] for line in journal.lost] == [1] and list(read(tmp_path)) == [0]
    assert "No space left on device" in capsys.readouterr().err
    monkeypatch.setattr(module, "_write", write)
    journal.append(lines[2])
    assert not journal.lost and list(read(tmp_path).values()) == lines
    journal.close()


@pytest.mark.parametrize("inside", ["config.json", "x"])
def test_an_output_that_cannot_be_written_is_refused_before_anything_runs(tmp_path, capsys, inside):
    (tmp_path / "file").write_text("kept")
    assert main(arguments(tmp_path / "file" / inside)) == 2
    assert "argument --output" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "kept"


def task_of(score: Callable[[int, str], Scored], shown: Callable[[int], list] | None = None) -> Task:
    samples = embedded.benchmark(4)[:]

    def get(index: int) -> Question:
        sample = samples[index]
        look = (lambda: shown(index)) if shown else lambda: [sample.image]
        return Question(sample.id, "all", sample.question, sample.answer, look, lambda said: score(index, said))

    return Task("images", "of the test", 4, get)


def run(task: Task, folder: Path, monkeypatch, batch: int = 4) -> tuple[list[dict], dict]:
    monkeypatch.setattr(work, "bundled_task", lambda *_: task)
    assert main(arguments(folder, batch=batch)) == 0
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    return samples, json.loads((folder / "results.json").read_text())


def fine(index: int, said: str) -> Scored:
    return Scored({"exact_match": 1.0}, 1.0)


def test_a_question_at_which_the_model_raises_is_found_and_recorded(tmp_path, monkeypatch, capsys):
    from vtc.eval.models import Loaded

    inputs, poisoned = Loaded.inputs, embedded.benchmark(4)[2].question

    def raising(self, shown, questions):
        if poisoned in questions:
            raise RuntimeError("shapes do not fit")
        return inputs(self, shown, questions)

    monkeypatch.setattr(Loaded, "inputs", raising)
    samples, results = run(task_of(fine), tmp_path / "run", monkeypatch)
    (failed,) = [sample for sample in samples if sample["error"]]
    assert failed["question"] == poisoned and failed["error"] == "RuntimeError: shapes do not fit"
    assert results["questions"] == 3 and [each["id"] for each in results["failed"]] == [failed["id"]]
    assert len(samples) == 3 * 3 + 1
    assert "1 of 4 questions could not be asked" in capsys.readouterr().err
    assert "1 left out" in (tmp_path / "run" / "results.md").read_text()


def test_a_setting_that_raises_at_one_question_leaves_it_out_for_all(tmp_path, monkeypatch):
    from vtc.selectors.divprune import DivPrune

    select, calls = DivPrune.select, []

    def raising(self, *args, **kwargs):
        calls.append(args)
        if len(calls) in (2, 3, 4):  # after the warm-up: the whole batch, its first half, the first question
            raise ValueError("nothing to choose from")
        return select(self, *args, **kwargs)

    monkeypatch.setattr(DivPrune, "select", raising)
    samples, results = run(task_of(fine), tmp_path / "run", monkeypatch)
    (failed,) = [sample for sample in samples if sample["error"]]
    assert (
        failed["setting"] is None and "divprune:keep=16" in failed["error"] and "nothing to choose" in failed["error"]
    )
    assert [len([s for s in samples if s["setting"] == row["setting"]]) for row in results["settings"]] == [3, 3, 3]


def test_an_answer_that_cannot_be_scored_is_recorded(tmp_path, monkeypatch):
    def raising(index: int, said: str) -> Scored:
        return fine(index, said) if index else Scored({}, 1 / index)

    samples, results = run(task_of(raising), tmp_path / "run", monkeypatch)
    (failed,) = [sample for sample in samples if sample["error"]]
    assert "can't be scored" in failed["error"] and "ZeroDivisionError" in failed["error"]
    assert results["questions"] == 3


def test_a_task_that_raises_at_a_picture_is_recorded(tmp_path, monkeypatch):
    def shown(index: int) -> list:
        return [embedded.benchmark(4)[index].image] if index != 1 else [][index]

    samples, results = run(task_of(fine, shown), tmp_path / "run", monkeypatch, batch=2)
    assert [sample["error"] for sample in samples if sample["error"]] == ["IndexError: list index out of range"]
    assert results["questions"] == 3


def test_unparsed_answers_are_counted_not_guessed(tmp_path, monkeypatch):
    def score(index: int, said: str) -> Scored:
        return Scored({"exact_match": 0.0}, 0.0, parsed=index != 2)

    _, results = run(task_of(score), tmp_path / "run", monkeypatch)
    assert [row["unparsed"] for row in results["settings"]] == [1, 1, 1]
