"""A table of commands: `vtc` has one, `vtc bench` another. Imports neither torch nor transformers."""

import argparse
import difflib
import importlib
import shutil
import textwrap
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any

from vtc.eval.cli.importing import importing


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        module: has `add_arguments(parser)` and `main(args)`; imported only where the command is wanted.
        help: one line.
        heading: under which `--help` lists it.
        passes_on: whether arguments that it does not know are another program's: `args.passed_on` has them, in order.
    """

    module: str
    help: str
    heading: str = "commands"
    passes_on: bool = False

    def load(self) -> Any:
        """The module."""
        with importing():
            return importlib.import_module(self.module)


class Parser(argparse.ArgumentParser):
    """A parser that knows what a misspelt name was meant to be, of a command as of any other choice.

    Args:
        passes_on: keep what is not known as `passed_on`, without the first "--", instead of refusing it.
    """

    def __init__(self, *args: Any, passes_on: bool = False, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._passes_on = passes_on

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """As argparse does, but that nothing is unknown where it is passed on."""
        found, rest = super().parse_known_args(args, namespace)
        if not self._passes_on:
            return found, rest
        if "--" in rest:
            rest.remove("--")
        found.passed_on = rest
        return found, []

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            known = [str(choice) for choice in action.choices]
            near = difflib.get_close_matches(str(value), known, n=1)
            meant = f"did you mean {near[0]!r}? Known:" if near else "known:"
            raise argparse.ArgumentError(action, f"unknown {value!r}; {meant} {', '.join(known)}")


def add_commands(
    parser: argparse.ArgumentParser, dest: str, metavar: str, table: Mapping[str, Command], wanted: Container[str]
) -> None:
    """Give a parser a table's commands, listed under their headings.

    Args:
        parser: of what they are commands of.
        dest: attribute of the parsed arguments that tells which was named.
        metavar: how the usage line calls it.
        table: of commands.
        wanted: names of those that get their arguments, for which their modules are imported.
    """
    about = f"one of these; `{parser.prog} {metavar} --help` tells what it takes"
    commands = parser.add_subparsers(dest=dest, required=True, metavar=metavar, help=about, parser_class=Parser)
    for name, command in table.items():
        child = commands.add_parser(
            name,
            description=command.help[0].upper() + command.help[1:] + ".",
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
            allow_abbrev=False,
            passes_on=command.passes_on,
        )
        if name in wanted:
            command.load().add_arguments(child)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    for heading in dict.fromkeys(command.heading for command in table.values()):
        named = {name: command for name, command in table.items() if command.heading == heading}
        parser.add_argument_group(heading, _listing(named, max(map(len, table))))


def _listing(table: Mapping[str, Command], width: int) -> str:
    """A line for each command, or more where the terminal is narrow; names are `width` wide."""
    across = max(shutil.get_terminal_size().columns - 4, width + 22)
    entries = (
        textwrap.wrap(f"{name:<{width}}  {command.help}", across, subsequent_indent=" " * (width + 2))
        for name, command in table.items()
    )
    return "\n".join(line for lines in entries for line in lines)
