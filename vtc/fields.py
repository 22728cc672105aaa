"""A method's fields: their order, and checks with messages that name the field, the value and the way out."""

import dataclasses
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any


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


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Check that `value` is one of `choices`.

    Raises:
        ValueError: it is not.
    """
    if value not in choices:
        raise ValueError(f"{name}={value!r} is not one of {', '.join(map(repr, choices))}")


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
