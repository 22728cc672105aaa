"""Seam 2: hand q and k of chosen attention modules to whoever asked, under every attention implementation.

Every attention of transformers >= 5 goes through the attention interface that `config._attn_implementation` names.
`vtc_<name>` delegates to `<name>` and tells the listeners of the calling module first. Modules nobody listens to run
exactly as before; a model is switched over only while a method needs it.
"""

import copy
import math
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vtc.attention.heads import Heads, choose_heads, spread_heads
from vtc.attention.scores import Attention
from vtc.calls import attention as calls


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

PREFIX = "vtc_"

_listeners: "weakref.WeakKeyDictionary[nn.Module, Listener]" = weakref.WeakKeyDictionary()
_taps: dict[int, int] = {}
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

    Raises:
        ValueError: a module does not go through transformers' attention interface.
    """

    def __init__(self, listeners: dict[nn.Module, Listener]):
        self._modules = tuple(listeners)
        configs: dict[int, tuple[Any, str]] = {}
        for module in listeners:
            config = getattr(module, "config", None)
            name = calls.implementation(config)
            if name is None:
                raise ValueError(
                    f"{type(module).__name__} does not use transformers' attention interface, so its attention cannot "
                    "be read; choose a method that reads no attention, such as 'divprune'"
                )
            configs[id(config)] = (config, name.removeprefix(PREFIX))
        self._configs = list(configs.values())
        for config, name in self._configs:
            _register(name)
            calls.set_implementation(config, PREFIX + name)
            _taps[id(config)] = _taps.get(id(config), 0) + 1  # two models may share a config
        _listeners.update(listeners)

    def close(self) -> None:
        """Give the configs back and stop listening."""
        for config, name in self._configs:
            _taps[id(config)] -= 1
            if not _taps[id(config)]:
                del _taps[id(config)]
                if calls.implementation(config) == PREFIX + name:  # else somebody set another since
                    calls.set_implementation(config, name)
        for module in self._modules:
            _listeners.pop(module, None)


def check_tapped(modules: Iterable[nn.Module]) -> None:
    """Refuse an attention implementation that was changed after `vtc.patch`.

    Args:
        modules: those with a listener.

    Raises:
        ValueError: it was.
    """
    for module in modules:
        name = str(calls.implementation(module.config))
        if not name.startswith(PREFIX):
            raise ValueError(
                f"the attention implementation was set to {name!r} after vtc.patch, which cut the method off; "
                "call vtc.unpatch, set it, and patch again"
            )


@contextmanager
def probing(module: nn.Module) -> Iterator[None]:
    """While open in this thread, the attention of `module` raises as soon as its q and k are known."""
    _probing.module = module
    try:
        yield
    finally:
        _probing.module = None


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


def _register(name: str) -> None:
    # Imported here: transformers' modelling modules take seconds, and `import vtc` is to stay fast.
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if PREFIX + name in ALL_ATTENTION_FUNCTIONS:
        return
    if name in ALL_MASK_ATTENTION_FUNCTIONS:
        AttentionMaskInterface.register(PREFIX + name, ALL_MASK_ATTENTION_FUNCTIONS[name])

    def original(used: str, module: nn.Module) -> Callable[..., tuple[Tensor, Tensor | None]]:
        return calls.eager_function(module) if used == "eager" else ALL_ATTENTION_FUNCTIONS[used]

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, kwargs: dict[str, Any]
    ) -> tuple[Tensor, Tensor | None]:
        listener = _listeners.get(module)
        if listener is None:
            return original(name, module)(_as_before(name, module), query, key, value, mask, **kwargs)
        given = calls.settings(module, query.shape[-1], kwargs)
        attention = Attention(query, key, mask=mask, value=value, **vars(given))
        if getattr(_probing, "module", None) is module:
            raise _Probed(attention)
        change = listener(attention, kwargs) or Change()
        used = "sdpa" if change.mask is not None else name
        mask = mask if change.mask is None else change.mask
        owner, heads = _as_before(used, module), query.shape[1]
        chosen = change.heads.index if change.heads is not None and change.heads.whole is None else None
        if chosen is not None:
            query, key, value = choose_heads(query, key, value, chosen)
            owner = _View(module, used, num_key_value_groups=query.shape[1] // key.shape[1])
        if change.bias is not None:
            kwargs = calls.with_scaling(kwargs, attention.scaling)
            query, key, value = _with_bias(query, key, value, attention.scaling, change.bias)
        output, weights = original(used, module)(owner, query, key, value, mask, **kwargs)
        output = output[..., : attention.value.shape[-1]]  # type: ignore[union-attr]
        if chosen is not None:
            output = spread_heads(output, chosen, heads)
        elif change.heads is not None:
            output = change.heads.hide(output)
        if change.output is not None:
            change.output(output)
        return output, weights

    AttentionInterface.register(PREFIX + name, calls.as_interface(attend))


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
    """A module whose config still names the original implementation (flash attention reads it from there).

    Args:
        module: the module.
        name: the implementation.
        **attributes: what else is to be read otherwise.
    """

    def __init__(self, module: nn.Module, name: str, **attributes: Any):
        self.__dict__.update(attributes)
        self._module = module
        config: Any = copy.copy(module.config)
        calls.set_implementation(config, name)
        self.config = config

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._module, attribute)


def _as_before(name: str, module: nn.Module) -> nn.Module | _View:
    return module if name in ("sdpa", "eager") else _View(module, name)
