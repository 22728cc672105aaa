"""Names of methods."""

import ast
import difflib
import importlib
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from vtc.method.base import Method

KINDS = ("selector", "prune", "reducer")
_FOLDERS = tuple(f"vtc.{kind}s." for kind in KINDS)


def _homes() -> Mapping[str, str]:
    """Public name of vtc -> the module where it lives, from the table in `vtc/__init__.pyi`."""
    table = ast.parse((files("vtc") / "__init__.pyi").read_text(encoding="utf-8"))
    rows = [row for row in table.body if isinstance(row, ast.ImportFrom) and row.module]
    return {alias.name: str(row.module) for row in rows for alias in row.names}


HOMES = _homes()
#: Modules of the methods in this package, by the last part of their name, which is the method's where it is alone.
_MODULES = {module.rpartition(".")[2]: module for module in HOMES.values() if module.startswith(_FOLDERS)}

_registered: dict[str, type["Method"]] = {}

M = TypeVar("M", bound=type)


def register(name: str) -> Callable[[M], M]:
    """Class decorator that makes a method known under `name`, also outside this package.

    Raises:
        ValueError: another class has that name.
    """

    def decorate(cls: M) -> M:
        known = _registered.get(name)
        if known is not None and known.__qualname__ != cls.__qualname__:
            raise ValueError(f"method name {name!r} is taken by {known.__qualname__}; choose another name")
        cls.name = name  # type: ignore[attr-defined]
        _registered[name] = cls
        return cls

    return decorate


def list_methods(kind: str | None = None) -> list[str]:
    """Names of all methods, or of those of one `kind`: "selector", "prune" or "reducer".

    Raises:
        ValueError: no such kind.
    """
    if kind is not None and kind not in KINDS:
        raise ValueError(f"kind={kind!r} is not one of {', '.join(KINDS)}")
    for module in _MODULES.values():
        importlib.import_module(module)
    return sorted(name for name, cls in _registered.items() if kind in (None, cls.kind))


def shipped() -> list[str]:
    """Names of the methods of this package, without those that others registered."""
    return [name for name in list_methods() if _registered[name].__module__ in _MODULES.values()]


def method_class(name: str) -> type["Method"]:
    """The class registered as `name`.

    Raises:
        ValueError: unknown name; the message suggests near ones.
    """
    if name not in _registered and name in _MODULES:
        importlib.import_module(_MODULES[name])
    if name not in _registered:
        known = list_methods()
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise ValueError(f"unknown method {name!r}; {hint}")
    return _registered[name]
