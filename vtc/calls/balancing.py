"""The balancing loss of models with experts, which they compute of the router logits that their decoder gives."""

import functools
import inspect
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

ROUTER_LOGITS, LOSS = "router_logits", "aux_loss"  # what a decoder, and a model around it, gives
_FUNCTION, _LOGITS, _MASK = "load_balancing_loss_func", "gate_logits", "attention_mask"  # of a model's file

_lock = threading.RLock()
_open: dict[str, int] = {}


class Routed(tuple):
    """Router logits with a row for every token that the user gave, those that were dropped among them.

    Attributes:
        ran: for each layer, Tensor [tokens, E], those that were routed there.
        balanced: whether a balancing loss was computed of `ran`.
    """

    ran: tuple[Tensor, ...]
    balanced: bool

    def __new__(cls, given: Iterable[Tensor | None], ran: tuple[Tensor, ...]) -> "Routed":
        """The logits given, and those that ran."""
        made = super().__new__(cls, given)
        made.ran, made.balanced = ran, False
        return made

    def __reduce__(self) -> tuple:
        return tuple, (tuple(self),)


def see_losses(modules: Iterable[nn.Module]) -> Callable[[], None]:
    """Let the files of some models compute the balancing loss of those tokens that were routed.

    A model passes the router logits that it got, and a mask of every token that the user gave, to a function of its
    file; of `Routed` ones, that takes those that ran.

    Returns:
        What takes it away again.
    """
    names = {cls.__module__ for module in modules for cls in type(module).__mro__}
    files = sorted(name for name in names if hasattr(sys.modules.get(name), _FUNCTION))
    with _lock:
        for name in files:
            _open[name] = _open.get(name, 0) + 1
            function = getattr(sys.modules[name], _FUNCTION)
            if not hasattr(function, "plain"):
                setattr(sys.modules[name], _FUNCTION, _of_routed(function))
    return functools.partial(_close, files)


def _close(files: list[str]) -> None:
    with _lock:
        for name in files:
            _open[name] -= 1
            if not _open[name]:
                del _open[name]
                function = getattr(sys.modules[name], _FUNCTION)
                setattr(sys.modules[name], _FUNCTION, getattr(function, "plain", function))


def _of_routed(function: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(function)

    @functools.wraps(function)
    def loss(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs)
        logits = given.arguments.get(_LOGITS)
        if isinstance(logits, Routed):
            logits.balanced = True
            given.arguments[_LOGITS] = logits.ran
            given.arguments.pop(_MASK, None)
        return function(*given.args, **given.kwargs)

    loss.plain = function  # type: ignore[attr-defined]
    return loss
