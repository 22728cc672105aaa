"""Arguments and outputs by the role that they play, whatever a release of transformers calls them.

A value is found by its usual name; where that is missing, by what it is (type, dtype, shape), with the words of its
name as a help. What could be two things is refused.
"""

import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

from torch import Tensor, nn

#: Where an argument stands: its place among those by position, or its name.
Key = int | str


def real(*dims: int) -> Callable[[Any], bool]:
    """Tells tensors of real numbers with one of these numbers of dimensions."""
    return lambda value: isinstance(value, Tensor) and value.is_floating_point() and value.dim() in dims


def whole(*dims: int) -> Callable[[Any], bool]:
    """Tells tensors of whole numbers, booleans left out, with one of these numbers of dimensions."""

    def tells(value: Any) -> bool:
        number = isinstance(value, Tensor) and not value.is_floating_point() and "bool" not in str(value.dtype)
        return number and value.dim() in dims

    return tells


class Named:
    """What transformers has a name for, or one in each release.

    Args:
        *names: the names, the oldest release's first.
    """

    def __init__(self, *names: str):
        self.names = names


class Role(Named):
    """An argument of a call: what it is for, the names that it goes by, and what it is.

    Reading gives None where it is not there. Writing goes to where the call has it, else to the parameter that the
    called module has for it.

    Args:
        *names: the names, the oldest release's first.
        like: tells values that can play the role; None: it is known by its names alone.
        words: a pattern that finds the role in a name that is not among `names`.
        sure: whether a value that is the only one of its kind plays the role whatever it is called.
        always: whether its kind tells it even where the signature has a parameter for it.
        first: whether the first positional argument plays it.
    """

    def __init__(
        self,
        *names: str,
        like: Callable[[Any], bool] | None = None,
        words: str = "",
        sure: bool = False,
        always: bool = False,
        first: bool = False,
    ):
        super().__init__(*names)
        self.first = first
        self.like, self.sure, self.always = like, sure or always, always
        self._words = re.compile(words) if words else None
        self._title = names[0]

    def __set_name__(self, owner: type, name: str) -> None:
        self._title = name

    def speaks_of(self, name: str) -> bool:
        """Whether a name, not among the known ones, is one for this role."""
        return self._words is not None and self._words.search(name.lower()) is not None

    def key_in(self, call: "Call") -> Key | None:
        """Where the call has it; None where it has not.

        Raises:
            ValueError: several arguments could be it.
        """
        known = [key for key in call.values if call.label(key) in self.names]
        if known:
            return next((key for key in known if call.values[key] is not None), known[0])
        if self.first and 0 in call.values:
            return 0
        like = self.like
        if like is None or (not self.always and not set(self.names).isdisjoint(call.parameters)):
            return None  # there is a parameter for it, which the call leaves out
        free = [key for key in call.values if not call.is_known(key)]
        named = [key for key in free if self.speaks_of(call.label(key))]
        fits = [key for key in named if like(call.values[key])]
        if not fits and self.sure:
            fits = [key for key in free if like(call.values[key])]
        if len(fits) > 1:
            names = ", ".join(map(call.label, fits))
            raise ValueError(
                f"{call.called}: which of the arguments {names} is the {self._title} is not known to vtc, which knows "
                f"it as {' or '.join(self.names)}; run `vtc doctor`, or unpatch the model for this call"
            )
        if fits:
            return fits[0]
        empty = [key for key in named if call.values[key] is None]
        if not empty:
            self._check_nameless(call, [key for key in free if call.is_nameless(key)])
        return empty[0] if len(empty) == 1 else None

    def _check_nameless(self, call: "Call", keys: list[Key]) -> None:
        """Refuse arguments that could play the role and have no name that tells.

        Raises:
            ValueError: there are some.
        """
        if any(self.like is not None and self.like(call.values[key]) for key in keys):
            raise ValueError(
                f"{call.called} was called by position, and its signature does not tell which argument is the "
                f"{self._title}; run `vtc doctor`, or unpatch the model for this call"
            )

    def parameter_of(self, call: "Call") -> str:
        """The parameter that the called module has for it.

        Raises:
            ValueError: it has none by a name that tells.
        """
        for names in (self.names, [name for name in call.parameters if self.speaks_of(name)]):
            found = [name for name in names if name in call.parameters]
            if found:
                return found[0]
        if not call.parameters:
            self._check_nameless(call, [key for key in call.values if not call.is_known(key)])
            return self.names[0]
        raise ValueError(
            f"{call.called} takes no {self._title} by a name that vtc knows ({' or '.join(self.names)}); its arguments "
            f"are {', '.join(call.parameters)}. Run `vtc doctor`, or unpatch the model for this call"
        )

    def __get__(self, call: "Call | None", owner: type | None = None) -> Any:
        if call is None:
            return self
        key = self.key_in(call)
        return None if key is None else call.values[key]

    def __set__(self, call: "Call", value: Any) -> None:
        key = self.key_in(call)
        call.values[self.parameter_of(call) if key is None else key] = value


