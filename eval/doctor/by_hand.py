"""The untouched model, fed by hand: what a compressed run has to equal.

What selectors dropped is left out of the decoder's input. What prunes dropped stays where it is, and from their layers
on no other token sees it, by the layer's attention mask; where they renumber, rotary tables are read at the new places.
The cuts, masks and caches of vtc have no part in it: only the kept tokens of its trace do.
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
class LayerView:
    """What a decoder layer sees of the n tokens that the decoder is fed with.

    Attributes:
        dropped: BoolTensor [n]: tokens that nobody but they themselves sees.
        places: LongTensor [n]: where in the rotary tables each token is read.
    """

    dropped: Tensor
    places: Tensor


@dataclass(frozen=True)
class Feed:
    """What the untouched decoder is fed with, of L tokens: a prompt, and what was generated behind it.

    Attributes:
        fed: LongTensor [n]: the tokens, ascending.
        visual: LongTensor: the visual ones among them, as indices of all visual tokens.
        renumbered: whether their positions are without gaps (never on several axes).
        layers: for each layer what it sees; none: everything.
        generated: of the last tokens, how many were generated: no token in front of them sees them.
    """

    fed: Tensor
    visual: Tensor
    renumbered: bool
    layers: Sequence[LayerView]
    generated: int = 0


def feed(trace: Trace | None, methods: Sequence[Method], length: int, generated: int) -> Feed:
    """What a trace says that was kept.

    Args:
        trace: of a batch of one; None: everything was.
        methods: that it is of.
        length: tokens of the prompt and behind it.
        generated: those behind it.

    Raises:
        NotCheckableError: tokens were merged, so that the untouched model has none that equal them.
    """
    if trace is None:
        return Feed(torch.arange(length), torch.empty(0, dtype=torch.long), False, (), generated)
    if any(image.merged_into() is not None for image in trace.images) or any(m.kind == "reducer" for m in methods):
        raise NotCheckableError("merged and reduced tokens have no equal in the untouched model")
    packed = {method.kind: method.positions == "packed" for method in methods}
    alive = [_alive(trace, length, layer) for layer in range(len(trace.tokens_per_layer))]
    fed, places, layers = alive[0].nonzero()[:, 0], torch.arange(int(alive[0].sum())), list[LayerView]()
    for before, now in zip([alive[0], *alive], alive):
        if packed.get("prune") and not torch.equal(before, now):
            places = (now[fed].cumsum(0) - 1).clamp_min(0)
        layers.append(LayerView(~now[fed], places))
    positions = torch.cat([image.source.positions for image in trace.images]).sort().values
    visual = alive[0][positions].nonzero()[:, 0]
    return Feed(fed, visual, packed.get("selector", False) and len(fed) < length, layers, generated)


def _alive(trace: Trace, length: int, layer: int) -> Tensor:
    """BoolTensor [length]: the tokens that enter a layer."""
    alive = torch.ones(length, dtype=torch.bool)
    for image in trace.images:
        alive[image.source.positions] = False
        alive[image.source.positions[image.kept(layer)]] = True
    return alive


@contextmanager
def fed(model: Any, told: Feed, length: int, visual: int) -> Iterator[None]:
    """An untouched model that feeds its decoder as it is told, until the block ends; its logits are then [1, n, V].

    Args:
        model: not patched.
        told: what the decoder is fed with.
        length: tokens of the inputs, batch of one.
        visual: those of them that are visual.

    Raises:
        NotCheckableError: a layer can't be told what it sees.
    """
    adapter = adapter_class(model)(model)
    flash = "flash" in str(implementation(adapter.parts.decoder.config))
    several = [False]  # whether positions have several axes, which every token keeps

    def enter(decoder: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        call = DecoderCall(args, kwargs, decoder)
        several[0] = isinstance(call.positions, Tensor) and call.positions.dim() == 3
        if len(told.fed) == length:
            return None
        new = call.changed(lambda _, value: _left(value, told, length, visual))
        assert isinstance(new, DecoderCall)
        if call.positions is None and not told.renumbered:
            new.positions = told.fed[None].to(call.embeds.device)
        elif call.positions is not None and told.renumbered and not several[0]:
            new.positions = call.positions[:, : len(told.fed)]
        return new.given

    def hook(view: LayerView) -> Any:
        def before(layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
            call = LayerCall(args, kwargs, layer)
            if not call.has(LayerCall.mask):
                raise NotCheckableError("a decoder layer gets no attention mask by name")
            call.mask = _masked(call.mask, _unseen(view.dropped, told.generated).to(call.hidden.device), flash)
            if not several[0] and not torch.equal(view.places, torch.arange(len(view.places))):
                call.rotary = _moved(call.rotary, view.places)
            return call.given

        return before

    views = told.layers or [LayerView(torch.zeros(length, dtype=torch.bool), torch.arange(length))] * len(
        adapter.parts.layers
    )
    handles = [adapter.parts.decoder.register_forward_pre_hook(enter, with_kwargs=True)]
    try:
        for index, (layer, view) in enumerate(zip(adapter.parts.layers, views, strict=True)):
            if index in adapter.recurrent and view.dropped.any():
                raise NotCheckableError(f"decoder layer {index} has no attention, so it can't be told what it sees")
            if index not in adapter.recurrent and (view.dropped.any() or told.generated):
                handles.append(layer.register_forward_pre_hook(hook(view), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _left(value: Any, told: Feed, length: int, visual: int) -> Any:
    """What is left of a decoder's arguments: of all that is per token, or per visual token, that of those fed."""
    if isinstance(value, dict):
        return {name: _left(each, told, length, visual) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_left(each, told, length, visual) for each in value)
    if not isinstance(value, Tensor):
        return value
    along = [dim for dim in range(value.dim()) if value.shape[dim] == length]
    masks = value.dim() == 4 and value.shape[2] == value.shape[3] == length
    if not along and value.dim() and value.shape[0] == visual:
        return value.index_select(0, told.visual.to(value.device))
    for dim in along if masks else along[:1]:
        value = value.index_select(dim, told.fed.to(value.device))
    return value


