"""Which decoder layers attend to the keys of another one, or to those that another one chose."""

from collections.abc import Sequence
from typing import Any

from torch import nn


def sources_of_keys(attentions: Sequence[nn.Module | None], config: Any) -> dict[int, int]:
    """Layer that makes no keys of its own -> the layer whose keys it attends to; 0 where that is not known.

    A layer that takes over which keys an indexer chose in another attends to the same places as that one.

    Args:
        attentions: of each decoder layer.
        config: the decoder's.
    """
    sources, kinds = getattr(config, "kv_source_layers", None), getattr(config, "layer_types", None)
    last = len(attentions) - (getattr(config, "num_kv_shared_layers", None) or 0)
    found: dict[int, int] = {}
    for layer, attention in enumerate(attentions):
        if not getattr(attention, "is_kv_shared_layer", 0 < last <= layer):
            continue
        own = [earlier for earlier in range(layer) if earlier not in found]
        alike = [earlier for earlier in own if kinds is None or kinds[earlier] == kinds[layer]]
        told = sources[layer] if sources else getattr(attention, "kv_shared_layer_index", None)
        found[layer] = told if told is not None else max(alike, default=0)
    choosers = getattr(config, "indexer_types", None) or ()
    for layer, kind in enumerate(choosers):
        if kind == "shared":
            source = max((earlier for earlier in range(layer) if choosers[earlier] != "shared"), default=0)
            found[layer] = min(found.get(layer, source), source)
    return found
