"""`vtc bench`: what can be timed, one row each."""

import argparse

from vtc.eval.cli.table import Command, add_commands

BENCHES = {
    "prefill": Command("vtc.eval.bench.prefill.command", "measured and promised speed-up of the prefill"),
    "decode": Command("vtc.eval.bench.decode", "a compiled decode step, patched and untouched, in one graph each"),
    "select": Command(
        "vtc.eval.bench.select.command", "time of each method's decision as a share of the prefill, and its memory"
    ),
    "kernels": Command(
        "vtc.eval.bench.kernels.command",
        "time of each operation beside plain torch, released loops and the device's bounds",
    ),
    "serve": Command(
        "vtc.serve.bench.command", "requests per second and latency of a vLLM server, with and without pruning"
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `vtc bench`."""
    add_commands(parser, "bench", "WHAT", BENCHES, wanted=BENCHES)


def main(args: argparse.Namespace) -> None:
    """Time what was named.

    Raises:
        InputError: an argument can't be used.
    """
    BENCHES[args.bench].load().main(args)