def _unseen(dropped: Tensor, generated: int) -> Tensor:
    """BoolTensor [n, n], of queries and keys: keys that are dropped, or come later and were generated; nobody's own."""
    place = torch.arange(len(dropped))
    later = (place >= len(dropped) - generated) & (place > place[:, None])
    return (dropped | later) & (place != place[:, None])


def _masked(mask: Any, unseen: Tensor, flash: bool) -> Any:
    """A mask that hides what is `unseen` [n, n] as well; None is a causal one."""
    length = len(unseen)
    if isinstance(mask, dict):
        return {kind: _masked(each, unseen, flash) for kind, each in mask.items()}
    if flash and mask is None:
        mask = torch.ones(1, length, dtype=torch.bool, device=unseen.device)
    if mask is None:
        mask = torch.ones(1, 1, length, length, dtype=torch.bool, device=unseen.device).tril()
    if not isinstance(mask, Tensor) or mask.shape[-1] != length:
        raise NotCheckableError(f"masks of a decoder layer have a form that is not known ({type(mask).__name__})")
    if mask.dim() == 2:  # causal: the last token sees all that are not dropped
        return mask.masked_fill(unseen[-1], 0)
    return mask.masked_fill(unseen, torch.finfo(mask.dtype).min if mask.is_floating_point() else False)


def _moved(rotary: Any, places: Tensor) -> Any:
    """Rotary tables [1, n, ...], one or several, read at `places` [n]."""
    if isinstance(rotary, tuple | list):
        return type(rotary)(_moved(each, places) for each in rotary)
    if not isinstance(rotary, Tensor) or rotary.dim() < 3 or rotary.shape[1] != len(places):
        raise NotCheckableError("survivors are renumbered, and the decoder layers get no rotary tables by name")
    return rotary.index_select(1, places.to(rotary.device))
