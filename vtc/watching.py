"""What methods asked to see: attention of the tower and of the decoder, and what decoder modules take and give."""

import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vtc import ops
from vtc.host import on
from vtc.inside import Inside
from vtc.method import Prune
from vtc.scores import Attention
from vtc.tap import Change, Heads, Listener
from vtc.visual import Needs

if TYPE_CHECKING:
    from vtc.seam import Seam


def tower_listeners(seam: "Seam") -> dict[nn.Module, Listener]:
    """Tower attention -> what takes note of it while the tower runs, and what a reducer adds to its logits."""

    def hear(block: int, attention: Attention, kwargs: dict[str, Any]) -> Change | None:
        encoding = seam.encoding
        with torch.no_grad():
            for what, values in _seen(seam.needs, block, attention, kwargs):
                encoding.scores.setdefault(what, []).append(values)
        run = encoding.tower
        if run is None or not run.active:
            return None
        return Change(bias=run.hear(attention, block in seam.reducing_at))

    needs = seam.needs
    blocks = {*needs.received, *needs.cls, *needs.keys, *(block for block, _ in needs.observe.values())}
    if seam.reducer is not None:
        blocks |= set(range(len(seam.parts.blocks)))
    return {
        seam.adapter.attention(module): functools.partial(hear, block)
        for block in sorted(blocks)
        for module in seam.parts.blocks_at(block)
    }


def _seen(
    needs: Needs, block: int, attention: Attention, kwargs: dict[str, Any]
) -> Iterator[tuple[tuple[str, int | str], Tensor]]:
    """What a selector wants of one call of a tower block's attention: [sequences, P, ...], CLS included."""
    if block in needs.received:
        yield ("received", block), _received(attention, kwargs.get("cu_seq_lens_q"))
    if block in needs.cls:
        row = ops.attention_rows(attention.query[:, :, :1], attention.key, attention.scaling)
        yield ("cls", block), row[:, :, 0].mean(dim=1)
    if block in needs.keys:
        yield ("keys", block), attention.key.transpose(1, 2)
    for name, (wanted, function) in needs.observe.items():
        if block == wanted:
            yield ("observed", name), function(attention)


