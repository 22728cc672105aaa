"""`vtc doctor`: what is installed, what of it was tested, and whether compression is right here.

Without --model, tiny random models of several families are examined in some seconds; with it, the reader's own.
"""

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from vtc.eval.cli.arguments import EMBEDDED, add_json_argument, add_model_arguments, existing_file, say
from vtc.eval.cli.errors import InputError
from vtc.eval.cli.importing import importing

if TYPE_CHECKING:
    from vtc.eval.doctor.subject import Subject

#: Stands behind the question of the second prompt, which has to be longer than the first.
_LONGER = " Answer with one word."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `vtc doctor`."""
    add_model_arguments(parser)
    parser.set_defaults(model=None)
    parser.add_argument("--image", type=existing_file, metavar="FILE", help="shown to --model, not a bundled one")
    parser.add_argument("--question", help="asked about it, not a bundled one")
    add_json_argument(parser)


def main(args: argparse.Namespace) -> int:
    """Print what is installed, examine, and print what was found.

    Returns:
        0; 1 where a check failed, or none could be made.

    Raises:
        InputError: an argument can't be used.
    """
    from dataclasses import asdict
    from time import perf_counter

    with importing():
        from vtc.eval.cli.machine import set_threads
        from vtc.eval.doctor.examination import Result, examine
        from vtc.eval.doctor.installed import installed
        from vtc.eval.doctor.table import installed_table, legend, results_table, verdict
        from vtc.eval.results.folder import write_json

    if args.model is None and (args.image or args.question):
        raise InputError("arguments --image, --question are for --model; give one, such as --model embedded")
    parts = list(installed())
    print(*installed_table(parts), "", sep="\n", flush=True)
    set_threads(args.model or EMBEDDED, args.threads)
    begin, results = perf_counter(), list[Result]()
    for turn, subject in enumerate(_subjects(args)):
        share = (0, 1) if args.model or args.attn else (turn % 3, 3)
        results += examine(subject, args.attn, share, lambda what: say(f"vtc doctor: {what}"))
        dtype = str(subject.model.dtype).removeprefix("torch.")
    print(*results_table(results), legend(dtype), verdict(results, perf_counter() - begin), sep="\n")
    if args.json:
        write_json(args.json, {"installed": [asdict(part) for part in parts], "checks": [asdict(r) for r in results]})
    found = {result.status for result in results}
    return int("failed" in found or "passed" not in found)


def _subjects(args: argparse.Namespace) -> "Iterator[Subject]":
    """What is examined."""
    import torch

    if args.model is not None:
        yield _own(args)
        return
    from vtc.eval.cli.machine import check_device
    from vtc.eval.doctor.tiny import subjects

    check_device(args.device)
    yield from subjects(getattr(torch, args.dtype or "float32"), args.device)


def _own(args: argparse.Namespace) -> "Subject":
    """The reader's model with two prompts: picture and question, and the picture turned with a longer question."""
    from PIL import Image

    from vtc.eval.doctor.subject import Subject
    from vtc.eval.media.images import open_image
    from vtc.eval.models import load
    from vtc.eval.tasks.benchmarks import example

    bundled = example("images/0")[1]
    picture: Any = open_image(args.image) if args.image else bundled.shown()[0]
    question = args.question or bundled.text
    loaded = load(args.model, args.dtype, args.device, args.attn)
    prompts = [(picture, question), (picture.transpose(Image.Transpose.ROTATE_90), question + _LONGER)]
    try:
        rows = [loaded.inputs([[shown]], [text]) for shown, text in prompts]
        both = loaded.inputs([[shown] for shown, _ in prompts], [text for _, text in prompts])
    except InputError:
        raise
    except Exception as error:  # of whatever kind: processors are many
        name = type(loaded.processor).__name__
        raise InputError(
            f"argument --model: {name} of {args.model!r} takes no picture with a question ({error}); give the "
            "folder of a model with its processor"
        ) from error
    return Subject(args.model, loaded.model, (rows[0], rows[1]), both)
