"""What prunes see of the decoder: its attention, and what its modules take and give."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vtc.attention.heads import Heads
from vtc.attention.scores import Attention
from vtc.attention.tap import Change, Listener
from vtc.calls.decoder import LayerCall
from vtc.calls.outputs import first_of
from vtc.method.prune import Prune
from vtc.model.again import Again
from vtc.ops.host import on
from vtc.seam.composition import Composition
from vtc.seam.layers import Layers

#: Gives the layers of the decoder call that runs in this thread; None where none runs, or it runs untouched.
Running = Callable[[], Layers | None]


def decoder_listeners(composition: Composition, running: Running, again: Again) -> dict[nn.Module, Listener]:
    """Decoder attention -> what hands it to the prunes that watch it; those that are probed have no watcher."""

    def hear(layer: int, attention: Attention, kwargs: dict[str, Any]) -> Change | None:
        if again.memory is not None:
            return again.memory.get(layer)
        layers = running()
        if layers is None:
            return None
        layers.heard.add(layer)
        if layers.recall is not None:
            mask = layers.recall.hear(layer, attention)
            return None if mask is None else Change(mask=mask)
        if layers.has_images:
            attention = layers.arguments.without_room(layer, attention)
        for prune in watchers.get(layer, ()) if layers.prunes_ahead(layer) else ():
            with torch.no_grad():
                prune.on_attention(layers.rows(prune), layers.view.attention(attention), layers.memory[id(prune)])
        change = _heads(layers, layer, pruners.get(layer, []))
        if change is not None:
            layers.changes[layer] = replace(change, output=None)
        return change

    watchers: dict[int, list[Prune]] = {}
    pruners: dict[int, list[Prune]] = {}
    for prune in composition.prunes:
        watch = composition.watch(prune)
        for layer in watch.attention:
            watchers.setdefault(layer, []).append(prune)
        for layer in watch.heads:
            pruners.setdefault(layer, []).append(prune)
    attentions = ((layer, composition.parts.layers[layer]) for layer in composition.heard_layers)
    return {composition.adapter.attention(module): functools.partial(hear, layer) for layer, module in attentions}


def resting(composition: Composition) -> set[nn.Module]:
    """Decoder attention whose listener is done once a prompt is in: no heads are left out, and nothing comes back."""
    if composition.reviver is not None:
        return set()
    busy = {layer for prune in composition.prunes for layer in composition.watch(prune).heads}
    layers = (layer for layer in composition.heard_layers if layer not in busy)
    return {composition.adapter.attention(composition.parts.layers[layer]) for layer in layers}


def _heads(layers: Layers, layer: int, prunes: list[Prune]) -> Change | None:
    """Which heads of `layer` are computed: those chosen now, in decode steps those that prefill chose."""
    if not prunes:
        return None
    if not layers.has_images:
        return Change(heads=layers.heads[layer]) if layer in layers.heads else None
    (prune,) = prunes
    rows, view, memory = layers.rows(prune), layers.view, layers.memory[id(prune)]

    def see(output: Tensor) -> None:
        with torch.no_grad():
            prune.on_heads(rows, view.of(output), memory)

    with torch.no_grad():
        index = prune.heads(rows, memory)
    if index is not None:
        blank = [not count for count in layers.segments.first.visual_counts]  # rows without an image keep what they had
        heads = Heads(index, on(index.device, blank) if any(blank) else None)
        layers.heads[layer] = heads.behind(layers.conversation.heads.get(layer))
    return Change(heads=layers.heads[layer] if index is not None else None, output=see)


def module_hooks(composition: Composition, running: Running) -> list[tuple[nn.Module, Callable[..., None]]]:
    """(module, forward hook) for the attention and MLP modules that prunes watch."""

    def see(prune: Prune, layer: int, name: str, part: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        layers = running()
        if layers is not None and layers.prunes_ahead(layer):  # else it matters to no prune of this call
            before = LayerCall(args, kwargs, part).hidden
            after = layers.view.of(first_of(output).reshape(before.shape))
            before = layers.view.of(before)
            with torch.no_grad():
                prune.on_modules(layers.rows(prune), name, before, after, layers.memory[id(prune)])

    hooks: list[tuple[nn.Module, Callable[..., None]]] = []
    for prune in composition.prunes:
        for layer in composition.watch(prune).modules:
            module = composition.parts.layers[composition.parts.layer(layer, prune.name)]
            for name, part in composition.adapter.parts_of_layer(module).items():
                hooks.append((part, functools.partial(see, prune, layer, name)))
    return hooks
