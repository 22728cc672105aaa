"""Seam 2: hand q and k of chosen attention modules to whoever asked, under every attention implementation.

While a module is listened to, the registries of attention functions tell of every call (`vtc.calls.interface`); the
listener stands on the module itself, so that both go together. Modules nobody listens to run exactly as before.
"""

import math
import threading
import weakref
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vtc.attention.heads import Heads, choose_heads, spread_heads
from vtc.attention.scores import Attention
from vtc.calls import attention as calls
from vtc.calls import interface


@dataclass(frozen=True)
class Change:
    """What a listener wants otherwise in one call of an attention.

    Attributes:
        bias: Tensor [B, S], added to the logits of each key.
        heads: those that are computed.
        mask: BoolTensor [B, 1, Q, S], True may attend: in place of the mask. The attention is then sdpa's, which takes
            any mask.
        output: called with what the heads gave, [B, Q, H, d].
    """

    bias: Tensor | None = None
    heads: Heads | None = None
    mask: Tensor | None = None
    output: Callable[[Tensor], None] | None = None


Listener = Callable[[Attention, dict[str, Any]], Change | None]

_LISTENER, _RESTS = "_vtc_listener", "_vtc_rests"  # on an attention module

_probing = threading.local()


class _Probed(Exception):
    """Leaves a layer once its attention has been seen. Never reaches the user."""

    def __init__(self, attention: Attention):
        super().__init__()
        self.attention = attention


class Tap:
    """Listens to the attention of some modules of one model.

    Args:
        listeners: attention module -> called with the `Attention` and the interface's other keyword arguments.
        resting: those of them to whose listener a compiled call with a single query does not matter.

    Raises:
        ValueError: a module does not go through transformers' attention interface, or has a listener.
    """

    def __init__(self, listeners: dict[nn.Module, Listener], resting: Container[nn.Module] = ()):
        for module in listeners:
            if calls.implementation(getattr(module, "config", None)) is None:
                raise ValueError(
                    f"{type(module).__name__} does not use transformers' attention interface, so its attention cannot "
                    "be read; choose a method that reads no attention, such as 'divprune'"
                )
            if _listener_of(module) is not None:
                raise ValueError(
                    f"a {type(module).__name__} of this model is a part of another one, which is patched; call "
                    "vtc.unpatch on that first"
                )
        self._modules = tuple(listeners)
        found = interface.registries(listeners)
        interface.open_registries(found, _attend)
        self._close = weakref.finalize(self, interface.close_registries, found)  # also where a model is just dropped
        self._close.atexit = False
        for module, listener in listeners.items():
            object.__setattr__(module, _LISTENER, listener)
            object.__setattr__(module, _RESTS, module in resting)

    def close(self) -> None:
        """Stop listening."""
        for module in self._modules:
            if _listener_of(module) is not None:
                object.__delattr__(module, _LISTENER)
                object.__delattr__(module, _RESTS)
        self._close()


def _listener_of(module: nn.Module) -> Listener | None:
    return getattr(module, _LISTENER, None)


@contextmanager
def probing(module: nn.Module) -> Iterator[None]:
    """While open in this thread, the attention of `module` raises as soon as its q and k are known."""
    _probing.module = module
    try:
        yield
    finally:
        _probing.module = None


def is_probing() -> bool:
    """Whether some module's attention raises so in this thread."""
    return getattr(_probing, "module", None) is not None


def probe(layer: nn.Module, attention: nn.Module, *args: Any, **kwargs: Any) -> Attention:
    """The q and k that `layer` would attend with, without running its attention or touching a cache.

    Args:
        layer: a decoder layer.
        attention: its attention module, which must be tapped.
        *args: the layer's arguments.
        **kwargs: the same; the cache must be withheld.
    """
    try:
        with probing(attention):
            layer.forward(*args, **kwargs)
    except _Probed as probed:
        return probed.attention
    raise RuntimeError(f"{type(attention).__name__} did not pass transformers' attention interface while probed")


def _attend(function: Callable[..., Any], module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """What a module gets that calls the attention `function`, after those who listen to it have been told."""
    listener = _listener_of(module)
    if listener is None:
        return function(module, *args, **kwargs)
    if torch.compiler.is_compiling() and getattr(module, _RESTS) and args and args[0].shape[2] == 1:
        return function(module, *args, **kwargs)
    (query, key, value, mask), more = calls.tensors(module, args, kwargs)
    given = calls.settings(module, query.shape[-1], more)
    attention = Attention(query, key, mask=mask, value=value, **vars(given))
    if getattr(_probing, "module", None) is module:
        raise _Probed(attention)
    change = listener(attention, more)
    if change is None:
        return function(module, *args, **kwargs)
    if change.mask is not None and calls.implementation(module.config) == "eager":  # which gives weights
        lowest = torch.finfo(query.dtype).min
        mask = torch.zeros(change.mask.shape, dtype=query.dtype, device=query.device).masked_fill(~change.mask, lowest)
    elif change.mask is not None:
        function, mask = interface.sdpa(), change.mask
    owner: Any = module
    heads, width = query.shape[1], value.shape[-1]
    chosen = change.heads.index if change.heads is not None and change.heads.whole is None else None
    if chosen is not None:
        query, key, value = choose_heads(query, key, value, chosen)
        owner = _View(module, num_key_value_groups=query.shape[1] // key.shape[1])
    if change.bias is not None:
        more = calls.with_scaling(more, attention.scaling)
        query, key, value = _with_bias(query, key, value, attention.scaling, change.bias)
    output, weights = function(owner, query, key, value, mask, **more)
    output = output[..., :width]
    if chosen is not None:
        output = spread_heads(output, chosen, heads)
    elif change.heads is not None:
        output = change.heads.hide(output)
    if weights is not None and change.heads is not None:
        weights = weights.transpose(1, 2)
        weights = change.heads.hide(weights) if chosen is None else spread_heads(weights, chosen, heads)
        weights = weights.transpose(1, 2)
    if change.output is not None:
        change.output(output)
    return output, weights


def _with_bias(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Heads widened by 8, so that every attention implementation adds `bias` [B, S] to the logits of the keys.

    The queries get a power of two there, which undoes most of the scaling, and the keys the bias in two parts, so that
    half precision neither overflows nor rounds.
    """
    factor = 2.0 ** round(-math.log2(scaling))
    wanted = (bias / (scaling * factor)).to(torch.float32)[:, None, :, None]
    coarse = wanted.to(key.dtype)
    fine = (wanted - coarse.float()).to(key.dtype)
    more = torch.cat([coarse, fine], dim=-1).expand(-1, key.shape[1], -1, -1)
    ones = query.new_zeros(*query.shape[:-1], 8)
    ones[..., :2] = factor
    pad = torch.nn.functional.pad
    return torch.cat([query, ones], dim=-1), torch.cat([key, pad(more, (0, 6))], dim=-1), pad(value, (0, 8))


class _View:
    """A module of which some attributes are read otherwise.

    Args:
        module: the module.
        **attributes: what they are read as.
    """

    def __init__(self, module: nn.Module, **attributes: Any):
        self.__dict__.update(attributes)
        self._module = module

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._module, attribute)
