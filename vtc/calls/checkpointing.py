"""Gradient checkpointing of transformers: what a model gives its checkpoint function to run, and again in backward."""

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

_FUNCTION = "_gradient_checkpointing_func"  # of a module, since gradient_checkpointing_enable

#: Called with the checkpoint function, what it is given to run, that one's arguments, and its own options.
Around = Callable[[Callable[..., Any], Callable[..., Any], tuple, dict[str, Any]], Any]


@dataclass(frozen=True)
class Checkpointed:
    """What a checkpoint function is given to run.

    Attributes:
        module: whose call, or forward, it is.
        call: that, without the arguments that are bound to it.
        kwargs: these.
        hooks: whether the module's hooks run in it; later releases run them outside, once.
    """

    module: nn.Module
    call: Callable[..., Any]
    kwargs: dict[str, Any]
    hooks: bool

    @classmethod
    def of(cls, function: Callable[..., Any]) -> "Checkpointed":
        """Read it from the function.

        Raises:
            RuntimeError: it is neither a module's call nor its forward.
        """
        bound = function if isinstance(function, functools.partial) else functools.partial(function)
        owner = getattr(bound.func, "__self__", None)
        if isinstance(owner, nn.Module) and not bound.args:
            return cls(owner, bound.func, bound.keywords, bound.func.__name__ != "forward")
        if len(bound.args) == 1 and isinstance(bound.args[0], nn.Module):
            return cls(bound.args[0], functools.partial(bound.func, *bound.args), bound.keywords, False)
        raise RuntimeError(
            f"vtc: a layer is checkpointed as {function!r}, and which module that calls is not known; run `vtc doctor` "
            "or call model.gradient_checkpointing_disable()"
        )


def see_checkpoints(modules: Iterable[nn.Module], around: Around) -> list[Callable[[], None]]:
    """Put `around` around the checkpoint function of each module that has one of its own.

    Returns:
        For each that is new, what takes it away again.
    """
    return [_put(module, around) for module in modules if _unseen(vars(module).get(_FUNCTION))]


def _unseen(function: Any) -> bool:
    return function is not None and getattr(function, "sees", False) is not True


def _put(module: nn.Module, around: Around) -> Callable[[], None]:
    original = vars(module)[_FUNCTION]

    def seen(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        return around(original, function, args, options)

    seen.sees = True  # type: ignore[attr-defined]
    object.__setattr__(module, _FUNCTION, seen)

    def undo() -> None:
        if vars(module).get(_FUNCTION) is seen:
            object.__setattr__(module, _FUNCTION, original)

    return undo


def calls_layers_again(decoder: nn.Module) -> bool:
    """Whether layers run once more in backward, where the decoder's own call is over."""
    return decoder.training and any(getattr(module, "gradient_checkpointing", False) for module in decoder.modules())


def in_backward() -> bool:
    """Whether a backward pass runs in this thread."""
    return torch._C._current_graph_task_id() != -1
