"""How a model is made to speak another convention: its modules get classes of their own for the length of a `with`.

What stands on both sides of a call goes on to say what transformers says today; only what passes between them, and what
hooks on the called module see, is of the future. Nothing is computed otherwise.
"""

import ast
import functools
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, make_dataclass
from functools import cache
from typing import Any

from torch import nn
from transformers.utils import ModelOutput

Arguments = tuple[tuple, dict[str, Any]]
Shim = AbstractContextManager[None]


@dataclass(frozen=True)
class Parts:
    """Where things are in the models of these tests, told by today's names."""

    head: Any

    @property
    def composite(self) -> Any:
        return self.head.model

    @property
    def decoder(self) -> Any:
        return self.composite.language_model

    @property
    def layers(self) -> nn.ModuleList:
        return self.decoder.layers

    @property
    def attentions(self) -> list[nn.Module]:
        return [layer.self_attn for layer in self.layers]

    @property
    def tower(self) -> Any:
        return getattr(self.composite, "vision_tower", None) or self.composite.visual

    @property
    def blocks(self) -> nn.ModuleList:
        return max((m for m in self.tower.modules() if isinstance(m, nn.ModuleList)), key=len)

    def of(self, part: str) -> list[Any]:
        """The modules of a part, which is the name of a property."""
        found = getattr(self, part)
        return list(found) if isinstance(found, (list, nn.ModuleList)) else [found]


@contextmanager
def subclassed(module: nn.Module, **members: Any) -> Iterator[None]:
    """`module` with a class of its own that has `members`, and its old name."""
    cls = type(module)
    named = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
    module.__class__ = type(cls.__name__, (cls,), named | members)
    try:
        yield
    finally:
        module.__class__ = cls


@contextmanager
def every(*shims: Shim) -> Iterator[None]:
    """All of them at once."""
    with ExitStack() as stack:
        for shim in shims:
            stack.enter_context(shim)
        yield


class Gone:
    """A member that is not there any more."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        raise AttributeError(f"{owner} has no attribute {self.name!r}")


# ---------------------------------------------------------------- calls


@dataclass
class Convention:
    """Another way of calling a module.

    Attributes:
        to: (today's signature, today's args, kwargs) -> the future's (args, kwargs).
        back: (today's signature, the future's args, kwargs) -> today's.
        out: today's output -> the future's.
        home: the future's output -> today's.
        signature: today's signature of `forward` -> the future's; None: it hides behind *args, **kwargs.
        hooks: whether `nn.Module.__call__` is gone through, so that hooks run.
    """

    to: Callable[..., Arguments] = lambda today, args, kwargs: (args, kwargs)
    back: Callable[..., Arguments] = lambda today, args, kwargs: (args, kwargs)
    out: Callable[[Any], Any] = lambda output: output
    home: Callable[[Any], Any] = lambda output: output
    signature: Callable[[inspect.Signature], inspect.Signature] | None = lambda signature: signature
    hooks: bool = True


@contextmanager
def speaking(module: nn.Module, convention: Convention) -> Iterator[None]:
    """`module` called in another convention."""
    cls, today, first = type(module), inspect.signature(module.forward), []
    capturing = {key: hook for key, hook in module._forward_hooks.items() if "capturing" in hook.__qualname__}

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        first[:] = [*args, *kwargs.values()][:1]
        args, kwargs = convention.to(today, args, kwargs)
        output = cls.__call__(self, *args, **kwargs) if convention.hooks else self.forward(*args, **kwargs)
        return convention.home(output)

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = convention.back(today, args, kwargs)
        return convention.out(cls.forward(self, *args, **kwargs))

    def tolerant(hook: Callable[..., Any]) -> Callable[..., Any]:
        """transformers' own hook that records hidden states, which reads a first argument by position."""
        return lambda module, args, output: hook(module, args or tuple(first), output)

    if convention.signature is not None:
        functools.update_wrapper(forward, cls.forward)
        own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        future = convention.signature(today)
        forward.__signature__ = future.replace(parameters=[own, *future.parameters.values()])
    module._forward_hooks.update({key: tolerant(hook) for key, hook in capturing.items()})
    try:
        with subclassed(module, __call__=__call__, forward=forward):
            yield
    finally:
        module._forward_hooks.update(capturing)


