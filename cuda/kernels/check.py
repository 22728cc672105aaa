"""All that a GPU has to show, in one call: the kernels are built, checked, sanitized and timed.

`python -m vtc.cuda.check --json FILE` runs one step after another, prints a line for each, and writes everything down.
Inputs are drawn anew in every call. Without a GPU the same tests run on the torch references and on the emulated
kernels. The exit status is 1 unless all that is about correctness passed; compute-sanitizer may be missing.
"""

import argparse
import datetime
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import torch

from vtc.cuda import outputs

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
#: With less time left than that, in seconds, a step is not begun.
LEAST = 10
#: Lines of a step's output that are kept.
TAIL = 40
_BUILD = "import sys; from vtc.ops import cuda; sys.exit(cuda.load() is None)"
#: Shapes of real models, as `vtc bench prefill --shape` knows them.
SHAPES = ("llava-1.5-7b", "llava-next-7b", "qwen2.5-vl-7b", "llava-onevision-7b-video")


@dataclass(frozen=True)
class Step:
    """A command and what its output has to say.

    Attributes:
        name: of the step.
        command: the program and its arguments.
        limit: seconds after which it is ended.
        correctness: whether the exit status depends on it.
        passes: patterns of lines that its output has to have; the last one's line is shown.
        report: the JSON file that it writes.
        missing: why it can't be run; None: it can.
        environment: variables beside those of this process.
    """

    name: str
    command: Sequence[str]
    limit: float
    correctness: bool = True
    passes: tuple[str, ...] = ()
    report: Path | None = None
    missing: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


class Outcome(TypedDict):
    """What became of a step.

    Attributes:
        name: of the step.
        command: as it was run.
        correctness: whether the exit status depends on it.
        status: "passed", "failed", "timed out", "skipped" (no time was left) or "missing" (it can't be run here).
        detail: the line that says so.
        seconds: that it took.
        tail: the last lines of its output, unless it passed.
        report: what it wrote as JSON, or None.
    """

    name: str
    command: list[str]
    correctness: bool
    status: str
    detail: str
    seconds: float
    tail: list[str]
    report: Any


class Report(TypedDict):
    """What `--json` writes.

    Attributes:
        date: when the call began, UTC.
        device: the GPU's name, or "cpu".
        torch, cuda: versions; cuda is None for a torch without it.
        seed: what the tests' random inputs were drawn from (VTC_TEST_SEED).
        passed: whether all that is about correctness passed.
        steps: in the order in which they ran.
    """

    date: str
    device: str
    torch: str
    cuda: str | None
    seed: int
    passed: bool
    steps: list[Outcome]


#: Runs a step for so many seconds; its exit status (None: it was ended) and what it printed.
Execute = Callable[[Step, float], tuple[int | None, str]]


# ---------------------------------------------------------------- running


def execute(step: Step, seconds: float) -> tuple[int | None, str]:
    """Run the step's command with everything that it starts, for at most so many seconds."""
    process = subprocess.Popen(
        step.command,
        cwd=ROOT,
        env=os.environ | step.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=seconds)
        return process.returncode, output
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        return None, output


def run_step(step: Step, left: float, run: Execute) -> Outcome:
    """Run one step with so many seconds left for all."""
    status, detail, lines, begun = "missing", step.missing or "", [], time.monotonic()
    if step.missing is None and left < LEAST:
        status, detail = "skipped", "no time was left"
    elif step.missing is None:
        limit = min(step.limit, left)
        code, output = run(step, limit)
        lines = output.splitlines()
        status, detail = ("timed out", f"after {limit:.0f} s") if code is None else judge(step, code, lines)
    return Outcome(
        name=step.name,
        command=list(step.command),
        correctness=step.correctness,
        status=status,
        detail=detail,
        seconds=time.monotonic() - begun,
        tail=[] if status == "passed" else lines[-TAIL:],
        report=json.loads(step.report.read_text()) if step.report is not None and step.report.exists() else None,
    )


def judge(step: Step, code: int, lines: Sequence[str]) -> tuple[str, str]:
    """Status and detail of a step that ended by itself, by its exit status and its output."""
    found = [[line for line in lines if re.search(pattern, line)] for pattern in step.passes]
    if code == 0 and all(found):
        return "passed", found[-1][-1].strip("= ") if found else ""
    said = [line for line in lines if line.strip()]
    return "failed", said[-1].strip("= ") if said else f"exit status {code}"


def run_steps(steps: Iterable[Step], seconds: float, run: Execute = execute) -> list[Outcome]:
    """Run steps one after another, all within so many seconds; a line is printed for each."""
    ends, outcomes = time.monotonic() + seconds, []
    for step in steps:
        outcome = run_step(step, ends - time.monotonic(), run)
        print(f"{outcome['status']:9}  {step.name:32}  {outcome['seconds']:6.1f} s  {outcome['detail']}", flush=True)
        outcomes.append(outcome)
    return outcomes


