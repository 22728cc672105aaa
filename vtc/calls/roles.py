"""Arguments and outputs by the role that they play, whatever a release of transformers calls them."""

from collections.abc import Callable, Iterator
from typing import Any


class Role:
    """An argument of a call: what it is for, and the names that it goes by.

    Reading gives None where it is not there. Writing goes to the name that the call used, else to the first.

    Args:
        *names: the names, the oldest release's first.
        first: whether it may come as the first positional argument.
    """

    def __init__(self, *names: str, first: bool = False):
        self.names = names
        self.first = first

    def name_in(self, call: "Call") -> str | None:
        """The name under which the call has it; None where it has not, or by position."""
        for name in self.names:
            if name in call.kwargs:
                return name
        return None

    def __get__(self, call: "Call | None", owner: type | None = None) -> Any:
        if call is None:
            return self
        name = self.name_in(call)
        if name is not None:
            return call.kwargs[name]
        return call.args[0] if self.first and call.args else None

    def __set__(self, call: "Call", value: Any) -> None:
        name = self.name_in(call)
        if name is None and self.first and call.args:
            call.args = (value, *call.args[1:])
        else:
            call.kwargs[name or self.names[0]] = value


class Call:
    """The arguments of one call, to be read and changed by role; the originals stay as they are.

    Args:
        args: by position.
        kwargs: by name.
    """

    def __init__(self, args: tuple, kwargs: dict[str, Any]):
        self.args = args
        self.kwargs = dict(kwargs)

    @property
    def given(self) -> tuple[tuple, dict[str, Any]]:
        """The arguments, as a hook returns them."""
        return self.args, self.kwargs

    def has(self, role: Role) -> bool:
        """Whether the call has an argument for a role by name, None included."""
        return role.name_in(self) is not None

    def without(self, *roles: Role) -> dict[str, Any]:
        """The arguments by name, but those for some roles."""
        left_out = {name for role in roles for name in role.names}
        return {name: value for name, value in self.kwargs.items() if name not in left_out}

    def changed(self, change: Callable[[str, Any], Any], *kept: Role) -> "Call":
        """The call with `change(name, value)` in place of every argument but those for the roles `kept`.

        What comes by position behind the first has no name here.
        """
        left_out = {name for role in kept for name in role.names}
        kwargs = {name: v if name in left_out else change(name, v) for name, v in self.kwargs.items()}
        args = tuple(change("a positional argument", value) for value in self.args[1:])
        return type(self)(self.args[:1] + args, kwargs)


class Field:
    """An output of a model: the names that it goes by. Reading gives None where it is not there.

    Args:
        *names: the names, the oldest release's first.
    """

    def __init__(self, *names: str):
        self.names = names

    def __get__(self, output: "Output | None", owner: type | None = None) -> Any:
        if output is None:
            return self
        found = (getattr(output.value, name, None) for name in self.names)
        return next((value for value in found if value is not None), None)

    def __set__(self, output: "Output", value: Any) -> None:
        present = (name for name in self.names if getattr(output.value, name, None) is not None)
        output.value[next(present, self.names[0])] = value


class Output:
    """A model's output, to be read and changed in place.

    Args:
        value: an output class of transformers.
    """

    last = Field("last_hidden_state")
    states = Field("hidden_states")
    cache = Field("past_key_values", "cache")  # renamed by 5.24
    pooled = Field("pooler_output")

    def __init__(self, value: Any):
        self.value = value


def first_of(output: Any) -> Any:
    """A module's output, or the first of several: what a layer, block or attention makes of its input."""
    return output[0] if isinstance(output, tuple) else output


def with_first(output: Any, first: Any) -> Any:
    """An output of a module with another `first`."""
    return (first, *output[1:]) if isinstance(output, tuple) else first


def names_of(*classes: type) -> Iterator[str]:
    """Every name that the roles and fields of some classes go by."""
    for cls in classes:
        for value in vars(cls).values():
            if isinstance(value, Role | Field):
                yield from value.names
