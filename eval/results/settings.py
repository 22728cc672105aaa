"""Settings: the methods × budgets that a run compares."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vtc import spec
from vtc.eval.cli.errors import InputError
from vtc.method import registry
from vtc.method.base import Method, Positions
from vtc.method.budget import Keep
from vtc.method.fields import settable

NONE = "none"


@dataclass(frozen=True)
class Setting:
    """One way to run the model.

    Attributes:
        name: the spec string, `keep` always written out; "none" is the unpatched model.
        series: the name without `keep`: settings of one series are one line of the figure.
        keep: the budget where there is a single method.
        methods: the configured methods; empty for "none".
    """

    name: str
    series: str
    keep: Keep | None
    methods: tuple[Method, ...] = dataclasses.field(compare=False)

    def for_batch(self, index: int) -> list[Method]:
        """The methods for batch number `index`: a `seed` is moved on by it.

        Without that, `random` would keep the same positions in every image, and its accuracy would be that of one draw.
        """
        return [_reseeded(method, index) for method in self.methods]


def make_settings(
    names: Sequence[str], keeps: Sequence[Keep], specs: Sequence[str] = (), positions: Sequence[Positions] = ()
) -> list[Setting]:
    """Every name at every budget, then every spec; "none" comes first and once, since all is measured against it.

    Args:
        names: of methods.
        keeps: budgets.
        specs: that say their own.
        positions: each of them under every one of these, where its methods can be told; none: as they stand.

    Raises:
        InputError: an unknown method, a malformed spec, a value out of range.
    """
    found = {NONE: Setting(NONE, NONE, None, ())}
    for name in names:
        if name == NONE:
            continue
        try:
            has_keep = "keep" in fields_of(registry.method_class(name))
            made = [spec.parse(name, keep=keep) for keep in keeps] if has_keep else [spec.parse(name)]
        except (TypeError, ValueError) as error:
            raise InputError(f"argument --methods: {error}") from None
        for methods in made:
            _add(found, methods, positions)
    for text in specs:
        try:
            _add(found, spec.parse(text), positions)
        except (TypeError, ValueError) as error:
            raise InputError(f"argument --compress: {error}") from None
    return list(found.values())


def _add(found: dict[str, Setting], methods: list[Method], positions: Sequence[Positions]) -> None:
    methods = [method for method in methods if method.name != NONE]
    asked: Sequence[Positions | None] = positions or (None,)
    for numbering in asked if methods else ():
        told = [_with(method, "positions", numbering) for method in methods]
        name = "+".join(_label(method, True) for method in told)
        series = "+".join(_label(method, False) for method in told)
        keep = told[0].keep if len(told) == 1 else None
        found.setdefault(name, Setting(name, series, keep, tuple(told)))


def label(method: Method) -> str:
    """The spec string of a method, `keep` always written out."""
    return _label(method, True)


def _label(method: Method, with_keep: bool) -> str:
    parts = []
    for name, default in fields_of(method).items():
        value = getattr(method, name)
        if with_keep if name == "keep" else value != default:
            parts.append(f"{name}={str(value).replace(' ', '')}")
    return method.name + (":" + ",".join(parts) if parts else "")


def _reseeded(method: Any, step: int) -> Any:
    return _with(method, "seed", method.seed + step) if "seed" in fields_of(method) else method


def _with(method: Any, field: str, value: Any) -> Any:
    """The method with another value of a field; itself where it has no such field, or the value is None."""
    known = value is not None and field in fields_of(method)
    return dataclasses.replace(method, **{field: value}) if known else method


def fields_of(method: Any) -> dict[str, Any]:
    """Fields of a method or its class, with their defaults."""
    return {field.name: field.default for field in settable(method)}
