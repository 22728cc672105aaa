"""`vtc bench select`: how long each method's decision takes beside the prefill that it is to shorten.

Every method is shown random stand-ins (`scene`, `video`), and its own part alone is timed
(`decision`), in rounds beside a decoder layer and a tower block (`rounds`).
"""

import argparse
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vtc.eval.cli.arguments import add_json_argument, keeps, names, positive
from vtc.eval.cli.errors import InputError
from vtc.method.budget import Keep

if TYPE_CHECKING:
    from vtc.method.base import Method

#: Of videos, where none are given.
FRAMES = "8,16,32,64,128,256"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `vtc bench select`."""
    parser.add_argument(
        "--methods", type=names, default="all", help="names separated by commas, or all; of a video, all selectors"
    )
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--tokens", type=_sizes, default="576,2880,16384", help="visual tokens, separated by commas")
    shown.add_argument(
        "--video",
        "--frames",
        dest="frames",
        type=_sizes,
        nargs="?",
        const=FRAMES,
        metavar="FRAMES",
        help=f"decide about videos of so many frames instead; without numbers {FRAMES}",
    )
    parser.add_argument(
        "--frame-tokens", type=_square, default=196, help="tokens of each frame of a video, a square number"
    )
    parser.add_argument("--keep", type=_one_keep, default="0.1", help="budget: a share (0.25) or a count (64)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument(
        "--rounds",
        type=positive,
        default=15,
        help="most times each method is run; a size gets no more than 3 once it took 30 s",
    )
    add_json_argument(parser)


def main(args: argparse.Namespace) -> None:
    """Run the rounds and print the tables.

    Raises:
        InputError: an argument can't be used.
    """
    import torch

    from vtc.eval.bench.select.rounds import bench_select
    from vtc.eval.bench.select.scene import Scene
    from vtc.eval.bench.select.table import about, table
    from vtc.eval.bench.select.video import VideoScene
    from vtc.eval.cli.machine import check_device
    from vtc.eval.results.folder import write_json

    check_device(args.device)
    device, frames = torch.device(args.device), args.frames
    run = {
        "shown": "image" if frames is None else "video",
        "frame_tokens": None if frames is None else args.frame_tokens,
        "keep": args.keep,
        "device": args.device,
        "dtype": "bfloat16" if device.type == "cuda" else "float32",
        "threads": torch.get_num_threads(),
        "most_rounds": args.rounds,
    }
    sizes, methods = bench_select(
        make_methods(args.methods, args.keep, None if frames is None else "selector"),
        args.tokens if frames is None else frames,
        device,
        args.rounds,
        Scene if frames is None else VideoScene.of_frames(args.frame_tokens),
    )
    notes = about(run)
    print("\n".join([*notes, "", *table(sizes, methods)]))
    if args.json:
        write_json(args.json, {**run, "notes": notes, "sizes": sizes, "methods": methods})


def make_methods(wanted: Sequence[str], keep: Keep, kind: str | None = None) -> "list[Method]":
    """Every method that is named ("all": every one there is, of the `kind`), at the budget.

    Raises:
        InputError: an unknown method, or a budget that it does not take.
    """
    from vtc import spec
    from vtc.eval.results.settings import fields_of
    from vtc.method import registry

    try:
        found = registry.list_methods(kind) if list(wanted) == ["all"] else sorted(set(wanted))
        classes = [registry.method_class(name) for name in found]
    except ValueError as error:
        raise InputError(f"argument --methods: {error}") from None
    try:
        return [
            spec.build(name, {"keep": keep} if "keep" in fields_of(cls) else {}) for name, cls in zip(found, classes)
        ]
    except (TypeError, ValueError) as error:
        raise InputError(f"argument --keep: {error}") from None


def _sizes(text: str) -> list[int]:
    """Whole numbers of at least 1, separated by commas."""
    return [positive(part.strip()) for part in text.split(",")]


def _square(text: str) -> int:
    """A square number of at least 1."""
    found = positive(text)
    if math.isqrt(found) ** 2 != found:
        raise argparse.ArgumentTypeError(f"{text!r} is no square number; give e.g. {math.isqrt(found) ** 2}")
    return found


def _one_keep(text: str) -> Keep:
    """A single budget."""
    found = keeps(text)
    if len(found) > 1:
        raise argparse.ArgumentTypeError(f"{text!r} holds {len(found)} budgets; give one, such as 0.1")
    return found[0]
