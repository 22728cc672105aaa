"""What methods asked to see: attention of the tower and of the decoder, and what decoder modules take and give."""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vtc.inside import Inside
from vtc.method import Prune
from vtc.scores import Attention, attention_received, attention_rows
from vtc.tap import Listener

if TYPE_CHECKING:
    from vtc.seam import Seam


def tower_listeners(seam: "Seam") -> dict[nn.Module, Listener]:
    """Tower attention -> what reduces it to one value per patch while the tower runs."""

    def hear(block: int, attention: Attention, kwargs: dict[str, Any]) -> None:
        scores = seam.encoding.scores
        with torch.no_grad():
            if block in seam.needs.received:
                values = _received(attention, kwargs.get("cu_seq_lens_q"))
                scores.setdefault(("received", block), []).append(values)
            if block in seam.needs.cls:
                row = attention_rows(attention.query[:, :, :1], attention.key, attention.scaling)
                scores.setdefault(("cls", block), []).append(row[:, :, 0].mean(dim=1))

    blocks = sorted({*seam.needs.received, *seam.needs.cls})
    return {seam.adapter.attention(seam.parts.blocks[block]): functools.partial(hear, block) for block in blocks}


def decoder_listeners(seam: "Seam") -> dict[nn.Module, Listener]:
    """Decoder attention -> what hands it to the prunes that watch it; those that are probed have no watcher."""

    def hear(layer: int, prunes: list[Prune], attention: Attention, kwargs: dict[str, Any]) -> None:
        inside = _before_a_prune(seam, layer)
        if inside is not None:
            for prune in prunes:
                with torch.no_grad():
                    prune.on_attention(layer, attention, inside.memory[id(prune)])

    depth = len(seam.parts.layers)
    watchers: dict[int, list[Prune]] = {
        layer: [] for layer, (prune, _) in seam.prune_at.items() if prune.watch(depth).probe
    }
    for prune in seam.prunes:
        for layer in prune.watch(depth).attention:
            watchers.setdefault(seam.parts.layer(layer, prune.name), []).append(prune)
    return {
        seam.adapter.attention(seam.parts.layers[layer]): functools.partial(hear, layer, prunes)
        for layer, prunes in watchers.items()
    }


def module_hooks(seam: "Seam") -> list[tuple[nn.Module, Callable[..., None]]]:
    """(module, forward hook) for the attention and MLP modules that prunes watch."""

    def see(prune: Prune, layer: int, name: str, _: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        inside = _before_a_prune(seam, layer)
        if inside is not None:
            before = args[0] if args else kwargs["hidden_states"]
            after = (output[0] if isinstance(output, tuple) else output).reshape(before.shape)
            valid = inside.now.cut.valid.to(before.device)
            with torch.no_grad():
                prune.on_modules(layer, name, before, after, valid, inside.memory[id(prune)])

    hooks: list[tuple[nn.Module, Callable[..., None]]] = []
    for prune in seam.prunes:
        for layer in prune.watch(len(seam.parts.layers)).modules:
            module = seam.parts.layers[seam.parts.layer(layer, prune.name)]
            for name, part in (("attention", seam.adapter.attention(module)), ("mlp", seam.adapter.mlp(module))):
                hooks.append((part, functools.partial(see, prune, layer, name)))
    return hooks


def _before_a_prune(seam: "Seam", layer: int) -> Inside | None:
    """The decoder call of this thread, if what happens in `layer` may matter to a prune of it."""
    inside = seam.running.inside if seam.running is not None else None
    return inside if inside is not None and inside.prunes_ahead(layer) else None


def _received(attention: Attention, boundaries: Tensor | None) -> Tensor:
    """Attention received [sequences, P], or [1, total] where sequences of several lengths are packed in one call."""
    if boundaries is None:
        mask = attention.mask if attention.mask is not None and attention.mask.dim() == 4 else None
        return attention_received(attention.query, attention.key, attention.scaling, mask)
    parts = []
    for begin, end in zip(boundaries[:-1].tolist(), boundaries[1:].tolist()):
        query, key = attention.query[:, :, begin:end], attention.key[:, :, begin:end]
        parts.append(attention_received(query, key, attention.scaling))
    return torch.cat(parts, dim=1)
