"""What a cache of transformers tells about itself."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import Cache


def tokens_in(cache: "Cache | None") -> int:
    """Tokens that the cache holds."""
    return 0 if cache is None else cache.get_seq_length()


def keys_in_layer(cache: "Cache | None", layer: int) -> int | None:
    """Keys that a layer of the cache holds in memory; None where the layer keeps none (recurrent layers)."""
    if cache is None or layer >= len(cache.layers):
        return 0
    keys = getattr(cache.layers[layer], "keys", None)
    if keys is None:
        return 0 if hasattr(cache.layers[layer], "keys") else None
    return keys.shape[-2] if keys.numel() else 0


def has_fixed_length(cache: "Cache | None") -> bool:
    """Whether it is a static cache: all layers of one length, given in advance."""
    return cache is not None and getattr(cache, "is_compileable", False) and len(getattr(cache, "layers", [])) > 0
