"""Whether a model can do what the prunes of a patch ask."""

from collections.abc import Mapping, Sequence

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


def _ranges(layers: Sequence[int]) -> str:
    """Ascending numbers in words: "layers 1 to 13"."""
    starts = [layer for layer in layers if layer - 1 not in layers]
    ends = [layer for layer in layers if layer + 1 not in layers]
    return " or ".join(f"layer {a}" if a == b else f"layers {a} to {b}" for a, b in zip(starts, ends))