def passed(outcomes: Iterable[Outcome]) -> bool:
    """Whether all that is about correctness passed; a sanitizer that is missing is told, and is no failure."""
    return all(outcome["status"] in ("passed", "missing") for outcome in outcomes if outcome["correctness"])


# ---------------------------------------------------------------- the steps


def pytest_step(file: str, limit: float, environment: Mapping[str, str], *options: str) -> Step:
    """The tests of one file; at least one has to run."""
    command = sys.executable, "-m", "pytest", "--tb=short", str(TESTS / file), *options
    return Step(" ".join((file, *options)), command, limit, passes=(r"\d+ passed",), environment=environment)


def sanitizer_step(tool: str, environment: Mapping[str, str]) -> Step:
    """Small cases under compute-sanitizer, which looks at this library's kernels alone."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    program = shutil.which("compute-sanitizer") or shutil.which(os.path.join(home, "bin", "compute-sanitizer"))
    tests = pytest_step("test_kernels.py", 90, environment, "-k", "cuda and smoke")
    options = ["--tool", tool, "--kernel-regex", "kns=vtc", "--target-processes", "all", "--error-exitcode", "9"]
    summary = r"ERROR SUMMARY: 0 errors" if tool == "memcheck" else r"RACECHECK SUMMARY: 0 hazards"
    return Step(
        name=tool,
        command=(program or "compute-sanitizer", *options, *tests.command),
        limit=tests.limit,
        passes=(*tests.passes, summary),
        missing=None if program else "no compute-sanitizer on PATH or in CUDA_HOME/bin",
        # Each tensor in an allocation of its own, so that what is written beside it is noticed.
        environment={**environment, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
    )


def bench_step(bench: str, limit: float, folder: Path, environment: Mapping[str, str], *options: str) -> Step:
    """`vtc bench` on the GPU, with a JSON report; `bench` says what, in the words of the command line."""
    report = folder / f"{bench.replace(' ', '-')}.json"
    given = *bench.split(), *options, "--device", "cuda", "--json", str(report)
    command = sys.executable, "-m", "vtc.eval.cli", "bench", *given
    return Step(f"bench {bench}", command, limit, correctness=False, report=report, environment=environment)


def gpu_steps(folder: Path, seed: int) -> list[Step]:
    """Build, correctness, sanitizers, benchmarks; `folder` takes the fresh build and the reports."""
    own = {"VTC_TEST_SEED": str(seed), "XDG_CACHE_HOME": str(folder)}
    prefill = "--methods", "divprune", "--keep", "0.25,0.125", "--rounds", "5"
    return [
        Step("build", (sys.executable, "-c", _BUILD), 240, environment=own),
        pytest_step("test_kernels.py", 180, own, "-k", "cuda"),
        pytest_step("test_kernels_gpu.py", 60, own),
        pytest_step("test_ops.py", 90, own),
        pytest_step("test_no_wait.py", 90, own),
        sanitizer_step("memcheck", own),
        sanitizer_step("racecheck", own),
        bench_step("kernels", 90, folder, own),
        bench_step("prefill --published", 150, folder, own, "--rounds", "5"),
        *(bench_step(f"prefill --shape {shape}", 90, folder, own, *prefill) for shape in SHAPES),
    ]


def cpu_steps(seed: int) -> list[Step]:
    """The same tests, on the torch references and the emulated kernels."""
    own = {"VTC_TEST_SEED": str(seed)}
    return [pytest_step(file, 300, own) for file in ("test_kernels.py", "test_ops.py", "test_no_wait.py")]


def main(argv: Sequence[str] | None = None) -> int:
    """Run all steps; 0 where everything about correctness passed."""
    parser = argparse.ArgumentParser(prog="python -m vtc.cuda.check", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything down there")
    parser.add_argument("--minutes", type=float, default=10.0, help="for all steps together (default: 10)")
    args = parser.parse_args(argv)
    began = datetime.datetime.now(datetime.UTC)
    seed = int(began.timestamp())
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, VTC_TEST_SEED={seed}")
    else:
        print(f"no GPU: the torch references and the emulated kernels are tested, VTC_TEST_SEED={seed}")
    with tempfile.TemporaryDirectory() as folder:
        steps = gpu_steps(Path(folder), seed) if on_gpu else cpu_steps(seed)
        outcomes = run_steps(steps, 60 * args.minutes)
    report = Report(
        date=began.isoformat(timespec="seconds"),
        device=torch.cuda.get_device_name() if on_gpu else "cpu",
        torch=torch.__version__,
        cuda=torch.version.cuda,
        seed=seed,
        passed=passed(outcomes),
        steps=outcomes,
    )
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0 if report["passed"] else 1


if __name__ == "__main__":
    sys.exit(outputs.run(main, "python -m vtc.cuda.check"))
