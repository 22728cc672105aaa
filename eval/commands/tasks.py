"""`vtc tasks`: what --tasks may name, or one task as it asks its first question."""

import argparse

from vtc.eval.cli.arguments import add_task_arguments
from vtc.eval.cli.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `vtc tasks`."""
    parser.add_argument("name", nargs="?", help="a task, shown with its first question; without it all are listed")
    add_task_arguments(parser)


def main(args: argparse.Namespace) -> None:
    """List the tasks, or show one.

    Raises:
        InputError: no such task, or its data can't be had.
    """
    from vtc.eval.results import table
    from vtc.eval.tasks.config import read_config
    from vtc.eval.tasks.index import index

    if args.name is not None:
        _show(args)
        return
    known = index(args.include_path)
    rows = [["task", "headline metric", "shows", "data set"]]
    rows += [["images", "exact_match", "pictures", "bundled"], ["video", "exact_match", "videos", "bundled"]]
    for name, file in sorted(known.files.items()):
        config = read_config(file)
        shows = "videos" if config.get("dataset_kwargs", {}).get("video") else "pictures"
        rows.append([name, config.get("metric_list")[0]["metric"], shows, config.get("dataset_path")])
    print("\n".join(table.aligned(rows)))
    for name, members in sorted(known.groups.items()):
        print(f"group {name}: {', '.join(members)}")


def _show(args: argparse.Namespace) -> None:
    from vtc.eval.tasks.index import file_of
    from vtc.eval.tasks.yaml_task import load_task

    if args.name in ("images", "video"):
        raise InputError(f"argument NAME: {args.name!r} is a bundled benchmark, which README and its card describe")
    task = load_task(args.name, data=args.data, include=args.include_path, prompts=args.prompts)
    question = task.get(0)
    about = {
        "task": task.name,
        "file": file_of(args.name, args.include_path),
        "metrics": ", ".join(metric.name for metric in task.metrics),
        "questions": task.size,
        "longest answer": f"{task.max_new_tokens} tokens, until {list(task.until)}",
        "first question": question.text.replace("\n", "\n" + 16 * " "),
        "its answer": question.answer,
    }
    for label, text in about.items():
        print(f"{label:<15} {text}")
