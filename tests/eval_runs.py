"""`vtc` as a command: what it exits with, how it is interrupted, and what two runs have in common, all but times."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from vtc.eval.cli import main

TIMED = ("prefill_ms", "decoder_ms", "first_token_ms", "selection_ms", "prefill_speedup", "decoder_speedup",
         "decode_tokens_per_s", "peak_memory_bytes")  # fmt: skip


def untimed(folder: Path) -> tuple[str, dict]:
    """The samples, and the results without what a clock or the system's memory says."""
    results = json.loads((folder / "results.json").read_text())
    results["settings"] = [{key: row[key] for key in row if key not in TIMED} for row in results["settings"]]
    return (folder / "samples.jsonl").read_text(), results


def exit_code(arguments: list[str]) -> int | str | None:
    """What `vtc` exits with, be it by argparse or by itself."""
    try:
        return main(arguments)
    except SystemExit as stopped:
        return stopped.code


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that `make` fills in the first process of a test run that asks for it; tests leave it as it is."""
    root = factory.getbasetemp()
    folder = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / name
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            made = folder.with_suffix(".made")
            make(made)
            made.rename(folder)
    return folder


def two_tasks(output: Path, command: str = "eval") -> list[str]:
    """Arguments of a run of questions about pictures and about clips."""
    return [
        *(command, "--tasks", "images,video", "--methods", "random,divprune", "--keep", "8", "--limit", "2"),
        *("--batch-size", "1", "--max-new-tokens", "3", "--output", str(output)),
    ]


@contextlib.contextmanager
def interrupted(training: type) -> Iterator[None]:
    """Within it, a run of `training` is interrupted behind its first step."""
    learn, steps = training.learn, []

    def once(self):
        if steps:
            raise KeyboardInterrupt
        steps.append(1)
        return learn(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "learn", once)
        yield
