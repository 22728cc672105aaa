"""`vtc sweep`: methods × budgets × tasks, batch by batch, on one machine or on a Ray cluster.

It takes what `vtc eval` takes, and leaves the same files behind. With --ray the batches are done by workers, each with
a model of its own; the lines are written here, where the command was given. So a worker may be killed at any moment:
Ray starts another, which does the batch anew, and nothing that was done is lost.
"""

import argparse
import copy
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vtc.eval.cli.arguments import positive
from vtc.eval.cli.errors import InputError
from vtc.eval.results.records import Line
from vtc.eval.run import evaluate
from vtc.eval.tasks.task import Task

#: So often a batch is begun anew whose worker dies.
RETRIES = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `vtc sweep`: those of `vtc eval`, and where it runs."""
    evaluate.add_arguments(parser)
    parser.add_argument("--ray", action="store_true", help="on Ray: pip install 'vtc[ray]'")
    parser.add_argument(
        "--ray-address", help="of a cluster that runs (auto: the one of this machine); without it one is started here"
    )
    parser.add_argument(
        "--workers", type=positive, help="processes on Ray (default: one for each GPU, on CPUs one for each --threads)"
    )


def main(args: argparse.Namespace) -> None:
    """Run, or go on with a run, and report.

    Raises:
        InputError: an argument can't be used, Ray is missing, or a worker dies again and again.
    """
    from vtc.eval.run.work import Work

    evaluate.check_packages("sweep")
    for name in ("ray_address", "workers"):
        if getattr(args, name) is not None and not args.ray:
            raise InputError(
                f"argument --{name.replace('_', '-')}: {getattr(args, name)!r} is for --ray; give both or none"
            )
    work = Work(args)
    if not args.ray:
        evaluate.evaluate(work, evaluate.Here(work))
        return
    if find_spec("ray") is None:
        raise InputError("argument --ray: Ray is not installed; pip install 'vtc[ray]', or leave --ray out")
    with RayWorkers(args) as workers:
        evaluate.evaluate(work, workers)


class Worker:
    """What a process of the cluster does: batches, with a model that is loaded once."""

    def __init__(self, args: argparse.Namespace):
        from vtc.eval.run.work import Work

        self._work = Work(args)

    def check(self, task: str) -> None:
        """Try every setting of a task on the model."""
        self._work.runner(task)

    def run(self, task: str, batch: int) -> Line:
        """Do a batch of a task."""
        return self._work.run(task, batch)


class RayWorkers:
    """Does batches on Ray, within a `with` block.

    Args:
        args: of `vtc sweep`.
    """

    def __init__(self, args: argparse.Namespace):
        self._args = absolute(args)
        self._workers: list[Any] = []

    def __enter__(self) -> "RayWorkers":
        import ray

        args = self._args
        try:
            ray.init(
                address=args.ray_address,
                include_dashboard=False if args.ray_address is None else None,
                log_to_driver=False,
            )
        except (ConnectionError, ValueError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise InputError(f"argument --ray-address: {args.ray_address!r} can't be used ({reason})") from None
        gpus, cpus = int(args.device.startswith("cuda")), args.threads or 1
        room = ray.cluster_resources()
        count = args.workers or max(1, int(room.get("GPU", 0)) if gpus else int(room.get("CPU", 1)) // cpus)
        options = {"num_gpus": gpus, "num_cpus": cpus, "max_restarts": -1, "max_task_retries": RETRIES}
        self._workers = [ray.remote(Worker).options(**options).remote(args) for _ in range(count)]
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        ray.shutdown()

    def check(self, task: Task) -> None:
        """Let one worker try every setting; all are alike.

        Raises:
            InputError: what the worker says.
        """
        self._told(self._workers[0].check.remote(task.name), f"the settings of {task.name}")

    def _told(self, done: Any, what: str) -> Any:
        """What a worker brings back.

        Raises:
            InputError: what the worker says, or that workers died at it again and again.
        """
        import ray

        try:
            return ray.get(done)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, InputError):
                raise InputError(str(error.cause)) from None
            raise
        except ray.exceptions.RayActorError as error:
            reason = str(error).strip().partition("\n")[0]
            raise InputError(
                f"{what} ended {RETRIES + 1} workers ({reason}); what was done is kept, the same command goes on"
            ) from None

    def lines(self, task: Task, batches: Iterable[int]) -> Iterator[Line]:
        """Batches as they are done, each worker at one at a time.

        Raises:
            InputError: what a worker says, or that workers died at one batch again and again.
        """
        import ray

        left = iter(batches)
        doing: dict[Any, tuple[Any, int]] = {}
        for worker in self._workers:
            self._next(worker, left, doing, task)
        while doing:
            (done,), _ = ray.wait(list(doing))
            worker, batch = doing.pop(done)
            line = self._told(done, f"batch {batch} of {task.name}")
            self._next(worker, left, doing, task)
            yield line

    def _next(self, worker: Any, left: Iterator[int], doing: dict[Any, tuple[Any, int]], task: Task) -> None:
        batch = next(left, None)
        if batch is not None:
            doing[worker.run.remote(task.name, batch)] = worker, batch


def absolute(args: argparse.Namespace) -> argparse.Namespace:
    """The same arguments for processes that run in other folders."""
    made = copy.copy(args)
    for name, value in vars(args).items():
        if isinstance(value, Path):
            setattr(made, name, value.absolute())
        elif isinstance(value, list) and value and all(isinstance(each, Path) for each in value):
            setattr(made, name, [each.absolute() for each in value])
    if Path(args.model).is_dir():
        made.model = str(Path(args.model).absolute())
    made.tasks = [str(Path(name).absolute()) if Path(name).is_file() else name for name in args.tasks]
    return made
