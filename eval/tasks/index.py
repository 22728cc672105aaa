"""Tasks by name: those that come along, and those of --include_path."""

import difflib
import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vtc.eval.cli.arguments import say
from vtc.eval.cli.errors import InputError
from vtc.eval.tasks.config import PACKAGED, names_in


@dataclass(frozen=True)
class Index:
    """What names stand for.

    Attributes:
        files: name of a task -> its YAML file.
        groups: name of a group -> names of its tasks.
    """

    files: dict[str, Path]
    groups: dict[str, list[str]]


def index(include: Sequence[Path] = ()) -> Index:
    """All tasks; a folder of `include` wins over what comes along, and over folders before it.

    Raises:
        InputError: a folder is not there, or one of its files is no YAML.
    """
    files: dict[str, Path] = {}
    groups: dict[str, list[str]] = {}
    for folder in (PACKAGED, *include):
        if not folder.is_dir():
            raise InputError(f"argument --include_path: {str(folder)!r} is no folder; give one that holds task YAMLs")
        for file in sorted(folder.rglob("*.yaml")):
            name, members = names_in(file)
            if name is None:
                continue
            if name in files and folder is not PACKAGED:
                say(f"vtc eval: task {name!r} is that of {str(file)!r}, not of {str(files[name])!r}")
            if members:
                groups[name] = members
            else:
                files[name] = file
    return Index(files, groups)


def find_tasks(name: str, include: Sequence[Path] = ()) -> list[str]:
    """The tasks that a name, a group's name, a pattern such as "mv*", or a YAML file stands for.

    Raises:
        InputError: it stands for none; the message suggests the nearest.
    """
    if name.endswith((".yaml", ".yml")):
        found, members = names_in(Path(name))
        if found is None:
            raise InputError(f"argument --tasks: {name!r} names no task; add `task: NAME` to it")
        return [each for member in members for each in find_tasks(member, [*include, Path(name).parent])] or [name]
    return _matching(name, index(include))


def _matching(name: str, known: Index) -> list[str]:
    """The tasks that a name or pattern stands for among those that are known."""
    names = sorted({*known.files, *known.groups})
    matching = fnmatch.filter(sorted(known.files), name) if any(letter in name for letter in "*?[") else []
    if matching:
        return matching
    if name in known.groups:
        return [each for member in known.groups[name] for each in _matching(member, known)]
    if name in known.files:
        return [name]
    near = difflib.get_close_matches(name, [*names, "images", "video"], n=1)
    hint = f"did you mean {near[0]!r}?" if near else "`vtc tasks` lists them; --include_path adds your own"
    raise InputError(f"argument --tasks: {name!r} is unknown; {hint}")


def file_of(name: str, include: Sequence[Path] = ()) -> Path:
    """The YAML file of a task, by its name or path.

    Raises:
        InputError: there is none.
    """
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    (found,) = find_tasks(name, include)[:1]
    return index(include).files[found]
