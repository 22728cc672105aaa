"""The `vtc` command: `vtc COMMAND --help` tells what each command takes.

Each command is a module with `add_arguments(parser)` and `main(args)`, and a row here. Only the module of the command
that was named is imported, so that `vtc --help` needs neither torch nor transformers.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version

from vtc.cuda import outputs
from vtc.eval.cli.errors import InputError
from vtc.eval.cli.extras import way_to
from vtc.eval.cli.table import Command, Parser, add_commands

#: Headings of `vtc --help`.
USE, MEASURE, FIND_OUT, TRAIN = "use", "measure", "find out", "train"

COMMANDS = {
    "ask": Command(
        "vtc.eval.commands.ask", "ask about one picture, with and without compression, and see what was kept", USE
    ),
    "demo": Command("vtc.demo.command", "two settings side by side in a browser", USE),
    "serve": Command(
        "vtc.serve.command", "serve a model with vLLM, its visual tokens pruned behind the tower", USE, passes_on=True
    ),
    "eval": Command(
        "vtc.eval.run.evaluate", "measure accuracy, time, memory and FLOPs of methods at several budgets", MEASURE
    ),
    "sweep": Command(
        "vtc.eval.run.sweep", "measure many methods, budgets and tasks, on one machine or on a Ray cluster", MEASURE
    ),
    "report": Command(
        "vtc.eval.report.command", "one page about any number of runs: figures, tables, changed answers", MEASURE
    ),
    "compare": Command("vtc.eval.report.compare", "methods at equal tokens, question by question", MEASURE),
    "recipe": Command(
        "vtc.eval.recipes.command", "list published tables, or run one: paper, ours, difference", MEASURE
    ),
    "tasks": Command("vtc.eval.commands.tasks", "list tasks, or show one", MEASURE),
    "bench": Command(
        "vtc.eval.bench.command",
        "time prefills, decisions and operations, each beside what it could be at best",
        MEASURE,
    ),
    "doctor": Command(
        "vtc.eval.doctor.command",
        "what is installed, what of it was tested, and whether compression works here",
        FIND_OUT,
    ),
    "solve": Command(
        "vtc.eval.commands.solve", "find the keep that meets a budget, from the model's shapes alone", FIND_OUT
    ),
    "methods": Command("vtc.eval.commands.methods", "list the methods", FIND_OUT),
    "presets": Command(
        "vtc.eval.recipes.presets", "list published settings, or show one with its published numbers", FIND_OUT
    ),
    "pages": Command("vtc.eval.pages.command", "write a page of documentation for every method", FIND_OUT),
    "train-embedded": Command("vtc.eval.train.embedded.command", "train the embedded model from nothing", TRAIN),
    "train-clips": Command("vtc.eval.train.clips.command", "train the clip model from the embedded one", TRAIN),
    "train-atp": Command(
        "vtc.eval.train.atp.command", "learn ATP's thresholds for a LLaVA, the model itself frozen", TRAIN
    ),
    "train-diffrate": Command(
        "vtc.eval.train.diffrate.command", "learn DiffRate's two counts for each block of a LLaVA's tower", TRAIN
    ),
    "train-compressed": Command(
        "vtc.eval.train.compressed.command",
        "fine-tune the embedded model while it is compressed, and draw what that is worth",
        TRAIN,
    ),
}


def build_parser(chosen: str | None = None) -> argparse.ArgumentParser:
    """The parser of all commands; only the `chosen` one knows its arguments."""
    parser = Parser(prog="vtc", description="Visual token compression for vision-language models.")
    parser.add_argument("--version", action="version", version=f"vtc {version('vtc')}")
    add_commands(parser, "command", "COMMAND", COMMANDS, wanted={chosen} if chosen else set())
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command, to its end: whatever becomes of who reads its output (`vtc.cuda.outputs`).

    Returns:
        0, or what the command returns; 2 where something given can't be used (as argparse does); 130 after Ctrl-C; else
        141 where the reader of stdout went away, and 1 where stdout could not be written otherwise.
    """
    given = sys.argv[1:] if argv is None else list(argv)
    return outputs.run(lambda: _run(given), " ".join(["vtc", *(name for name in given[:1] if name in COMMANDS)]))


def _run(argv: Sequence[str]) -> int:
    name = argv[0] if argv else None
    try:
        parser = build_parser(name)
        if not argv:
            parser.print_help(sys.stderr)
            return 2
        args = parser.parse_args(argv)
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
