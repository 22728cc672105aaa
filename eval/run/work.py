"""What a run is about, made of its arguments: tasks, settings, the model, and what tells the run from others."""

import argparse
import functools
from pathlib import Path
from typing import Any

import torch

from vtc.eval import embedded, models
from vtc.eval.cli.arguments import EMBEDDED, budgets, method_names
from vtc.eval.cli.errors import InputError
from vtc.eval.cli.machine import check_device, set_threads
from vtc.eval.report.flips import FlipPictures
from vtc.eval.results.records import Line
from vtc.eval.results.settings import Setting, make_settings
from vtc.eval.run import memory
from vtc.eval.run.processes import Process
from vtc.eval.run.runner import Runner
from vtc.eval.tasks.benchmarks import TASKS, bundled_task, listed_task
from vtc.eval.tasks.task import Task

#: Questions of a bundled benchmark where --limit is not given.
LIMIT = 270


class Work:
    """The tasks of a run, and how each is done.

    Args:
        args: of `vtc eval`.
        process: that does it.

    Attributes:
        tasks: by name.

    Raises:
        InputError: an argument can't be used.
    """

    def __init__(self, args: argparse.Namespace, process: Process | None = None):
        self.args, self.process = args, process or Process()
        self.tasks = {task.name: task for task in self._tasks()}
        self._specs: dict[str, dict[str, Any]] = {}
        self._runners: dict[str, Runner] = {}
        self._loaded = functools.cache(self._load)
        self._weights = functools.cache(models.weights_hash)  # it reads every byte of them
        check_device(self.device)
        self._threads = set_threads(args.model, args.threads)

    @property
    def device(self) -> str:
        """Where this process's model goes."""
        return self.process.device(self.args.device)

    def _tasks(self) -> list[Task]:
        args = self.args
        if args.split not in embedded.SPLITS:
            raise InputError(f"argument --split: {args.split!r} is unknown; choose from {', '.join(embedded.SPLITS)}")
        for name, task in (("images", "images"), ("videos", "video")):
            if getattr(args, name) is not None and task not in args.tasks:
                raise InputError(
                    f"argument --{name}: {str(getattr(args, name))!r} is not for --tasks {','.join(args.tasks)}; leave "
                    "one out"
                )
        tasks = []
        for name in args.tasks:
            tasks += [self._asked(name)] if name in TASKS else self._from_yaml(name)
        return tasks

    def _asked(self, name: str, split: str | None = None, limit: int | None = None) -> Task:
        """A list that was given, or a bundled benchmark."""
        args, kind = self.args, TASKS[name]
        listed = args.images if kind == "image" else args.videos
        limit = limit or args.limit
        if listed is not None:
            return listed_task(listed, limit, kind, args.frames)
        seed = args.seed if split is None else 0
        return bundled_task(kind, limit or LIMIT, split or args.split, seed, args.frames)

    def _from_yaml(self, name: str) -> list[Task]:
        from vtc.eval.tasks.index import find_tasks
        from vtc.eval.tasks.yaml_task import load_task

        args = self.args
        given = {"data": args.data, "limit": args.limit, "include": args.include_path}
        found = find_tasks(name, args.include_path)
        return [load_task(each, **given, prompts=args.prompts, frames=args.frames) for each in found]

    def _load(self, kind: str) -> models.Loaded:
        args = self.args
        pixels = {name: value for name in ("min_pixels", "max_pixels") if (value := getattr(args, name)) is not None}
        return models.load(args.model, args.dtype, self.device, args.attn, kind, args.device_map, pixels, args.frames)

    def model_for(self, task: Task) -> models.Loaded:
        """The model that is asked: of the bundled ones that for what the task shows."""
        return self._loaded(task.kind if self.args.model == EMBEDDED else "image")

    def folder(self, task: Task) -> Path:
        """Where the task's results go: a folder of its own where there are several."""
        return self.args.output if len(self.tasks) == 1 else self.args.output / task.name

    def settings(self, task: Task) -> list[Setting]:
        """What is compared on the task."""
        args, keep = self.args, budgets(self.args)
        names = method_names(args, "video" if task.kind == "video" else "images")
        specs = self._equal_tokens(task, names)["specs"] if args.tokens else []
        return make_settings(names if keep else [], keep, [*args.compress, *specs], args.positions)

    def _equal_tokens(self, task: Task, names: list[str]) -> dict[str, Any]:
        """What --tokens asks for, and specs that meet it; those of the run in the folder, if it was asked the same."""
        from vtc.eval.run.equal_tokens import QUESTIONS, batches_of, specs_at, specs_before

        if task.name not in self._specs:
            asked = {"tokens": self.args.tokens, "methods": names, "specs": None}
            specs = specs_before(self.folder(task), asked)
            if specs is None:
                shown = self._asked(task.name, "train", QUESTIONS) if task.name in TASKS else task
                batches = batches_of(self.model_for(task), shown, self.args.batch_size)
                specs = specs_at(self.model_for(task).model, names, self.args.tokens, batches)
            self._specs[task.name] = {**asked, "specs": specs}
        return self._specs[task.name]

    def config(self, task: Task) -> dict[str, Any]:
        """What tells this run of the task from others."""
        args = self.args
        config = {
            "model": args.model,
            "weights": self._weights(args.model, task.kind),
            "task": task.name,
            "shows": task.kind,
            "benchmark": task.fingerprint,
            "questions": task.size,
            "metrics": [metric.name for metric in task.metrics],
            "seed": args.seed,
            "prompts": args.prompts,
            "frames": args.frames if task.kind == "video" else None,
            "settings": [setting.name for setting in self.settings(task)],
            "batch_size": args.batch_size,
            "max_new_tokens": args.max_new_tokens or task.max_new_tokens,
            "dtype": args.dtype or ("float32" if args.model == EMBEDDED else "auto"),
            "attn": args.attn,
            "device": args.device,
            "device_map": args.device_map,
            "min_pixels": args.min_pixels,
            "max_pixels": args.max_pixels,
            "threads": self._threads,
            "peak_memory": memory.source(torch.device(self.device)),
            "versions": models.versions(),
        }
        return config | ({"equal_tokens": self._specs[task.name]} if task.name in self._specs else {})

    def run(self, name: str, batch: int) -> Line:
        """Do one batch of a task."""
        task = self.tasks[name]
        return self.runner(name).run(batch, task.batches(self.args.batch_size)[batch])

    def runner(self, name: str) -> Runner:
        """What runs a task's batches; every setting was tried on the model.

        Raises:
            InputError: a setting can't work with the model.
        """
        if name not in self._runners:
            task = self.tasks[name]
            longest = self.args.max_new_tokens or task.max_new_tokens
            flips = FlipPictures(self.folder(task))
            runner = Runner(self.model_for(task), self.settings(task), task, longest, flips)
            runner.check()
            self._runners[name] = runner
        return self._runners[name]
