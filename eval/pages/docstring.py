"""A method's docstring, taken apart: what it is, what its budget means, its fields; and the functions beside it."""

import ast
import dataclasses
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

from vtc.method.base import Method
from vtc.method.fields import settable

_ARXIV = re.compile(r"(?:https://arxiv\.org/abs/|arXiv )(\d{4}\.\d{4,5})")
_LINK = re.compile(r"\s*https://arxiv\.org/abs/\S+\s*$")
_SECTION = re.compile(r"^[A-Z][A-Za-z ]*:$")
_BUDGET = "Budget:"


@dataclass(frozen=True)
class Field:
    """One field of a method.

    Attributes:
        name: as in a spec.
        default: as Python writes it.
        text: what the docstring says of it; empty where nothing.
    """

    name: str
    default: str
    text: str


@dataclass(frozen=True)
class Described:
    """What a method's class says of itself.

    Attributes:
        first: the first paragraph.
        body: the other paragraphs, without the budget's and the link to the paper.
        budget: what the paper's budget means in `keep`; empty where the docstring does not say.
        fields: those that a spec can set.
        paper: arXiv id; None for baselines.
    """

    first: str
    body: tuple[str, ...]
    budget: str
    fields: tuple[Field, ...]
    paper: str | None


def describe(cls: type[Method]) -> Described:
    """Take a method's docstring apart."""
    prose, _ = _split(inspect.getdoc(cls) or "")
    paragraphs = [" ".join(part.split()) for part in prose.split("\n\n") if part.strip()]
    budget = [part.removeprefix(_BUDGET).strip() for part in paragraphs if part.startswith(_BUDGET)]
    others = [text for part in paragraphs if not part.startswith(_BUDGET) and (text := _LINK.sub("", part))]
    module = inspect.getdoc(sys.modules[cls.__module__]) or ""
    paper = _ARXIV.search(prose) or _ARXIV.search(module)
    return Described(
        first=others[0] if others else "",
        body=tuple(others[1:]),
        budget="\n\n".join(text[:1].upper() + text[1:] for part in budget if (text := _LINK.sub("", part))),
        fields=tuple(_fields(cls)),
        paper=paper[1] if paper else None,
    )


def functions(cls: type[Method]) -> Iterator[tuple[str, str]]:
    """Signature and docstring of the public functions of the method's module, in the order of the file.

    A module with several methods shows each of them all functions.
    """
    tree = ast.parse(inspect.getsource(sys.modules[cls.__module__]))
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
            yield f"{node.name}({ast.unparse(node.args)}){returns}", ast.get_docstring(node) or ""


def _split(text: str) -> tuple[str, dict[str, str]]:
    """The prose before the first section of a Google docstring, and the text of its "Attributes:" by name."""
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if _SECTION.match(line) and line != _BUDGET), len(lines))
    found: dict[str, str] = {}
    inside = start < len(lines) and lines[start] == "Attributes:"
    names: list[str] = []
    for line in lines[start + 1 :] if inside else []:
        if line and not line.startswith(" "):
            break
        entry = re.match(r"    (\w+(?:, \w+)*): (.*)", line)
        if entry:
            names = entry[1].split(", ")
            found.update(dict.fromkeys(names, entry[2]))
        elif line.strip():
            found.update({name: f"{found[name]} {line.strip()}" for name in names})
    return "\n".join(lines[:start]), found


def _fields(cls: type[Method]) -> Iterator[Field]:
    said: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        said.update(_split(textwrap.dedent(inspect.cleandoc(base.__doc__ or "")))[1])
    for field in settable(cls):
        yield Field(field.name, _default(field), said.get(field.name, ""))


def _default(field: dataclasses.Field) -> str:
    if field.default is not dataclasses.MISSING:
        return f"{field.default:.4g}" if isinstance(field.default, float) else repr(field.default)
    return repr(field.default_factory()) if field.default_factory is not dataclasses.MISSING else "required"
