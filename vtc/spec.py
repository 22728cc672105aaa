"""The spec grammar, the same everywhere: `divprune:keep=0.25+fastv:layer=2,keep=0.5`.

    spec   = method *( "+" method )
    method = name [ ":" key "=" value *( "," key "=" value ) ]

A value is a Python literal (0.25, 64, True, None, (7,9,12)) or a bare word, which is a string. In place of a method the
name of a preset may stand, such as `hiprune/llava-1.5/192`.
"""

import ast
import difflib
import re
from collections.abc import Iterable
from typing import Any

from vtc.method.base import Method
from vtc.method.fields import settable
from vtc.method.registry import method_class
from vtc.method.selector import Selector
from vtc.presets import published

Spec = str | Method | Iterable["Spec"]

_COMMA = re.compile(r",(?![^(\[]*[)\]])")  # commas outside brackets
_PLUS = re.compile(r"\+(?=\s*[A-Za-z_])")  # a plus before a name, not that of 1e+3


def parse(spec: Spec, **fields: Any) -> list[Method]:
    """Turn a spec (a string, a method, or several of either) into configured methods.

    Args:
        spec: e.g. "divprune:keep=0.25+fastv:layer=2", `DivPrune(keep=0.25)`, or a list of such.
        **fields: fields for the method, where the spec is the name of exactly one.

    Raises:
        ValueError: malformed spec, unknown method, unknown or repeated key; the message names it.
        TypeError: `spec` is of another type.
    """
    if isinstance(spec, Method):
        own = any("__dataclass_fields__" in vars(cls) for cls in type(spec).__mro__ if cls is not Selector)
        if not own or not hasattr(spec, "name"):
            name = type(spec).__name__
            raise TypeError(f"{name} is no method yet; put @vtc.register('name') and @dataclass above its class")
        methods: list[Method] = [spec]
    elif isinstance(spec, str):
        methods = [_parse_one(part, fields) for part in split(spec)]
    elif isinstance(spec, Iterable):
        methods = [method for part in spec for method in parse(part)]
    else:
        raise TypeError(
            f"spec={spec!r} is a {type(spec).__name__}; give a spec string or methods such as vtc.DivPrune()"
        )
    if not methods:
        raise ValueError(f"spec={spec!r} names no method; use 'none' for no compression")
    if fields and (len(methods) != 1 or not isinstance(spec, str)):
        raise ValueError(
            f"{', '.join(fields)}=… beside {spec!r} is ambiguous; put each field into its own method's spec"
        )
    return methods


def preset(name: str) -> Method:
    """The method of a published setting, ready for `vtc.patch`.

    Args:
        name: "METHOD/MODEL/SETTING" such as "hiprune/llava-1.5/192"; `vtc presets` lists them.

    Returns:
        A new instance each time. Its attribute `published` is the `Published` record; it is no field, so that the
        instance equals, and prints as, the same method made by hand.

    Raises:
        ValueError: unknown name; the message suggests the nearest.
        TypeError: `name` is no string.
    """
    record = published(name)
    (method,) = parse(record.spec)
    object.__setattr__(method, "published", record)
    return method


def split(spec: str) -> list[str]:
    """The methods of a spec string, one string each."""
    return [part.strip() for part in _PLUS.split(spec)]


def to_string(methods: Iterable[Method]) -> str:
    """The spec string that `parse` turns back into equal methods; fields at their default are left out."""
    return "+".join(_one_to_string(method) for method in methods)


def build(name: str, fields: dict[str, Any]) -> Method:
    """The method `name` with `fields`.

    Raises:
        ValueError: unknown method or field.
    """
    cls = method_class(name)
    known = [field.name for field in settable(cls)]
    for key in fields:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has: {', '.join(known) or 'no fields'}"
            if key == "keep" and cls.may_adapt:
                hint += "; vtc.calibrate finds the value of one that leaves so many tokens"
            raise ValueError(f"{name} has no field {key!r}; {hint}")
    return cls(**fields)


def read_one(text: str) -> tuple[str, dict[str, Any]]:
    """The name and the fields of one method as its string writes them; nothing is built or checked.

    Raises:
        ValueError: malformed, or no such preset.
    """
    if "/" in text and ":" not in text:  # the name of a preset
        text = published(text.strip()).spec
    name, colon, rest = text.strip().partition(":")
    given: dict[str, Any] = {}
    for item in _COMMA.split(rest) if colon else []:
        key, equals, value = (part.strip() for part in item.partition("="))
        if not key or not equals or not value:
            raise ValueError(f"spec {text!r}: {item!r} is not key=value; write e.g. 'divprune:keep=0.25'")
        if key in given:
            raise ValueError(f"spec {text!r}: {key!r} is given twice; give it once")
        given[key] = value_of(value)
    return name.strip(), given


def value_of(text: str) -> Any:
    """A field's value as it is written in a spec: a Python literal, or a bare word, which is a string."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _parse_one(text: str, fields: dict[str, Any]) -> Method:
    name, given = read_one(text)
    for key in fields:
        if key in given:
            raise ValueError(f"spec {text!r}: {key!r} is given twice; give it once")
    return build(name, {**given, **fields})


def _one_to_string(method: Method) -> str:
    parts = []
    for field in settable(method):
        value = getattr(method, field.name)
        if value != field.default:
            parts.append(f"{field.name}={str(value).replace(' ', '')}")
    return method.name + (":" + ",".join(parts) if parts else "")
