"""Several processes of one launch share the batches out and leave the files of a single one."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from covering import REST
from eval_runs import untimed

from vtc.eval.cli import main
from vtc.eval.cli.errors import InputError
from vtc.eval.run import evaluate
from vtc.eval.run.processes import Process, this_process


def arguments(output: Path) -> list[str]:
    return [
        *("--methods", "random,divprune", "--keep", "16", "--limit", "6", "--batch-size", "1"),
        *("--max-new-tokens", "3", "--output", str(output)),
    ]


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    before = torch.get_num_threads()
    folder = tmp_path_factory.mktemp("alone") / "run"
    assert main(["eval", *arguments(folder)]) == 0
    torch.set_num_threads(before)
    return folder


@REST
def test_accelerate_with_two_processes_gives_what_one_gives(alone, tmp_path):
    folder = tmp_path / "run"
    options = "--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no"
    launch = [sys.executable, "-m", "accelerate.commands.launch", *options.split(), "--main_process_port", "0"]
    done = subprocess.run([*launch, "-m", "vtc.eval", *arguments(folder)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    shares = [len((folder / f"journal-{rank}.jsonl").read_text().splitlines()) for rank in range(2)]
    assert min(shares) >= 1 and sum(shares) >= 6
    assert untimed(folder) == untimed(alone)


@REST
def test_what_a_process_left_undone_the_first_one_does(alone, tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "vtc.eval", *arguments(folder)]
    started = {}
    for rank in (1, 0):
        environment = {**os.environ, "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
        started[rank] = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    journal, deadline = folder / "journal-1.jsonl", time.monotonic() + 120
    while not journal.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(started[1].pid, signal.SIGKILL)
    started[1].communicate()
    _, error = started[0].communicate(timeout=120)
    assert started[0].returncode == 0, error.decode()[-3000:]
    assert journal.read_bytes().count(b"\n") < 3
    assert untimed(folder) == untimed(alone)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--methods", "divprun"], "did you mean 'divprune'"),
        (["--compress", "fastv:layer=99"], "fastv:layer=99"),
        (["--output", "{folder}/file/run"], "can't be written"),
        (["--output", "{folder}/other"], "holds 'notes.txt'"),
    ],
)
def test_no_process_waits_for_one_that_refuses(tmp_path, monkeypatch, capsys, given, said):
    """What the first process refuses, the second refuses too, by itself: `make run` must not hang on a typo."""
    (tmp_path / "file").write_text("")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("")
    monkeypatch.setattr(evaluate, "_PATIENCE", 0.0)  # what would wait says instead that there is no config.json
    monkeypatch.setenv("WORLD_SIZE", "2")
    given = [part.format(folder=tmp_path) for part in given]
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        assert main(["eval", *arguments(tmp_path / "run"), *given]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_shares_are_whole_and_apart():
    shares = [{batch for batch in range(7) if Process(rank, 3).does(batch)} for rank in range(3)]
    assert set.union(*shares) == set(range(7)) and sum(map(len, shares)) == 7
    assert Process(2, 4, 1).device("cuda") == "cuda:1" and Process(2, 4, 1).device("cpu") == "cpu"
    assert Process().device("cuda") == "cuda"


def test_without_a_launcher_there_is_one_process(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert this_process() == Process(0, 1, 0)
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="RANK='2'"):
        this_process()


def test_a_launch_writes_no_times_into_samples(alone):
    for line in (alone / "samples.jsonl").read_text().splitlines():
        assert not any("ms" in key for key in json.loads(line))
