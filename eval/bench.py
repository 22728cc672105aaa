"""`vtc bench`: the sub-commands, each in a module with `add_arguments(benches)` and `main(args)`."""

import argparse

from vtc.eval import bench_kernels, bench_prefill, bench_select

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
