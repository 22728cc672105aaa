"""Arguments that several commands share. Imports neither torch nor transformers."""

import argparse
import math
import sys
from collections.abc import Mapping
from pathlib import Path

from vtc.method.budget import Keep, check_keep

EMBEDDED = "embedded"

DTYPES = ("float32", "bfloat16", "float16")


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Which model, and how it is loaded."""
    parser.add_argument("--model", default=EMBEDDED, help="'embedded', a from_pretrained folder, or a hub id")
    parser.add_argument("--dtype", choices=DTYPES, help="float type of the weights (default: the model's own)")
    parser.add_argument("--attn", help="attention implementation, such as sdpa, eager, flash_attention_2")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument(
        "--threads", type=positive, help="CPU threads (default: 1 for the embedded model, else torch's own choice)"
    )


def add_setting_arguments(
    parser: argparse.ArgumentParser, methods: str | Mapping[str, str], keep: str, tokens: bool = False
) -> None:
    """Which methods at which budgets; `methods` and `keep` are the defaults.

    Where `methods` holds a default for each of --tasks there is no single one: read them by `method_names`.
    With `tokens` there is --tokens as well, and where it is given `keep` is no default: read them by `budgets`.
    """
    about = "names separated by commas, each run at every --keep"
    if isinstance(methods, str):
        parser.add_argument("--methods", type=names, default=methods, help=about)
    else:
        about += " (default: " + "; ".join(f"for {task}: {each}" for task, each in methods.items()) + ")"
        parser.set_defaults(methods_of_tasks={task: names(each) for task, each in methods.items()})
        parser.add_argument("--methods", type=names, default=argparse.SUPPRESS, help=about)
    about = "budgets separated by commas: shares (0.25) or counts (64)"
    if tokens:
        about = f"{about} (default: {keep}; none where --tokens is given)"
        parser.set_defaults(keep_without_tokens=keeps(keep))
        parser.add_argument(
            "--tokens",
            type=token_counts,
            default=[],
            help="equivalent tokens separated by commas (64,96): each method runs with the keep that gives it so many",
        )
    parser.add_argument("--keep", type=keeps, default=argparse.SUPPRESS if tokens else keep, help=about)
    parser.add_argument(
        "--compress",
        action="append",
        default=[],
        metavar="SPEC",
        help="a full spec such as 'divprune:keep=0.5+fastv:layer=2,keep=0.5', run as it stands; may be repeated",
    )


def add_task_arguments(parser: argparse.ArgumentParser) -> None:
    """Where tasks and their data are, and which of their prompts."""
    parser.add_argument(
        "--include_path",
        "--include-path",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="folder with task YAMLs of your own; may be repeated",
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="local data of tasks: DIR/TASK, or DIR itself")
    parser.add_argument("--prompts", default="default", help="which of a task's prompts, by lmms-eval's model name")


def add_json_argument(parser: argparse.ArgumentParser) -> None:
    """Where figures are written as well."""
    parser.add_argument("--json", type=new_file, metavar="FILE", help="write the figures there as well")


def method_names(args: argparse.Namespace, task: str) -> list[str]:
    """The --methods of a command whose default depends on --tasks: where they are not given, those of `task`."""
    return getattr(args, "methods", args.methods_of_tasks[task])


def budgets(args: argparse.Namespace) -> list[Keep]:
    """The --keep of a command that knows --tokens."""
    return getattr(args, "keep", [] if args.tokens else args.keep_without_tokens)


def positive(text: str) -> int:
    """An int of at least 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value


def not_negative(text: str) -> int:
    """An int of at least 0."""
    return 0 if text == "0" else positive(text)


def names(text: str) -> list[str]:
    """Names separated by commas."""
    if ":" in text or "+" in text:
        raise argparse.ArgumentTypeError(
            f"{text!r} holds a spec, but only names go here; give it as --compress {text!r}"
        )
    found = [name.strip() for name in text.split(",")]
    if not all(found):
        raise argparse.ArgumentTypeError(f"{text!r} has an empty name; write e.g. none,random,divprune")
    return found


def keeps(text: str) -> list[Keep]:
    """Budgets separated by commas: a whole number is a count, anything with a point a share."""
    return [_keep(part.strip()) for part in text.split(",")]


def token_counts(text: str) -> list[float]:
    """Numbers of equivalent tokens, at least 1 each, separated by commas."""
    return [_tokens(part.strip()) for part in text.split(",")]


def _tokens(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of tokens from 1 on; give e.g. 64")
    return value


def _keep(text: str) -> Keep:
    value: Keep
    try:
        value = int(text) if text.lstrip("+-").isdecimal() else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number; give shares such as 0.25 or counts such as 64"
        ) from None
    try:
        check_keep(value)
    except (TypeError, ValueError) as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return value


def existing_file(text: str) -> Path:
    """A path that is a file."""
    path = Path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"{text!r} is {'a folder' if path.is_dir() else 'missing'}; give a file")
    return path


def new_file(text: str) -> Path:
    """A path in a folder that is there."""
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"folder {str(path.parent)!r} does not exist; create it or give another")
    return path


def say(line: str) -> None:
    """A line for the person at the terminal, beside the results on stdout."""
    print(line, file=sys.stderr, flush=True)
