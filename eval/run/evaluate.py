"""`vtc eval`: accuracy, time, memory and FLOPs of methods at several budgets, resumable at any point.

The output folder gets `config.json` (what tells this run from others), a `journal` for each process (one line a batch,
on the disk before the next batch starts) and, made of these alone, `samples.jsonl` and `batches.jsonl` (schemas in
`vtc.eval.results.records`), `results.json` (schema in `vtc.eval.results.results`), `results.md` and `figure.png`; of
videos also `frames.png`, the tokens of each frame; and in `flips`, pictures of what was kept where that changed an
answer. With several tasks each has such a folder inside, and `summary.json` and `summary.md` are about all.

Killed at any point, the same command goes on behind the last batch that is done. All settings see the same questions in
the same batches; `random` and other methods with a `seed` get `seed` + number of the batch.

`accelerate launch -m vtc.eval …` shares the batches out among processes, and gives the same results.

`--tasks` takes the bundled benchmarks, "images" and "video" (each has a bundled model), and lmms-eval's tasks by name
(`vtc tasks` lists them), a YAML file of one's own, or what `--include_path` adds.

`--tokens` compares at equal equivalent tokens: for each method the `keep` is solved for, or calibrated on up to 32
questions, of the bundled benchmark's training split or the first of the list (`vtc.eval.run.equal_tokens`).
"""

import argparse
import time
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, get_args

from vtc.eval.cli.arguments import (
    add_model_arguments,
    add_setting_arguments,
    add_task_arguments,
    not_negative,
    positive,
    say,
)
from vtc.eval.cli.errors import InputError
from vtc.eval.cli.importing import importing
from vtc.method.base import Positions

if TYPE_CHECKING:
    from vtc.eval.results.folder import RunFolder
    from vtc.eval.results.records import Line
    from vtc.eval.run.journal import Journal
    from vtc.eval.run.progress import Progress
    from vtc.eval.run.work import Work
    from vtc.eval.tasks.task import Task

#: By what is shown: videos look at frames as well.
METHODS = {
    "images": "none,random,stride,pool,divprune,hiprune,kcenter,fastv,transprune",
    "video": "none,random,stride,frame_stride,pool,divprune,kcenter,evs,holitom,fastv",
}
KEEP = "0.5,0.25,0.125,0.0625"

#: Seconds between looks at what other processes have done, and until one that does not begin is given up.
_LOOK, _PATIENCE = 0.5, 600.0


class Workers(Protocol):
    """What does batches; `Here` is one."""

    def check(self, task: "Task") -> None:
        """Try every setting, before a folder is made.

        Raises:
            InputError: a setting can't work with the model.
        """
        ...

    def lines(self, task: "Task", batches: Iterable[int]) -> "Iterable[Line]":
        """Do batches of a task, in any order."""
        ...


