"""`vtc sweep`: the same files as `vtc eval`, in one process or on Ray, whatever happens to a worker."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from covering import REST
from eval_runs import two_tasks, untimed

from vtc.eval.cli import main
from vtc.eval.run import sweep


def compare(folder: Path, other: Path) -> None:
    for task in ("images", "video"):
        assert untimed(folder / task) == untimed(other / task)
    assert (folder / "summary.json").read_text() == (other / "summary.json").read_text()


def test_each_task_has_its_folder_and_the_summary_is_about_both(both_tasks):
    assert {each.name for each in both_tasks.iterdir()} == {"images", "video", "summary.json", "summary.md"}
    table = (both_tasks / "summary.md").read_text()
    assert "images exact_match" in table and "video exact_match" in table and "divprune:keep=8" in table


@REST
def test_a_sweep_in_one_process_is_an_eval(both_tasks, tmp_path):
    assert main(two_tasks(tmp_path / "run", "sweep")) == 0
    compare(tmp_path / "run", both_tasks)


@REST
def test_on_ray_a_worker_that_is_killed_loses_nothing(both_tasks, tmp_path, monkeypatch):
    pytest.importorskip("ray")
    killed = []
    run = sweep.RayWorkers.__enter__

    def kill_one(self):
        import ray

        entered = run(self)
        pids = ray.get([worker.__ray_call__.remote(lambda _: os.getpid()) for worker in self._workers])
        journal = tmp_path / "run" / "images" / "journal-0.jsonl"

        def soon() -> None:
            deadline = time.monotonic() + 120
            while not (journal.exists() and b"\n" in journal.read_bytes()) and time.monotonic() < deadline:
                time.sleep(0.01)
            os.kill(pids[0], signal.SIGKILL)
            killed.append(pids[0])

        threading.Thread(target=soon, daemon=True).start()
        return entered

    monkeypatch.setattr(sweep.RayWorkers, "__enter__", kill_one)
    assert main([*two_tasks(tmp_path / "run", "sweep"), "--ray", "--workers", "2"]) == 0
    assert len(killed) == 1
    compare(tmp_path / "run", both_tasks)


@REST
def test_what_a_worker_refuses_is_a_sentence(tmp_path, capsys):
    pytest.importorskip("ray")
    command = ["sweep", "--ray", "--workers", "1", "--methods", "no_such_method", "--output", str(tmp_path / "run")]
    assert main(command) == 2
    assert "no_such_method" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@REST
def test_a_setting_that_the_model_refuses_is_told_before_a_folder_is_made(tmp_path, capsys):
    pytest.importorskip("ray")
    command = ["sweep", "--ray", "--workers", "1", "--compress", "fastv:layer=99", "--methods", "none"]
    assert main([*command, "--output", str(tmp_path / "run")]) == 2
    assert "fastv" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("option", [["--workers", "2"], ["--ray-address", "auto"]])
def test_where_it_runs_is_said_with_ray_only(tmp_path, capsys, option):
    assert main([*two_tasks(tmp_path / "run", "sweep"), *option]) == 2
    assert option[0] in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
