"""Whether a model can do what the prunes of a patch ask."""

from collections.abc import Mapping, Sequence
from typing import Any

from vtc.calls.attention import implementation
from vtc.method.prune import Prune, Watch
from vtc.model.parts import Parts


def check_implementation(prunes: Sequence[Prune], watches: Mapping[int, Watch], parts: Parts) -> None:
    """Refuse an attention implementation that can't do what a prune asks; it may be changed between calls.

    Raises:
        ValueError: it can't.
    """
    used = implementation(getattr(parts.decoder, "config", None)) or ""
    if prunes and "flex" in used:
        names = ", ".join(prune.name for prune in prunes)
        raise ValueError(
            f"{names} can't cut the block masks of flex_attention; call model.set_attn_implementation('sdpa')"
        )
    for prune in prunes:
        if watches[id(prune)].open and "flash" in used:
            raise ValueError(
                f"{prune.name} opens the causal mask of a layer, which {used} can't; call "
                "model.set_attn_implementation('sdpa')"
            )


def check_sharing(
    boundaries: Sequence[int],
    prune_at: Mapping[int, tuple[Prune, int]],
    sources: Mapping[int, int],
    parts: Parts,
) -> None:
    """Refuse boundaries between a layer and the one whose keys it attends to: these would be other tokens'.

    Args:
        boundaries: layers at which a segment begins.
        prune_at: layer -> the prune in front of it.
        sources: layer that makes no keys -> the one whose keys it attends to.
        parts: of the model.

    Raises:
        ValueError: there is one.
    """
    free = [
        layer
        for layer in range(1, len(parts.layers))
        if not any(source < layer <= sharer for sharer, source in sources.items())
    ]
    for layer in sorted({*boundaries} - {0, *free}):
        prune, _ = prune_at.get(layer) or prune_at[layer - 1]
        sharer = next(sharer for sharer, source in sources.items() if source < layer <= sharer)
        raise ValueError(
            f"{prune.name} changes which tokens there are in front of layer {layer}, and the attention of layer "
            f"{sharer} of {parts.family} takes the keys of layer {sources[sharer]}; let {prune.name} act in front of "
            f"{_ranges(free) or 'none'} alone, or choose a selector such as 'divprune'"
        )


def prunes_by_layer(
    prunes: Sequence[Prune], schedules: Mapping[int, tuple[int, ...]], parts: Parts
) -> dict[int, tuple[Prune, int]]:
    """Layer -> the prune that acts in front of it, and which of its stages that is.

    Raises:
        ValueError: a layer out of range or not ascending, an empty schedule, two prunes in front of one layer.
    """
    prune_at: dict[int, tuple[Prune, int]] = {}
    for prune in prunes:
        schedule = schedules[id(prune)]
        if not schedule or list(schedule) != sorted(set(schedule)):
            raise ValueError(f"{prune.name}: schedule {schedule!r} must name one or more layers, ascending")
        for stage, layer in enumerate(schedule):
            parts.layer(layer, prune.name)
            if layer in prune_at:
                other = prune_at[layer][0].name
                raise ValueError(f"{prune.name} and {other} both prune in front of layer {layer}; move one of them")
            prune_at[layer] = prune, stage
    return prune_at


def check_together(
    prunes: Sequence[Prune], schedules: Mapping[int, tuple[int, ...]], watches: Mapping[int, Watch], adapter: Any
) -> None:
    """Refuse prunes that would get into each other's way.

    Raises:
        ValueError: they would.
    """
    for prune in prunes:
        if prune.revives and windowed_layers(adapter):
            raise ValueError(
                f"{prune.name} brings tokens back, which layers of {adapter.parts.family} that keep only the newest "
                f"would keep in their place; {prune.unrevived}"
            )
        others = [other for other in prunes if other is not prune]
        if prune.revives and others:
            raise ValueError(
                f"{prune.name} brings tokens back in decode steps, which {others[0].name} can't follow; keep one of "
                f"them, or {prune.unrevived}"
            )
        for other in others if prune.returns else ():
            watch = watches[id(other)]
            watched = {*watch.attention, *watch.modules, *watch.heads}
            if both := sorted(watched & set(schedules[id(prune)])):
                raise ValueError(
                    f"{other.name} watches layer {both[0]}, which tokens skip by {prune.name}; move one of them"
                )


def windowed_layers(adapter: Any) -> frozenset[int]:
    """Layers of the decoder that see, and keep, only a window or chunk of the newest tokens."""
    config = getattr(adapter.parts.decoder, "config", None)
    kinds = getattr(config, "layer_types", None)
    if kinds:
        return frozenset(layer for layer, kind in enumerate(kinds) if "sliding" in kind or "chunked" in kind)
    everywhere = getattr(config, "sliding_window", None)
    found = enumerate(map(adapter.find_attention, adapter.parts.layers))
    return frozenset(layer for layer, attention in found if getattr(attention, "sliding_window", everywhere))


def layers_heard(
    prunes: Sequence[Prune],
    schedules: Mapping[int, tuple[int, ...]],
    watches: Mapping[int, Watch],
    prune_at: Mapping[int, tuple[Prune, int]],
    adapter: Any,
) -> tuple[int, ...]:
    """Decoder layers whose attention a prune watches, probes or, once tokens may come back, is asked for.

    Raises:
        ValueError: the decoder has no such layer, or it has no attention.
    """
    parts: Parts = adapter.parts
    heard: set[int] = set()
    for prune in prunes:
        watch = watches[id(prune)]
        wanted = {parts.layer(layer, prune.name) for layer in (*watch.attention, *watch.heads)}
        if watch.probe:
            wanted |= {layer for layer, (other, _) in prune_at.items() if other is prune}
        if prune.revives:
            wanted |= set(range(schedules[id(prune)][0] - 1, len(parts.layers)))
        if without := sorted(wanted & adapter.recurrent):
            there = [layer for layer in range(len(parts.layers)) if layer not in adapter.recurrent]
            raise ValueError(
                f"{prune.name} reads the attention of decoder layer {without[0]} of {parts.family}, a recurrent or "
                f"convolution layer, which has no attention; of this model {_ranges(there) or 'none'} have: let "
                f"{prune.name} read these, or choose a method that reads no attention, such as 'divprune'"
            )
        heard |= wanted
    return tuple(sorted(heard))


def _ranges(layers: Sequence[int]) -> str:
    """Ascending numbers in words: "layers 1 to 13"."""
    starts = [layer for layer in layers if layer - 1 not in layers]
    ends = [layer for layer in layers if layer + 1 not in layers]
    return " or ".join(f"layer {a}" if a == b else f"layers {a} to {b}" for a, b in zip(starts, ends))
