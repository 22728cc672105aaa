"""`vtc bench prefill`: how much of the speed-up that the FLOPs promise arrives on the clock.

What is timed, and how, is told in `rounds`; here stands on which models: one that is loaded, one of the size of
a real model with random weights (`shapes`), or the three whose speed was published (`published`).
"""

import argparse
import gc
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vtc.eval.cli.arguments import (
    EMBEDDED,
    add_json_argument,
    add_model_arguments,
    add_setting_arguments,
    positive,
    say,
)
from vtc.eval.cli.errors import InputError

if TYPE_CHECKING:
    from vtc.eval.bench.prefill.published import PublishedSpeed
    from vtc.eval.bench.prefill.results import ModelResult
    from vtc.eval.bench.prefill.shapes import Shape
    from vtc.eval.models import Loaded
    from vtc.eval.results.settings import Setting

ALL = "all"
_MODEL, _SHAPE = "a model", "--shape"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `vtc bench prefill`."""
    add_model_arguments(parser)
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--shape",
        metavar="NAME",
        default=argparse.SUPPRESS,
        help="instead of --model, random weights of this size, in bfloat16 on a GPU: llava-1.5-7b, llava-next-7b, "
        "qwen2.5-vl-7b, llava-onevision-7b-video; or tiny: the four in miniature, for a CPU",
    )
    instead.add_argument(
        "--published",
        action="store_true",
        default=argparse.SUPPRESS,
        help="instead of --model and --methods, the settings whose speed was published, each on its shape",
    )
    add_setting_arguments(parser, {_MODEL: "divprune", _SHAPE: ALL}, "0.25,0.125,0.0625")
    parser.add_argument(
        "--tasks", choices=("images", "video"), default="images", help="what is shown, and to which bundled model"
    )
    parser.add_argument(
        "--batch-size",
        type=positive,
        default=argparse.SUPPRESS,
        help="pictures or clips at once (default: 8; shapes: 1)",
    )
    parser.add_argument("--rounds", type=positive, default=15, help="times each setting is run")
    parser.add_argument(
        "--new-tokens", type=positive, default=32, help="tokens to generate for the speed of decoding; 1: not timed"
    )
    add_json_argument(parser)


def main(args: argparse.Namespace) -> None:
    """Run the rounds of each model, one after another, and print its table.

    Raises:
        InputError: an argument can't be used.
    """
    from vtc.eval.bench.prefill.table import about
    from vtc.eval.results.folder import write_json

    _check(args)
    cases = list(_cases(args))
    run = _about(args, cases)
    print(about(run))
    models = []
    for case in cases:
        say(f"vtc bench: {case.name}")
        models.append(_run(case, args, run["batch_size"]))
        gc.collect()  # room for the next model
    if args.json:
        write_json(args.json, {**run, "models": models})


def _check(args: argparse.Namespace) -> None:
    """Refuse what does not go together, or nowhere."""
    option = "--published" if hasattr(args, "published") else "--shape" if hasattr(args, "shape") else None
    if option and args.model != EMBEDDED:
        raise InputError(
            f"argument {option}: it brings its own model, so that --model {args.model!r} has no place; drop one"
        )
    if option and args.tasks != "images":
        raise InputError(f"argument {option}: the shape says what is shown; drop --tasks")
    if option == "--published" and (hasattr(args, "methods") or args.compress):
        raise InputError("argument --published: the settings are the published ones; drop --methods and --compress")


@dataclass(frozen=True)
class _Case:
    """One model and what is timed on it.

    Attributes:
        name: in tables.
        settings: "none" first.
        shape: None: the model is --model.
        published: what the result is held up to.
    """

    name: str
    settings: "list[Setting]"
    shape: "Shape | None" = None
    published: "PublishedSpeed | None" = None


def _run(case: _Case, args: argparse.Namespace, batch_size: int) -> "ModelResult":
    """Load a model, time it, print its table."""
    from vtc.eval.bench.prefill import model
    from vtc.eval.bench.prefill.rounds import bench_prefill
    from vtc.eval.bench.prefill.table import published_line, table

    if case.shape is None:
        loaded, inputs = _of_model(args, batch_size)
    else:
        loaded = model.load(case.shape, args.dtype, args.device, args.attn)
        inputs = model.inputs(case.shape, loaded, batch_size)
    result = bench_prefill(case.name, loaded, case.settings, inputs, args.rounds, args.new_tokens)
    print("\n".join(["", *table(result)]))
    if case.published is not None:
        print(published_line(case.published, result))
    return result


def _cases(args: argparse.Namespace) -> Iterator[_Case]:
    from vtc.eval.bench.prefill.published import PUBLISHED
    from vtc.eval.bench.prefill.shapes import named
    from vtc.eval.results.settings import make_settings
    from vtc.method import registry
    from vtc.presets import published

    if hasattr(args, "published"):
        for each in PUBLISHED:
            settings = make_settings([], [], [published(each.preset).spec])
            yield _Case(each.shape.name, settings, each.shape, each)
        return
    kind = _SHAPE if hasattr(args, "shape") else _MODEL
    wanted = getattr(args, "methods", [] if args.compress else args.methods_of_tasks[kind])
    settings = make_settings(registry.list_methods() if wanted == [ALL] else wanted, args.keep, args.compress)
    if kind == _MODEL:
        yield _Case(args.model, settings)
    else:
        for shape in named(args.shape):
            yield _Case(shape.name, settings, shape)


def _of_model(args: argparse.Namespace, batch_size: int) -> "tuple[Loaded, dict[str, Any]]":
    """--model, and a batch of a bundled benchmark: all rows with the same question, so that none is padded."""
    from vtc.eval.models import load
    from vtc.eval.tasks.benchmarks import TASKS, bundled_task

    kind = TASKS[args.tasks]
    loaded = load(args.model, args.dtype, args.device, args.attn, kind)
    task = bundled_task(kind, batch_size, "test", 0)
    questions = [task.get(index) for index in range(batch_size)]
    shown = [question.shown() for question in questions]
    return loaded, loaded.inputs(shown, [questions[0].text] * batch_size)


def _about(args: argparse.Namespace, cases: "list[_Case]") -> dict[str, Any]:
    """What the figures depend on, for the line above the tables and the file."""
    import datetime
    from importlib.metadata import version

    import torch

    from vtc.eval.bench.prefill import model
    from vtc.eval.cli.machine import check_device, set_threads

    check_device(args.device)
    shapes = [case.shape for case in cases if case.shape is not None]
    for shape in shapes:
        model.check(shape, args.device)
    device = torch.device(args.device)
    return {
        "batch_size": getattr(args, "batch_size", 1 if shapes else 8),
        "rounds": args.rounds,
        "new_tokens": args.new_tokens,
        "device": args.device,
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "threads": set_threads(cases[0].name, args.threads),
        "date": datetime.date.today().isoformat(),
        **{name: version(name) for name in ("vtc", "torch", "transformers")},
    }
