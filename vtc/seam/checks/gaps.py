"""Refuses rows of different length behind a cache, where the padding between the two would not be neutral.

Attention that sees everything is told of padding by its mask. A recurrent layer is not: its state decays, and its
convolution sees zeros, wherever padding stands behind something. In a window, padding takes the place of tokens.
"""

from collections.abc import Iterator

from vtc.calls.decoder import window_of
from vtc.seam.composition import Composition
from vtc.seam.layers import Layers

_WAY_OUT = "run these rows apart, or give them pictures of equal size and equally much text (or keep=<count>)"


def check_gaps(layers: Layers, fresh: bool) -> None:
    """Refuse a call whose rows would depend on each other's lengths; what is fine so far is remembered.

    Args:
        layers: of the call, before the first runs.
        fresh: whether it has nothing before it, so that its padding comes first and is neutral.

    Raises:
        ValueError: rows keep different numbers of tokens, or may do so, in front of layers to which that matters.
    """
    composition, conversation = layers.composition, layers.conversation
    if fresh:
        return
    spread = list(_lengths(layers)) if layers.has_images else []
    ragged = {index for index, rows in enumerate(spread) if rows is None or len(set(rows)) > 1}
    gaps = conversation.gaps | ragged
    if not gaps:
        return
    for index, (first, end) in enumerate(_stretches(composition)):
        inside = range(first, end)
        if index in ragged and (not composition.counts_tokens or composition.recurrent.intersection(inside)):
            raise ValueError(
                f"{composition.parts.family}: {_rows(spread[index])} behind a cache, and its recurrent layers can't "
                f"skip the padding that this needs in between; {_WAY_OUT}"
            )
        if conversation.outside or not composition.windowed.intersection(inside):
            continue
        counted = index if composition.flash else 0  # windows count slots, or under flash what a layer holds
        held = conversation.held[counted]
        behind = conversation.slots if held is None else held.shape[1]
        new = len(layers.segments.first.cut)
        if counted in gaps and behind + new > window_of(composition.decoder_config):
            told = _rows(spread[counted]) if counted in ragged else "rows have kept different numbers of tokens"
            raise ValueError(
                f"{composition.parts.family}: {told} behind a cache, and the padding that this needs in between would "
                f"take the place of tokens in its windows of {window_of(composition.decoder_config)}; {_WAY_OUT}"
            )
    conversation.gaps = frozenset(gaps)


def _rows(lengths: list[int] | None) -> str:
    if lengths is None:
        return "a method lets each picture decide how much of it stays, so rows may keep different numbers of tokens"
    return f"rows keep different numbers of tokens ({', '.join(map(str, lengths))})"


def _stretches(composition: Composition) -> Iterator[tuple[int, int]]:
    """The layers of each segment, the last one excluded."""
    return zip(composition.boundaries, (*composition.boundaries[1:], len(composition.parts.layers)))


def _lengths(layers: Layers) -> Iterator[list[int] | None]:
    """For each segment, how many tokens each row will have in it; None where that is not known in advance."""
    composition = layers.composition
    counts: list[int] | None = layers.segments.first.visual_counts
    reached: dict[int, list[int]] = {}
    for boundary in composition.boundaries:
        prune, stage = composition.prune_at.get(boundary, (None, 0))
        here = counts
        if prune is not None and boundary and counts is not None:
            if prune.adaptive:
                here = counts if len(counts) == 1 else None
            else:
                present = reached.setdefault(id(prune), counts)
                here = [prune.left_at(stage, n, there) for n, there in zip(present, counts)]
            counts = counts if prune.returns else here
        yield None if here is None else [text + n for text, n in zip(layers.text_counts, here)]
