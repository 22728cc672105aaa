"""A method's fields: their order, and checks with messages that name the field, the value and the way out."""

import dataclasses
import functools
from collections.abc import Sequence
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def settable(method: Any) -> list[dataclasses.Field]:
    """The fields that a method, or its class, can be given: its own first, then those that its kind adds."""
    return sorted((field for field in dataclasses.fields(method) if field.init), key=lambda field: bool(field.kw_only))


def check_int(name: str, value: object, way_out: str, minimum: int | None = None) -> None:
    """Check that `value` is an int (bool is none) of at least `minimum`.

    Raises:
        TypeError: not an int.
        ValueError: below `minimum`.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}, not an int; {way_out}")
    if minimum is not None and value < minimum:
        raise ValueError(f"{name}={value!r} is below {minimum}; {way_out}")


def check_share(name: str, value: object, way_out: str) -> None:
    """Check that `value` is a number in [0, 1].

    Raises:
        TypeError: not a number (bool included).
        ValueError: NaN or outside [0, 1].
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}, not a number; {way_out}")
    if not 0 <= float(value) <= 1:
        raise ValueError(f"{name}={value!r} is not in [0, 1]; {way_out}")


def choices(method: Any, name: str) -> tuple[str, ...]:
    """What the field `name` of a method, or its class, may be, where its type is a `Literal`; else nothing."""
    allowed = _allowed(method, name)
    return () if None in allowed else allowed


def takes(method: Any, name: str, kind: type) -> bool:
    """Whether the field `name` of a method, or its class, may be of a `kind`; also where its type is not known."""
    declared = _types(method if isinstance(method, type) else type(method)).get(name, kind)
    return kind in (declared, *get_args(declared))


def check_choices(method: Any) -> None:
    """Check that every field whose type is a `Literal`, or such a one or None, is one of these.

    Raises:
        ValueError: it is not.
    """
    for field in settable(method):
        value, allowed = getattr(method, field.name), _allowed(method, field.name)
        if allowed and value not in allowed:
            raise ValueError(f"{field.name}={value!r} is not one of {', '.join(map(repr, allowed))}")


def _allowed(method: Any, name: str) -> tuple[Any, ...]:
    """What a field may be by its type: the words of a `Literal`, and None if it may stand beside them; else nothing."""
    declared = _types(method if isinstance(method, type) else type(method)).get(name)
    parts = get_args(declared) if get_origin(declared) in (Union, UnionType) else (declared,)
    words = [word for part in parts if get_origin(part) is Literal for word in get_args(part)]
    return (*words, None) if words and NoneType in parts else tuple(words)


@functools.cache
def _types(cls: type) -> dict[str, Any]:
    try:
        return get_type_hints(cls)
    except NameError:  # a type that is imported for type checkers alone
        return {}


def check_bool(name: str, value: object) -> None:
    """Check that `value` is True or False.

    Raises:
        TypeError: it is not.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}; give True or False")


def ascending(name: str, value: object, way_out: str, minimum: int) -> tuple[int, ...]:
    """`value`, ints of at least `minimum` that ascend, as a tuple.

    Raises:
        TypeError: not a tuple or list of int.
        ValueError: empty, below `minimum` or not ascending.
    """
    checked = as_tuple(name, value, way_out)
    for index, item in enumerate(checked):
        check_int(f"{name}[{index}]", item, way_out, minimum)
    if list(checked) != sorted(set(checked)):
        raise ValueError(f"{name}={value!r} is not ascending; {way_out}")
    return checked


def as_tuple(name: str, value: object, way_out: str) -> tuple:
    """`value`, a list or tuple that is not empty, as a tuple.

    Raises:
        TypeError: it is neither.
        ValueError: it is empty.
    """
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}, not a tuple; {way_out}")
    if not value:
        raise ValueError(f"{name}={value!r} is empty; {way_out}")
    return tuple(value)