def tower_hooks(seam: "Seam") -> list[tuple[nn.Module, Callable[..., None]]]:
    """(module, forward hook) for the blocks, the tower and the projector that a selector wants to see."""

    def see_block(block: int, _: nn.Module, args: tuple, output: Any) -> None:
        hidden = (output[0] if isinstance(output, tuple) else output).detach()
        seam.encoding.scores.setdefault(("hidden", block), []).append(hidden if hidden.dim() == 3 else hidden[None])

    def see_projector(_: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        rows = args[0] if args else next(iter(kwargs.values()))
        seam.encoding.projected = rows.detach() if isinstance(rows, Tensor) and rows.dim() == 3 else None

    def see_tower(_: nn.Module, args: tuple, output: Any) -> None:
        states = getattr(output, "hidden_states", None)
        if states is not None:
            rows = [states[layer][:, 0] for layer in seam.adapter.feature_layers]
            seam.encoding.cls = torch.cat(rows, dim=-1).detach()

    hooks: list[tuple[nn.Module, Callable[..., None]]] = [
        (module, functools.partial(see_block, block))
        for block in seam.needs.hidden
        for module in seam.parts.blocks_at(block)
    ]
    if seam.needs.projection and seam.adapter.projects_rows and seam.adapter.projector is not None:
        hooks.append((seam.adapter.projector, see_projector))
        if seam.parts.has_cls:
            hooks.append((seam.adapter.tower, see_tower))
    return hooks


def decoder_listeners(seam: "Seam") -> dict[nn.Module, Listener]:
    """Decoder attention -> what hands it to the prunes that watch it; those that are probed have no watcher."""

    def hear(layer: int, attention: Attention, kwargs: dict[str, Any]) -> Change | None:
        inside = seam.running.inside if seam.running is not None else None
        if inside is None:
            return None
        if inside.recall is not None:
            mask = inside.recall.hear(layer, attention)
            return None if mask is None else Change(mask=mask)
        for prune in watchers[layer] if inside.prunes_ahead(layer) else ():
            with torch.no_grad():
                prune.on_attention(inside.rows(prune), attention, inside.memory[id(prune)])
        return _heads(inside, layer, pruners[layer])

    depth = len(seam.parts.layers)
    watchers: dict[int, list[Prune]] = {layer: [] for layer in range(depth)}
    pruners: dict[int, list[Prune]] = {layer: [] for layer in range(depth)}
    wanted = {layer for layer, (prune, _) in seam.prune_at.items() if seam.watches[id(prune)].probe}
    for prune in seam.prunes:
        watch = seam.watches[id(prune)]
        for layer in (*watch.attention, *watch.heads):
            wanted.add(seam.parts.layer(layer, prune.name))
        for layer in watch.attention:
            watchers[layer].append(prune)
        for layer in watch.heads:
            pruners[layer].append(prune)
        if prune.revives:
            wanted |= set(range(seam.schedules[id(prune)][0] - 1, depth))
    return {
        seam.adapter.attention(seam.parts.layers[layer]): functools.partial(hear, layer) for layer in sorted(wanted)
    }


def _heads(inside: Inside, layer: int, prunes: list[Prune]) -> Change | None:
    """Which heads of `layer` are computed: those chosen now, in decode steps those that prefill chose."""
    if not prunes:
        return None
    if not inside.has_images:
        return Change(heads=inside.heads[layer]) if layer in inside.heads else None
    (prune,) = prunes
    rows, memory = inside.rows(prune), inside.memory[id(prune)]

    def see(output: Tensor) -> None:
        with torch.no_grad():
            prune.on_heads(rows, output, memory)

    with torch.no_grad():
        index = prune.heads(rows, memory)
    if index is not None:
        blank = [not count for count in inside.segments[0].visual_counts]  # rows without an image keep what they had
        heads = Heads(index, on(index.device, blank) if any(blank) else None)
        inside.heads[layer] = heads.behind(inside.conversation.heads.get(layer))
    return Change(heads=inside.heads[layer] if index is not None else None, output=see)


def module_hooks(seam: "Seam") -> list[tuple[nn.Module, Callable[..., None]]]:
    """(module, forward hook) for the attention and MLP modules that prunes watch."""

    def see(prune: Prune, layer: int, name: str, _: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        inside = _before_a_prune(seam, layer)
        if inside is not None:
            before = args[0] if args else kwargs["hidden_states"]
            after = (output[0] if isinstance(output, tuple) else output).reshape(before.shape)
            with torch.no_grad():
                prune.on_modules(inside.rows(prune), name, before, after, inside.memory[id(prune)])

    hooks: list[tuple[nn.Module, Callable[..., None]]] = []
    for prune in seam.prunes:
        for layer in seam.watches[id(prune)].modules:
            module = seam.parts.layers[seam.parts.layer(layer, prune.name)]
            for name, part in seam.adapter.parts_of_layer(module).items():
                hooks.append((part, functools.partial(see, prune, layer, name)))
    return hooks


def _before_a_prune(seam: "Seam", layer: int) -> Inside | None:
    """The decoder call of this thread, if what happens in `layer` may matter to a prune of it."""
    inside = seam.running.inside if seam.running is not None else None
    return inside if inside is not None and inside.prunes_ahead(layer) else None


def _received(attention: Attention, boundaries: Tensor | None) -> Tensor:
    """Attention received [sequences, P], or [1, total] where sequences of several lengths are packed in one call."""
    mask = attention.mask if boundaries is None and attention.mask is not None and attention.mask.dim() == 4 else None
    query, key, scaling = attention.query, attention.key, attention.scaling
    return ops.attention_received(query, key, scaling, mask=mask, cu_seqlens=boundaries)