def by_position(today: inspect.Signature) -> list[str]:
    """The names of the arguments that may come by position."""
    return [name for name, parameter in today.parameters.items() if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]


def named(today: inspect.Signature, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments by name, those by position first."""
    given = dict(zip(by_position(today), args))
    if both := given.keys() & kwargs.keys():
        raise TypeError(f"got multiple values for argument {min(both)!r}")
    return given | kwargs


def renamed(opaque: bool = False, **names: str) -> Convention:
    """Arguments go by new names, by name; the old ones are swallowed by the **kwargs that most of transformers has."""
    old = {new: name for name, new in names.items()}

    def to(today: inspect.Signature, args: tuple, kwargs: dict[str, Any]) -> Arguments:
        if not names.keys().isdisjoint(by_position(today)[: len(args)]):
            args, kwargs = (), named(today, args, kwargs)
        return args, {names.get(name, name): value for name, value in kwargs.items()}

    def back(today: inspect.Signature, args: tuple, kwargs: dict[str, Any]) -> Arguments:
        return args, {old.get(name, name): value for name, value in kwargs.items() if name not in names}

    def signature(today: inspect.Signature) -> inspect.Signature:
        return today.replace(parameters=[p.replace(name=names.get(n, n)) for n, p in today.parameters.items()])

    return Convention(to, back, signature=None if opaque else signature)


def all_by_name() -> Convention:
    """Every argument by the name that it has."""
    return Convention(lambda today, args, kwargs: ((), named(today, args, kwargs)))


def positional(upto: str, opaque: bool = False) -> Convention:
    """Arguments up to and including one by position."""

    def to(today: inspect.Signature, args: tuple, kwargs: dict[str, Any]) -> Arguments:
        given = named(today, args, kwargs)
        order = by_position(today)
        args = tuple(given.pop(name, today.parameters[name].default) for name in order[: order.index(upto) + 1])
        return args, given

    return Convention(to, signature=None if opaque else lambda today: today)


def first(name: str) -> Convention:
    """One argument moves to the first place, and comes by position."""

    def to(today: inspect.Signature, args: tuple, kwargs: dict[str, Any]) -> Arguments:
        given = named(today, args, kwargs)
        return (given.pop(name, None),), given

    def signature(today: inspect.Signature) -> inspect.Signature:
        rest = [parameter for own, parameter in today.parameters.items() if own != name]
        return today.replace(parameters=[today.parameters[name], *rest])

    def back(today: inspect.Signature, args: tuple, kwargs: dict[str, Any]) -> Arguments:
        return (), named(signature(today), args, kwargs)

    return Convention(to, back, signature=signature)


def without(name: str, make: Callable[[Any, dict[str, Any]], Any] = lambda kept, kwargs: kept) -> Convention:
    """An argument is not handed over: the module has it from elsewhere.

    Args:
        name: of the argument.
        make: (the argument of today's call, the call's arguments) -> what the module takes.
    """
    kept: list[Any] = []

    def to(today: inspect.Signature, args: tuple, kwargs: dict[str, Any]) -> Arguments:
        given = named(today, args, kwargs)
        kept[:] = [given.pop(name, None)]
        count = next((place for place, own in enumerate(by_position(today)[: len(args)]) if own == name), len(args))
        return args[:count], {own: value for own, value in given.items() if own not in by_position(today)[:count]}

    def back(today: inspect.Signature, args: tuple, kwargs: dict[str, Any]) -> Arguments:
        given = {own: value for own, value in named(today, args, kwargs).items() if own != name}
        return (), given | {name: make(kept[0], given)}

    def signature(today: inspect.Signature) -> inspect.Signature:
        return today.replace(parameters=[p for own, p in today.parameters.items() if own != name])

    return Convention(to, back, signature=signature)


def changed(name: str, to: Callable[[Any], Any], back: Callable[[Any], Any]) -> Convention:
    """An argument has another form; None stays None."""

    def change(how: Callable[[Any], Any]) -> Callable[..., Arguments]:
        def apply(today: inspect.Signature, args: tuple, kwargs: dict[str, Any]) -> Arguments:
            given = named(today, args, kwargs)
            if given.get(name) is not None:
                given[name] = how(given[name])
            names = by_position(today)[: len(args)]
            return tuple(given.pop(own) for own in names), given

        return apply

    return Convention(change(to), change(back))


# ---------------------------------------------------------------- outputs


def output_renamed(**names: str) -> Convention:
    """Fields of an output class go by new names."""
    old = {new: name for name, new in names.items()}

    def home(output: Any) -> Any:
        known = {name: getattr(output, name) for name in type(output).__dataclass_fields__}
        return type(output).today(**{old.get(name, name): value for name, value in known.items()})

    def out(output: Any) -> Any:
        return _other_class(type(output), tuple(names.items()))(
            **{names.get(name, name): value for name, value in vars(output).items()}
        )

    return Convention(out=out, home=home)


@cache
def _other_class(today: type, names: tuple[tuple[str, str], ...]) -> type:
    fields = [(dict(names).get(name, name), Any, None) for name in today.__dataclass_fields__]
    made = make_dataclass(f"Other{today.__name__}", fields, bases=(ModelOutput,))
    made.today = today
    return made


def other_form(to: Callable[[Any], Any], values: Callable[[Any], Any]) -> Convention:
    """An output in another form.

    Args:
        to: today's output class -> the other form.
        values: the other form -> the values of today's fields that are not None, in order.
    """
    kept: list[Any] = []

    def out(output: Any) -> Any:
        kept[:] = [type(output), list(output.keys())]
        return to(output)

    return Convention(out=out, home=lambda output: kept[0](**dict(zip(kept[1], values(output)))))


def joined(*conventions: Convention) -> Convention:
    """Conventions one in another, the first nearest to the module."""

    def through(steps: list[Callable[..., Any]]) -> Callable[[Any], Any]:
        return lambda output: functools.reduce(lambda value, step: step(value), steps, output)

    def arguments(steps: list[Callable[..., Arguments]]) -> Callable[..., Arguments]:
        return lambda today, args, kwargs: functools.reduce(lambda g, step: step(today, *g), steps, (args, kwargs))

    backwards = conventions[::-1]
    return Convention(
        arguments([one.to for one in conventions]),
        arguments([one.back for one in backwards]),
        through([one.out for one in conventions]),
        through([one.home for one in backwards]),
        lambda today: functools.reduce(lambda signature, one: one.signature(signature), conventions, today),
    )


# ---------------------------------------------------------------- sources


def rewritten(module: Any, method: str, *changes: tuple[str, str], **names: Any) -> Callable[..., Any]:
    """A method of `module` with its source changed: (pattern, replacement) each, which must occur.

    Args:
        module: has the method.
        method: its name.
        *changes: regular expressions and what stands in their place.
        **names: what the new source may use.
    """
    raw = inspect.unwrap(getattr(type(module), method))
    source = textwrap.dedent(inspect.getsource(raw))
    for pattern, replacement in changes:
        source, count = re.subn(pattern, replacement, source)
        assert count, f"{method} has no {pattern!r}"
    tree = ast.parse(source)
    function: Any = tree.body[0]
    function.decorator_list = [d for d in function.decorator_list if "auto_docstring" not in ast.unparse(d)]
    space = {**raw.__globals__, **names}
    exec(compile(tree, inspect.getfile(raw), "exec"), space)
    return space[method]


@contextmanager
def unnamed(cls: type, name: str, new: str | None = None) -> Iterator[None]:
    """What objects of `cls` have under a name goes by another, which transformers uses; the old is gone for others.

    What others define under the old name is not called.

    Args:
        cls: of transformers.
        name: of a method or attribute.
        new: name of the method; None: nobody else can name the attribute.
    """

    def __getattribute__(self: Any, wanted: str) -> Any:
        if wanted == name:
            if not sys._getframe(1).f_globals["__name__"].startswith(("transformers", "future")):
                raise AttributeError(f"{cls.__name__!r} object has no attribute {name!r}")
            wanted = new or name
        return object.__getattribute__(self, wanted)

    theirs = [own for own in (cls, *_subclasses(cls)) if own.__module__.startswith("transformers")]
    holders = [own for own in theirs if new is not None and name in vars(own)]
    cls.__getattribute__ = __getattribute__
    for own in holders:
        setattr(own, new, vars(own)[name])
    try:
        yield
    finally:
        del cls.__getattribute__
        for own in holders:
            delattr(own, new)


def _subclasses(cls: type) -> list[type]:
    return [deeper for sub in cls.__subclasses__() for deeper in (sub, *_subclasses(sub))]