class Here:
    """Does batches in this process."""

    def __init__(self, work: "Work"):
        self._work = work

    def check(self, task: "Task") -> None:
        """Try every setting on this process's model."""
        self._work.runner(task.name)

    def lines(self, task: "Task", batches: Iterable[int]) -> "Iterable[Line]":
        """One batch after another."""
        for batch in batches:
            yield self._work.run(task.name, batch)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `vtc eval`."""
    add_model_arguments(parser)
    parser.add_argument(
        "--device-map", help="such as auto: shares the model out over devices; --device is not looked at"
    )
    parser.add_argument("--min-pixels", type=positive, help="of a picture, for processors that know it (Qwen-VL)")
    parser.add_argument("--max-pixels", type=positive, help="of a picture, likewise")
    add_setting_arguments(parser, METHODS, KEEP, tokens=True)
    parser.add_argument(
        "--positions",
        type=numberings,
        default=[],
        help="packed, original or packed,original: runs every selector with each (default: as its spec says, packed)",
    )
    parser.add_argument(
        "--tasks",
        type=names_or_files,
        default="images",
        help="images or video (bundled), names of tasks (`vtc tasks` lists them) or YAML files, separated by commas",
    )
    add_task_arguments(parser)
    parser.add_argument(
        "--limit", type=positive, help="number of questions (default: 270 of the bundled ones, else all)"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for the results; resumes what is in it")
    parser.add_argument("--batch-size", type=positive, default=8, help="questions at once")
    parser.add_argument("--max-new-tokens", type=positive, help="longest answer (default: what the task says)")
    parser.add_argument("--split", default="test", help="of the bundled benchmark: train, validation, test")
    parser.add_argument("--seed", type=not_negative, default=0, help="of the bundled benchmark")
    for kind in ("image", "video"):
        parser.add_argument(
            f"--{kind}s",
            type=Path,
            metavar="FILE",
            help=f'instead of the bundled benchmark: JSONL of {{"{kind}": path, "question", "answer", "group"?, "id"?}}'
            ", or a folder that holds it as questions.jsonl",
        )
    parser.add_argument(
        "--frames",
        type=positive,
        default=8,
        help="of each video, at even distances, of shorter ones frames are repeated; of the bundled clips too",
    )


def names_or_files(text: str) -> list[str]:
    """Names of tasks, patterns such as mv*, or files, separated by commas."""
    found = [part.strip() for part in text.split(",")]
    if not all(found) or len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"{text!r} has an empty name or one twice; write e.g. gqa,pope")
    return found


def numberings(text: str) -> list[str]:
    """Ways to number survivors, separated by commas."""
    found = [part.strip() for part in text.split(",")]
    if unknown := [each for each in found if each not in get_args(Positions)]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is neither packed nor original; write e.g. packed,original")
    return found


def main(args: argparse.Namespace) -> None:
    """Run, or go on with a run, and report.

    Raises:
        InputError: an argument can't be used, or lines of the run could not be written.
    """
    check_packages("eval")
    with importing():
        from vtc.eval.run.processes import this_process
        from vtc.eval.run.work import Work

    work = Work(args, this_process())
    evaluate(work, Here(work))


def check_packages(command: str) -> None:
    """Refuse to begin what can't be ended.

    Raises:
        InputError: a package of `vtc[eval]` is missing.
    """
    for package in ("matplotlib", "tqdm"):
        if find_spec(package) is None:
            raise InputError(f"vtc {command} needs {package}, which is not installed; pip install 'vtc[eval]'")


def evaluate(work: "Work", workers: Workers) -> None:
    """Do all tasks, each in its folder, and report.

    Raises:
        InputError: a folder is another run's, a setting can't work, or lines could not be written.
    """
    from vtc.eval.results.folder import RunFolder
    from vtc.eval.run.outcome import report, summarise

    tasks, process = list(work.tasks.values()), work.process
    if process.rank:
        for task in tasks:
            _help(work, task, workers)
        return
    for task in tasks:  # all are looked at before the first is begun
        RunFolder.check(work.folder(task), work.config(task))
    done, lost = [], []
    for task in tasks:
        folder, journal, lines = _do(work, task, workers)
        try:
            built = report(folder, work.settings(task), task, lines)
            done.append(built)
        finally:
            journal.close()
            folder.close()
        if journal.lost:
            lost.append(f"{len(journal.lost)} of {len(lines)} batches in {str(folder.path)!r}")
    if len(tasks) > 1:
        summarise(work.args.output, done)
    if lost:
        raise InputError(
            f"argument --output: {', '.join(lost)} could not be written and are lost; the tables above count them; "
            "make room, and the same command asks just these again"
        )


def _do(work: "Work", task: "Task", workers: Workers) -> "tuple[RunFolder, Journal, list[Line]]":
    """Do what is not done yet of a task, with the other processes; returns all its lines."""
    from vtc.eval.results.folder import CONFIG, RunFolder
    from vtc.eval.run import journal as journals
    from vtc.eval.run.progress import Progress

    path, count = work.folder(task), len(task.batches(work.args.batch_size))
    resumed = (path / CONFIG).exists()
    lines = journals.read(path) if resumed else {}
    if len(lines) < count:
        workers.check(task)
    folder = RunFolder.open(path, work.config(task))
    journal = journals.Journal(path)
    if 0 < len(lines) < count:
        say(f"vtc eval: {len(lines)} of {count} batches are in {str(path)!r} already")
    mine = [batch for batch in range(count) if batch not in lines and work.process.does(batch)]
    note = f"{len(work.settings(task))} settings"
    note += f", process 1 of {work.process.world}" if work.process.world > 1 else ""
    _append(workers.lines(task, mine), journal, Progress(len(lines) + len(mine), len(lines)), note)
    while any(journals.busy(path, rank) for rank in range(1, work.process.world)):
        time.sleep(_LOOK)
    left = sorted(set(range(count)) - set(_done(journal)))
    _append(workers.lines(task, left), journal, Progress(count, count - len(left)), note)
    return folder, journal, [line for _, line in sorted(_done(journal).items())]


def _done(journal: "Journal") -> "dict[int, Line]":
    """All lines of the run, by batch: on the disk, or held because they could not be written."""
    from vtc.eval.run.journal import read

    return {**{line["batch"]: line for line in journal.lost}, **read(journal.path.parent)}


def _append(lines: "Iterable[Line]", journal: "Journal", progress: "Progress", note: str) -> None:
    for line in lines:
        journal.append(line)
        progress.step(note)
    progress.close()


def _help(work: "Work", task: "Task", workers: Workers) -> None:
    """Do this process's share of a task that the first process reports.

    What the first process refuses, this one refuses too: else it would wait for what doesn't come.

    Raises:
        InputError: the folder is another run's or can't be written, a setting can't work, or the first process does not
            begin.
    """
    from vtc.eval.results.folder import CONFIG, RunFolder, made
    from vtc.eval.run import journal as journals

    path = work.folder(task)
    if not (path / CONFIG).exists() and not work.args.tokens:  # with --tokens the first process finds the settings
        RunFolder.check(path, work.config(task))
        workers.check(task)
        made(path)
    began = time.monotonic()
    while not (path / CONFIG).exists():
        if time.monotonic() - began > _PATIENCE:
            raise InputError(
                f"argument --output: the first process made no {CONFIG} in {str(path)!r}; see what it says"
            )
        time.sleep(_LOOK)
    RunFolder.check(path, work.config(task))
    journal = journals.Journal(path, work.process.rank)
    try:
        done = journals.read(path)
        count = len(task.batches(work.args.batch_size))
        for line in workers.lines(task, [b for b in range(count) if b not in done and work.process.does(b)]):
            journal.append(line)
    finally:
        journal.close()
