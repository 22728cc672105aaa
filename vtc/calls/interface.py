"""The registries in which attention modules look up the function that computes them, and who hears what they call.

Every attention of transformers >= 5 asks a registry for the function that its config names, and calls it with itself,
queries, keys, values and a mask. While somebody listens, a registry gives its functions with him in front. No config
is touched, so that a model reads of itself what it always did, and may be given another implementation meanwhile.
"""

import functools
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

#: Called with the function that a registry would have given, the module, and what the module calls that with.
Attend = Callable[..., Any]

_lock = threading.RLock()  # the garbage collector may close in the midst of opening
_open: dict[int, int] = {}
_classes: dict[type, type] = {}


def registries(modules: Iterable[nn.Module]) -> list[Any]:
    """The registries that some attention modules may ask: that of transformers, and those of their own files."""
    # Imported here: transformers' modelling modules take seconds, and `import vtc` is to stay fast.
    from transformers import AttentionInterface
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    files = {cls.__module__ for kind in {type(module) for module in modules} for cls in kind.__mro__}
    names = (value for file in files if file in sys.modules for value in vars(sys.modules[file]).values())
    own = {id(value): value for value in names if isinstance(value, AttentionInterface)}
    return list({id(ALL_ATTENTION_FUNCTIONS): ALL_ATTENTION_FUNCTIONS, **own}.values())


def _heard_class(cls: Any, attend: Attend) -> type:
    """A class of registries, with the layout of `cls`, that give their functions with `attend` in front."""

    def heard(function: Callable[..., Any]) -> Callable[..., Any]:
        return function if plain(function) is not function else functools.partial(attend, function)

    def __getitem__(self: Any, name: str) -> Callable[..., Any]:
        return heard(cls.__getitem__(self, name))

    def get_interface(self: Any, name: str, default: Callable[..., Any]) -> Callable[..., Any]:
        return heard(cls.get_interface(self, name, default))

    return type(cls.__name__, (cls,), {"__getitem__": __getitem__, "get_interface": get_interface})


def plain(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function that a registry holds, from what it gives."""
    if isinstance(function, functools.partial) and getattr(function.func, "attends", False):
        return function.args[0]
    return function


def sdpa() -> Callable[..., Any]:
    """Torch's attention, as the interface calls it. It takes any mask."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    return plain(ALL_ATTENTION_FUNCTIONS["sdpa"])


def open_registries(found: Iterable[Any], attend: Attend) -> None:
    """Let `attend` hear every call that goes through the registries, until as many have closed them."""
    attend.attends = True  # type: ignore[attr-defined]
    with _lock:
        for registry in found:
            _open[id(registry)] = _open.get(id(registry), 0) + 1
            cls = type(registry)
            if cls not in _classes.values():
                if cls not in _classes:
                    _classes[cls] = _heard_class(cls, attend)
                registry.__class__ = _classes[cls]


def close_registries(found: Iterable[Any]) -> None:
    """Undo `open_registries`."""
    with _lock:
        for registry in found:
            _open[id(registry)] -= 1
            if not _open[id(registry)]:
                del _open[id(registry)]
                if type(registry) in _classes.values():  # else somebody else changed it since
                    registry.__class__ = type(registry).__base__
