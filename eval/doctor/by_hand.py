"""The untouched model, told to look away from visual tokens: what a compressed run has to equal.

Nothing is gathered, and the cuts, the masks and the caches of vtc have no part in it. Every token stays where it is;
from the layer on in front of which vtc dropped it, no other token sees it, by the layer's attention mask. Where the
survivors are renumbered, the rotary table is read at their new places.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vtc.calls.attention import implementation
from vtc.calls.decoder import DecoderCall, LayerCall
from vtc.method.base import Method
from vtc.model.adapter import adapter_class
from vtc.tracing import Trace


class NotCheckableError(Exception):
    """There is no right value to compare with; the message says why."""


@dataclass(frozen=True)
class Away:
    """What a decoder layer does not see.

    Attributes:
        dropped: BoolTensor [L]: tokens that nobody but they themselves sees.
        places: LongTensor [L]: where in the rotary table each token is read, of survivors that are renumbered.
    """

    dropped: Tensor
    places: Tensor


def away(trace: Trace, methods: Sequence[Method], length: int) -> list[Away]:
    """What each decoder layer must not see, told by the kept tokens of a trace.

    Args:
        trace: of a batch of one.
        methods: that it is of.
        length: tokens of the prompt, and of the text behind it where there is more.

    Raises:
        NotCheckableError: tokens were merged, so that the untouched model has none that equal them.
    """
    if any(image.merged_into() is not None for image in trace.images) or any(m.kind == "reducer" for m in methods):
        raise NotCheckableError("merged and reduced tokens have no equal in the untouched model")
    packed = {method.kind: method.positions == "packed" for method in methods}
    layers: list[Away] = []
    places = torch.arange(length)
    for layer in range(len(trace.tokens_per_layer)):
        dropped = torch.zeros(length, dtype=torch.bool)
        for image in trace.images:
            dropped[image.source.positions] = True
            dropped[image.source.positions[image.kept(layer)]] = False
        before = layers[-1].dropped if layers else torch.zeros_like(dropped)
        if packed.get("prune" if layer else "selector") and not torch.equal(dropped, before):
            places = ((~dropped).cumsum(0) - 1).clamp_min(0)
        layers.append(Away(dropped, places))
    return layers


@contextmanager
def looking_away(model: Any, layers: Sequence[Away]) -> Iterator[None]:
    """An untouched model whose decoder layers don't see what they must not, until the block ends.

    Raises:
        NotCheckableError: a layer can't be told to look away.
    """
    adapter = adapter_class(model)(model)
    if adapter.recurrent:
        raise NotCheckableError(f"{adapter.family} has layers without attention, which can't look away")
    flash = "flash" in str(implementation(adapter.parts.decoder.config))
    several = [False]  # whether positions have several axes, which every token keeps

    def enter(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        positions = DecoderCall(args, kwargs).positions
        several[0] = isinstance(positions, Tensor) and positions.dim() == 3

    def hook(told: Away) -> Any:
        def before(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
            call = LayerCall(args, kwargs)
            if not call.has(LayerCall.mask):
                raise NotCheckableError("a decoder layer gets no attention mask by name")
            if told.dropped.any():
                call.mask = _masked(call.mask, told.dropped.to(call.hidden.device), flash)
            if not several[0] and not torch.equal(told.places, torch.arange(len(told.places))):
                call.rotary = _moved(call.rotary, told.places)
            return call.given

        return before

    handles = [adapter.parts.decoder.register_forward_pre_hook(enter, with_kwargs=True)]
    handles += [
        layer.register_forward_pre_hook(hook(told), with_kwargs=True)
        for layer, told in zip(adapter.parts.layers, layers, strict=True)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _masked(mask: Any, dropped: Tensor, flash: bool) -> Any:
    """A mask under which the tokens of `dropped` [L] are seen by themselves alone; None is a causal one."""
    length = len(dropped)
    if isinstance(mask, dict):
        return {kind: _masked(each, dropped, flash) for kind, each in mask.items()}
    if flash and mask is None:
        mask = torch.ones(1, length, dtype=torch.bool, device=dropped.device)
    if mask is None:
        mask = torch.ones(1, 1, length, length, dtype=torch.bool, device=dropped.device).tril()
    if not isinstance(mask, Tensor) or mask.shape[-1] != length:
        raise NotCheckableError(f"masks of a decoder layer have a form that is not known ({type(mask).__name__})")
    if mask.dim() == 2:
        return mask.masked_fill(dropped, 0)
    lowest = torch.finfo(mask.dtype).min if mask.is_floating_point() else False
    return mask.masked_fill(dropped & ~torch.eye(length, dtype=torch.bool, device=dropped.device), lowest)


def _moved(rotary: Any, places: Tensor) -> Any:
    """Rotary tables [1, L, ...], one or several, read at `places` [L]."""
    if isinstance(rotary, tuple | list):
        return type(rotary)(_moved(each, places) for each in rotary)
    if not isinstance(rotary, Tensor) or rotary.dim() < 3 or rotary.shape[1] != len(places):
        raise NotCheckableError("survivors are renumbered, and the decoder layers get no rotary tables by name")
    return rotary.index_select(1, places.to(rotary.device))
