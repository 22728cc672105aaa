"""The `vtc` command: `vtc COMMAND --help` tells what each command takes.

Each command is a module with `add_arguments(parser)` and `main(args)`, and a row here. Only the module of the command
that was named is imported, so that `vtc --help` needs neither torch nor transformers.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version

from vtc.eval.cli.errors import InputError
from vtc.eval.cli.extras import way_to
from vtc.eval.cli.table import Command, add_commands

COMMANDS = {
    "eval": Command("vtc.eval.run.evaluate", "measure accuracy, time, memory and FLOPs of methods at several budgets"),
    "sweep": Command(
        "vtc.eval.run.sweep", "measure many methods, budgets and tasks, on one machine or on a Ray cluster"
    ),
    "report": Command("vtc.eval.report.command", "one page about any number of runs: figures, tables, changed answers"),
    "recipe": Command("vtc.eval.recipes.command", "list published tables, or run one: paper, ours, difference"),
    "tasks": Command("vtc.eval.commands.tasks", "list tasks, or show one"),
    "ask": Command(
        "vtc.eval.commands.ask", "ask about one picture, with and without compression, and see what was kept"
    ),
    "demo": Command("vtc.demo.command", "two settings side by side in a browser"),
    "bench": Command(
        "vtc.eval.bench.command", "time prefills, decisions and operations, each beside what it could be at best"
    ),
    "doctor": Command(
        "vtc.eval.doctor.command", "what is installed, what of it was tested, and whether compression works here"
    ),
    "solve": Command("vtc.eval.commands.solve", "find the keep that meets a budget, from the model's shapes alone"),
    "methods": Command("vtc.eval.commands.methods", "list the methods"),
    "presets": Command("vtc.eval.recipes.presets", "list published settings, or show one with its published numbers"),
    "pages": Command("vtc.eval.pages.command", "write a page of documentation for every method"),
    "train-embedded": Command("vtc.eval.train.embedded.command", "train the embedded model from nothing"),
    "train-clips": Command("vtc.eval.train.clips.command", "train the clip model from the embedded one"),
    "train-atp": Command("vtc.eval.train.atp.command", "learn ATP's thresholds for a LLaVA, the model itself frozen"),
    "train-diffrate": Command(
        "vtc.eval.train.diffrate.command", "learn DiffRate's two counts for each block of a LLaVA's tower"
    ),
}


def build_parser(chosen: str | None = None) -> argparse.ArgumentParser:
    """The parser of all commands; only the `chosen` one knows its arguments."""
    parser = argparse.ArgumentParser(prog="vtc", description="Visual token compression for vision-language models.")
    parser.add_argument("--version", action="version", version=f"vtc {version('vtc')}")
    add_commands(parser, "command", "COMMAND", COMMANDS, wanted={chosen} if chosen else set())
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0, or what the command returns; 2 where something given can't be used (as argparse does); 130 after Ctrl-C.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    name = argv[0] if argv else None
    try:
        args = build_parser(name).parse_args(argv)
        return COMMANDS[args.command].load().main(args) or 0
    except InputError as error:
        print(f"vtc {name}: error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if (way := way_to(error)) is None:
            raise
        print(f"vtc {name}: error: {way}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nvtc {name}: interrupted", file=sys.stderr)
        return 130
