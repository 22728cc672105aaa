"""Methods and their fields as controls: what each is, what it may be, and the spec that a change makes."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vtc import spec
from vtc.eval.cli.errors import InputError
from vtc.eval.pages.docstring import describe
from vtc.eval.results.settings import NONE, label
from vtc.method import registry
from vtc.method.base import Method
from vtc.method.fields import choices, settable, takes

#: Units of `keep`, as the control names them.
SHARE, TOKENS, ADAPTIVE = "share", "tokens", "the picture decides"
#: What `keep` becomes where another unit is chosen.
_KEEPS = {SHARE: 0.25, TOKENS: 64, ADAPTIVE: None}


@dataclass(frozen=True)
class Control:
    """One field of one method.

    Attributes:
        stage: which method of the spec it belongs to.
        name: of the field.
        kind: "keep" (a share), "count", "choice", "switch", "whole", "number", or "text" (a literal, as a spec has it).
        value: as it is now; text for "text".
        default: as Python writes it.
        choices: of a "choice".
        about: what the method's docstring says of it.
    """

    stage: int
    name: str
    kind: str
    value: Any
    default: str
    choices: tuple[str, ...]
    about: str

    def read(self, given: Any) -> Any:
        """What a component that shows this control holds, as the field takes it.

        Raises:
            InputError: it holds nothing that the field could take.
        """
        try:
            if self.kind in ("keep", "number"):
                return float(given)
            if self.kind in ("count", "whole"):
                return int(given)
        except (TypeError, ValueError):
            raise InputError(f"{self.name} is {given!r}; give a number") from None
        return spec.value_of(given.strip()) if self.kind == "text" else given


def parse(text: str, most: int) -> list[Method]:
    """The methods of a spec that a visitor gave; an empty one is "none".

    Raises:
        InputError: it is too long or no spec, or names a file or a model: nothing else is read for visitors.
    """
    text = (text or "").strip() or NONE
    if len(text) > most:
        raise InputError(f"spec has {len(text)} characters; at most {most} are read")
    try:
        for part in spec.split(text):
            name, given = spec.read_one(part)
            _check_opens_nothing(registry.method_class(name), given)  # before a method is made, which reads them
        return spec.parse(text)
    except (TypeError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(str(error)) from None


def to_text(methods: Sequence[Method]) -> str:
    """The spec, `keep` always written out."""
    return "+".join(label(method) for method in methods)


def controls(methods: Sequence[Method]) -> list[Control]:
    """The controls of all methods, in the order of their fields."""
    return [_control(stage, method, field) for stage, method in enumerate(methods) for field in settable(method)]


def changed(methods: Sequence[Method], control: Control, given: Any) -> list[Method]:
    """The methods with one field set to what its component holds.

    Raises:
        InputError: the field can't be that.
    """
    return _replaced(methods, control.stage, control.name, control.read(given))


def units(method: Method) -> tuple[str, ...]:
    """The units in which `keep` of a method may be given."""
    return (SHARE, TOKENS, ADAPTIVE) if method.may_adapt else (SHARE, TOKENS)


def unit(method: Method) -> str:
    """The unit in which `keep` of a method is given now."""
    keep = method.keep
    return ADAPTIVE if keep is None else TOKENS if isinstance(keep, int) else SHARE


def in_unit(methods: Sequence[Method], stage: int, chosen: str) -> list[Method]:
    """The methods with `keep` of one given in another unit."""
    return _replaced(methods, stage, "keep", _KEEPS[chosen])


def with_first(methods: Sequence[Method], name: str) -> list[Method]:
    """The methods with another first one, which keeps what the old one kept where both have a budget."""
    new = spec.parse(name)[0]
    old = methods[0]
    if _has_keep(new) and _has_keep(old) and (old.keep is not None or new.may_adapt):
        new = dataclasses.replace(new, keep=old.keep)  # type: ignore[type-var]
    return [new, *methods[1:]]


def with_second(methods: Sequence[Method], name: str) -> list[Method]:
    """The first method, then another; nothing after it for "none"."""
    return [methods[0], *([] if name == NONE else spec.parse(name))]


def first_names() -> list[tuple[str, str]]:
    """Label and name of every method, "none" first, then by kind."""
    kinds = ("selector", "prune", "reducer")
    found = [(f"{name} · {kind}", name) for kind in kinds for name in registry.list_methods(kind) if name != NONE]
    return [("none · the untouched model", NONE), *found]


def second_names() -> list[tuple[str, str]]:
    """Label and name of what may come second: prunes."""
    return [("nothing", NONE), *((name, name) for name in registry.list_methods("prune"))]


def about(method: Method) -> str:
    """What a method's class says of itself, in a sentence."""
    return describe(type(method)).first


def _control(stage: int, method: Method, field: dataclasses.Field) -> Control:
    value, allowed = getattr(method, field.name), choices(method, field.name)
    described = {each.name: each.text for each in describe(type(method)).fields}
    kind = "choice" if allowed else _kind(field.name, value, takes(method, field.name, float))
    shown = str(value).replace(" ", "") if kind == "text" else value
    return Control(stage, field.name, kind, shown, repr(field.default), allowed, described.get(field.name, ""))


def _kind(name: str, value: Any, fractions: bool) -> str:
    if isinstance(value, bool):
        return "switch"
    if not isinstance(value, int | float) or abs(value) > 2**53:  # more than a browser's numbers hold
        return "text"
    if name == "keep":
        return "count" if isinstance(value, int) else "keep"
    return "number" if fractions else "whole"


def _has_keep(method: Method) -> bool:
    return any(field.name == "keep" for field in settable(method))


def _check_opens_nothing(cls: type[Method], given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if isinstance(value, str) and takes(cls, name, str):
            raise InputError(
                f"{name}={value!r} of {cls.name} names a file or a model, which the demo opens for nobody; "
                "leave it out, or use the command line"
            )


def _replaced(methods: Sequence[Method], stage: int, name: str, value: Any) -> list[Method]:
    if stage >= len(methods) or all(field.name != name for field in settable(methods[stage])):
        raise InputError(f"the spec has no {name} there any more; press Enter in it, to see what it has")
    _check_opens_nothing(type(methods[stage]), {name: value})
    try:
        new = dataclasses.replace(methods[stage], **{name: value})  # type: ignore[type-var]
    except (TypeError, ValueError) as error:
        raise InputError(str(error)) from None
    return [*methods[:stage], new, *methods[stage + 1 :]]
