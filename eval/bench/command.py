"""`vtc bench`: the sub-commands, each in a module with `add_arguments(benches)` and `main(args)`."""

import argparse

from vtc.eval.bench.kernels import command as bench_kernels
from vtc.eval.bench.prefill import command as bench_prefill
from vtc.eval.bench.select import command as bench_select

BENCHES = {"prefill": bench_prefill, "select": bench_select, "kernels": bench_kernels}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `vtc bench`."""
    benches = parser.add_subparsers(dest="bench", required=True, metavar="WHAT")
    for bench in BENCHES.values():
        bench.add_arguments(benches)


def main(args: argparse.Namespace) -> None:
    """Run the sub-command that was named.

    Raises:
        InputError: an argument can't be used.
    """
    BENCHES[args.bench].main(args)