class Call:
    """The arguments of one call, to be read and changed by role; the originals stay as they are.

    Args:
        args: by position.
        kwargs: by name.
        module: what is called; its signature names what comes by position.
    """

    def __init__(self, args: tuple, kwargs: Mapping[str, Any], module: nn.Module | None = None):
        self.values: dict[Key, Any] = {}
        self.values.update(enumerate(args))
        self.values.update(kwargs)
        self.module = module
        self.parameters = parameters(module)

    @property
    def called(self) -> str:
        """The name of what is called."""
        return type(self).__name__ if self.module is None else type(self.module).__name__

    @property
    def given(self) -> tuple[tuple, dict[str, Any]]:
        """The arguments, as a hook returns them."""
        args = tuple(value for key, value in self.values.items() if isinstance(key, int))
        return args, self.named

    @property
    def named(self) -> dict[str, Any]:
        """Those by name."""
        return {key: value for key, value in self.values.items() if isinstance(key, str)}

    def label(self, key: Key) -> str:
        """The name of an argument; of one by position, that of the parameter."""
        if isinstance(key, str):
            return key
        return self.parameters[key] if key < len(self.parameters) else f"argument {key}"

    def is_known(self, key: Key) -> bool:
        """Whether an argument goes by a name that one of this call's roles knows."""
        return self.label(key) in _known(type(self))  # type: ignore[arg-type]

    def is_nameless(self, key: Key) -> bool:
        """Whether an argument comes by position, and the signature has no name for it."""
        return isinstance(key, int) and key >= len(self.parameters)

    def has(self, role: Role) -> bool:
        """Whether the call has an argument for a role, None included."""
        return role.key_in(self) is not None

    def without(self, *roles: Role) -> dict[Key, Any]:
        """The arguments but those for some roles."""
        left_out = {role.key_in(self) for role in roles}
        return {key: value for key, value in self.values.items() if key not in left_out}

    def copy(self) -> Self:
        """The same arguments, to be changed apart."""
        new = object.__new__(type(self))
        new.__dict__.update(self.__dict__, values=dict(self.values))
        return new

    def changed(self, change: Callable[[str, Any], Any], *kept: Role) -> "Call":
        """The call with `change(name, value)` in place of every argument but those for the roles `kept`."""
        new = self.copy()
        new.values.update({key: change(self.label(key), value) for key, value in self.without(*kept).items()})
        return new


@functools.cache
def _known(cls: Any) -> frozenset[str]:
    return frozenset(names_of(*cls.__mro__))


def parameters(module: nn.Module | None) -> tuple[str, ...]:
    """The names of the parameters of a module's forward, in order; those behind * and ** left out."""
    return _parameters(type(module).forward) if module is not None else ()


@functools.lru_cache(maxsize=512)
def _parameters(forward: Callable[..., Any]) -> tuple[str, ...]:
    found = list(inspect.signature(forward).parameters.values())[1:]
    return tuple(p.name for p in found if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD))


def is_cache(value: Any) -> bool:
    """Whether a value is a cache: of transformers, or one that can be asked and filled as these."""
    if isinstance(value, Tensor | dict | list | tuple | str | bool | int | float | type(None)):
        return False
    return any(cls.__name__ == "Cache" for cls in type(value).__mro__) or (
        callable(getattr(value, "update", None)) and hasattr(value, "get_seq_length")
    )


def names_of(*classes: type) -> Iterator[str]:
    """Every name that the roles and fields of some classes go by."""
    for cls in classes:
        for value in vars(cls).values():
            if isinstance(value, Named):
                yield from value.names
