"""A table of commands: `vtc` has one, `vtc bench` another. Imports neither torch nor transformers."""

import argparse
import importlib
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        module: has `add_arguments(parser)` and `main(args)`; imported only where the command is wanted.
        help: one line.
    """

    module: str
    help: str

    def load(self) -> Any:
        """The module."""
        return importlib.import_module(self.module)


def add_commands(
    parser: argparse.ArgumentParser, dest: str, metavar: str, table: Mapping[str, Command], wanted: Container[str]
) -> None:
    """Give a parser a table's commands.

    Args:
        parser: of what they are commands of.
        dest: attribute of the parsed arguments that tells which was named.
        metavar: how the usage line calls it.
        table: of commands.
        wanted: names of those that get their arguments, for which their modules are imported.
    """
    commands = parser.add_subparsers(dest=dest, required=True, metavar=metavar)
    for name, command in table.items():
        child = commands.add_parser(
            name,
            help=command.help,
            description=command.help[0].upper() + command.help[1:] + ".",
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
            allow_abbrev=False,
        )
        if name in wanted:
            command.load().add_arguments(child)
