"""Layers that run once more in backward (gradient checkpointing), where the call that they belong to is over."""

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vtc.attention.tap import is_probing
from vtc.calls.checkpointing import Checkpointed, see_checkpoints
from vtc.model.compiled import exports
from vtc.model.staying import Stays


@dataclass(frozen=True)
class Hooked(Stays):
    """What stands around one layer.

    Attributes:
        before: its forward pre-hook.
        after: its forward hook; None: it has none.
        within: whether `after` is part of what runs again, and is done anew there.
        memory: gives, behind its first run, what makes a memory for each later one: what was done within it and is to
            be done again; never None.
    """

    before: Callable[..., Any]
    after: Callable[..., Any] | None
    memory: Callable[[], Callable[[], Any]]
    within: bool = False


def _nothing() -> None:
    """The memory of a first run."""


class _Thread(threading.local):
    """What a checkpoint function runs in one thread.

    Attributes:
        passive: whether a layer's own hooks have had their turn.
        memory: in backward, that of the layer that runs.
    """

    def __init__(self) -> None:
        self.passive = False
        self.memory: Any = None


class Again(Stays):
    """Lets hooks see each call of a layer once, outside of what runs again, in every release of transformers.

    In backward a layer gets what they made of its arguments, and whoever acts within it finds `memory`.
    """

    def __init__(self) -> None:
        self._thread = _Thread()
        self._layers: dict[nn.Module, Hooked] = {}
        self._undo: list[Callable[[], None]] = []

    @property
    def memory(self) -> Any:
        """In backward, that of the layer that runs; None elsewhere."""
        return self._thread.memory

    def hook(self, layer: nn.Module, hooked: Hooked) -> list[Any]:
        """Put hooks on a layer; their handles."""
        self._layers[layer] = hooked
        handles = [layer.register_forward_pre_hook(self._once(hooked.before), with_kwargs=True)]
        if hooked.after is not None:
            after = hooked.after if hooked.within else self._once(hooked.after)
            handles.append(layer.register_forward_hook(after, prepend=True))
        return handles

    def see(self) -> None:
        """See what is checkpointed from now on: called in each call, since it may have been switched on."""
        self._undo += see_checkpoints(self._layers, self._around)

    def close(self) -> None:
        """Give the checkpoint functions back."""
        while self._undo:
            self._undo.pop()()

    def _once(self, hook: Callable[..., Any]) -> Callable[..., Any]:
        """A hook that keeps still where it had its turn."""

        def outside(*args: Any, **kwargs: Any) -> Any:
            if exports():
                return None
            if not torch.compiler.is_compiling() and self._thread.passive:
                return None
            return hook(*args, **kwargs)

        return outside

    def _around(self, original: Callable[..., Any], function: Callable[..., Any], args: tuple, options: dict) -> Any:
        run = Checkpointed.of(function)
        hooked, module, kwargs = self._layers.get(run.module), run.module, run.kwargs
        if hooked is None or is_probing():
            return original(function, *args, **options)
        if run.hooks:
            args, kwargs = hooked.before(module, args, kwargs) or (args, kwargs)
        call, remember = functools.partial(run.call, **kwargs), _nothing

        def again(*given: Any) -> Any:
            with self._inside(remember()):
                return call(*given)

        output = original(again, *args, **options)
        remember = hooked.memory()
        if not run.hooks or hooked.after is None or hooked.within:
            return output
        changed = hooked.after(module, args, output)
        return output if changed is None else changed

    @contextmanager
    def _inside(self, memory: Any) -> Iterator[None]:
        thread = self._thread
        before = thread.passive, thread.memory
        thread.passive, thread.memory = True, memory
        try:
            yield
        finally:
            thread.passive, thread.memory = before
