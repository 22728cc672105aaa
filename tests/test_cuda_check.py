"""`python -m vtc.cuda.check`: what becomes of its steps, what its exit status says, and that time is kept."""

import json
import sys
import time
from pathlib import Path

import pytest
import torch

from vtc.cuda import check
from vtc.cuda.check import Step
from vtc.eval.cli import build_parser

MEMCHECK = check.sanitizer_step("memcheck", {}).passes


def says(output: str, code: int | None = 0) -> check.Execute:
    return lambda step, seconds: (code, output)


def status(step: Step, run: check.Execute, left: float = 100.0) -> tuple[str, str]:
    outcome = check.run_step(step, left, run)
    return outcome["status"], outcome["detail"]


@pytest.mark.parametrize(
    ("code", "output", "passes", "wanted"),
    [
        (0, "", (), ("passed", "")),
        (0, "3 passed, 2 skipped in 1 s", (r"\d+ passed",), ("passed", "3 passed, 2 skipped in 1 s")),
        (0, "5 skipped in 1 s", (r"\d+ passed",), ("failed", "5 skipped in 1 s")),
        (1, "1 failed, 3 passed\n\n", (r"\d+ passed",), ("failed", "1 failed, 3 passed")),
        (-11, "", (), ("failed", "exit status -11")),
        (0, "2 passed\n======== ERROR SUMMARY: 0 errors", MEMCHECK, ("passed", "ERROR SUMMARY: 0 errors")),
        (9, "2 passed\n======== ERROR SUMMARY: 3 errors", MEMCHECK, ("failed", "ERROR SUMMARY: 3 errors")),
        (0, "2 passed\n======== ERROR SUMMARY: 10 errors", MEMCHECK, ("failed", "ERROR SUMMARY: 10 errors")),
        (0, "2 skipped\n======== ERROR SUMMARY: 0 errors", MEMCHECK, ("failed", "ERROR SUMMARY: 0 errors")),
        (None, "half", (), ("timed out", "after 30 s")),
    ],
)
def test_status(code: int | None, output: str, passes: tuple[str, ...], wanted: tuple[str, str]) -> None:
    assert status(Step("it", ["it"], 30, passes=passes), says(output, code)) == wanted


def test_what_did_not_pass_keeps_its_last_lines() -> None:
    output = "\n".join(map(str, range(100)))
    assert check.run_step(Step("it", ["it"], 30), 100, says(output, 1))["tail"] == output.split("\n")[-check.TAIL :]
    assert check.run_step(Step("it", ["it"], 30), 100, says(output))["tail"] == []


def test_a_step_gets_what_time_is_left() -> None:
    given: list[float] = []

    def run(step: Step, seconds: float) -> tuple[int, str]:
        given.append(seconds)
        return 0, ""

    assert status(Step("it", ["it"], 30), run, left=20)[0] == "passed"
    assert status(Step("it", ["it"], 30), run, left=40)[0] == "passed"
    assert status(Step("it", ["it"], 30), run, left=check.LEAST - 1) == ("skipped", "no time was left")
    assert given == [20, 30]


def test_steps_after_the_end_are_skipped(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    monkeypatch.setattr(check.time, "monotonic", lambda: now[0])

    def run(step: Step, seconds: float) -> tuple[int, str]:
        now[0] += 40
        return 0, ""

    outcomes = check.run_steps([Step(f"step {i}", ["it"], 50) for i in range(3)], 85, run)
    assert [outcome["status"] for outcome in outcomes] == ["passed", "passed", "skipped"]
    assert [outcome["seconds"] for outcome in outcomes] == [40, 40, 0]
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["passed", "passed", "skipped"]
    assert not check.passed(outcomes)  # what was not checked is not right
    assert check.passed(outcomes[:2])


@pytest.mark.parametrize(("correctness", "wanted"), [(True, False), (False, True)])
@pytest.mark.parametrize("code", [1, None])
def test_benchmarks_do_not_decide(correctness: bool, wanted: bool, code: int | None) -> None:
    step = Step("it", ["it"], 30, correctness=correctness)
    assert check.passed([check.run_step(step, 100, says("", code))]) is wanted


def test_a_missing_sanitizer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check.shutil, "which", lambda program: None)
    outcome = check.run_step(check.sanitizer_step("racecheck", {}), 100, says("not run", 1))
    assert outcome["status"] == "missing" and "no compute-sanitizer" in outcome["detail"]
    assert check.passed([outcome])


def test_a_step_reports_what_it_wrote(tmp_path: Path) -> None:
    step = check.bench_step("kernels", 30, tmp_path, {})
    assert step.report is not None and step.command[-1] == str(step.report) and not step.correctness
    assert check.run_step(step, 100, says(""))["report"] is None
    step.report.write_text('{"a": 1}')
    assert check.run_step(step, 100, says(""))["report"] == {"a": 1}


def test_commands_are_ended_with_all_that_they_started(tmp_path: Path) -> None:
    child = f"import time; time.sleep(3); open({str(tmp_path / 'late')!r}, 'w')"
    parent = f"import subprocess, sys; print('begun', flush=True); subprocess.run([sys.executable, '-c', {child!r}])"
    begun = time.monotonic()
    assert check.execute(Step("it", [sys.executable, "-c", parent], 1), 1.0) == (None, "begun\n")
    assert time.monotonic() - begun < 2.5
    time.sleep(3)
    assert not (tmp_path / "late").exists()


def test_commands_run_with_their_variables() -> None:
    command = [sys.executable, "-c", "import os, sys; print(os.environ['VTC_TEST_SEED']); sys.exit(4)"]
    assert check.execute(Step("it", command, 60, environment={"VTC_TEST_SEED": "17"}), 60) == (4, "17\n")


def test_all_steps_of_a_gpu(tmp_path: Path) -> None:
    """Fresh inputs and a fresh build in each of them; every file of tests is there; correctness comes first."""
    steps = check.gpu_steps(tmp_path, 17)
    assert len({step.name for step in steps}) == len(steps)
    assert len({step.report for step in steps if step.report}) == sum(not step.correctness for step in steps)
    for step in steps:
        assert step.environment["VTC_TEST_SEED"] == "17" and step.environment["XDG_CACHE_HOME"] == str(tmp_path)
        assert all(Path(part).exists() for part in step.command if part.endswith(".py"))
    for step in steps:
        if "bench" in step.command:  # the command line knows what is asked of it
            build_parser("bench").parse_args(step.command[step.command.index("bench") :])
    decisive = [step.correctness for step in steps]
    assert decisive == sorted(decisive, reverse=True) and steps[0].name == "build"


@pytest.mark.parametrize("right", [True, False])
def test_without_a_gpu(
    right: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code = f"print('2 passed'); raise SystemExit({int(not right)})"
    steps = [Step("tests", [sys.executable, "-c", code], 30, passes=(r"\d+ passed",))]
    monkeypatch.setattr(check, "cpu_steps", lambda seed: steps)
    file = tmp_path / "new" / "check.json"
    assert check.main(["--json", str(file), "--minutes", "1"]) == int(not right)
    assert capsys.readouterr().out.startswith("no GPU: ")
    report = json.loads(file.read_text())
    assert set(report) == set(check.Report.__annotations__)
    assert set(report["steps"][0]) == set(check.Outcome.__annotations__)
    assert report["device"] == "cpu" and report["passed"] is right
