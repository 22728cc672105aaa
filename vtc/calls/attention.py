"""How an attention module calls the attention interface that its config names."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

#: In a config, what names the implementation, and where it is kept.
IMPLEMENTATION, _KEPT = "_attn_implementation", "_attn_implementation_internal"
_HIDDEN = -1e3  # numbers below are added to logits in order to hide a key


@dataclass(frozen=True)
class Settings:
    """What a call of the interface says beside query, key, value and mask; see `vtc.attention.scores.Attention`.

    Attributes:
        scaling, causal, window, softcap: as there.
    """

    scaling: float
    causal: bool
    window: int | None
    softcap: float | None


def settings(module: nn.Module, width: int, kwargs: dict[str, Any]) -> Settings:
    """The settings of a call of the interface by `module`, of heads of this `width`."""
    causal = kwargs.get("is_causal")
    scaling = _own(module, kwargs, "scaling", "scaling", "scale")
    return Settings(
        scaling=width**-0.5 if scaling is None else float(scaling),
        causal=bool(getattr(module, "is_causal", True) if causal is None else causal),
        window=_own(module, kwargs, "sliding_window", "sliding_window"),
        softcap=_own(module, kwargs, "softcap", "attn_logit_softcapping"),
    )


def shown_by(mask: Tensor) -> Tensor:
    """BoolTensor: what an attention mask (bool or whole numbers: not 0; real numbers: added to logits) lets through."""
    return mask > _HIDDEN if mask.is_floating_point() else mask != 0


def _own(module: nn.Module, kwargs: dict[str, Any], name: str, *attributes: str) -> Any:
    """An argument of a call; where the call does not have it, what the module keeps for it."""
    if name in kwargs:
        return kwargs[name]
    return next((value for a in attributes if (value := getattr(module, a, None)) is not None), None)


def tensors(
    module: nn.Module, args: tuple, kwargs: dict[str, Any]
) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor | None], dict[str, Any]]:
    """Query, key, value and mask of a call of the interface by `module`, and its further arguments.

    Raises:
        RuntimeError: they can't be told apart.
    """
    names = ("query", "key", "value", "attention_mask")
    more = dict(kwargs)
    given = dict(zip(names, args)) | {name: more.pop(name) for name in names[len(args) :] if name in more}
    if len(args) > len(names) or len(given) < len(names):
        raise RuntimeError(
            f"vtc: {type(module).__name__} called its attention with {len(args)} arguments by position and "
            f"{', '.join(more) or 'none'} by name, which vtc can't tell apart; run `vtc doctor`, or choose a "
            "method that reads no attention, such as 'divprune'"
        )
    _check_order(module, given["query"])
    query, key, value, mask = (given[name] for name in names)
    return (query, key, value, mask), more


def _check_order(module: nn.Module, query: Tensor) -> None:
    """Refuse queries that are not [B, H, Q, d].

    Raises:
        RuntimeError: their heads stand behind the tokens.
    """
    heads = getattr(module.config, "num_attention_heads", None)
    if query.dim() != 4 or (heads is not None and query.shape[1] != heads and query.shape[2] == heads):
        raise RuntimeError(
            f"vtc: {type(module).__name__} gave its attention queries of shape {tuple(query.shape)}, not [batch, "
            "heads, tokens, width]; run `vtc doctor`, or choose a method that reads no attention, such as 'divprune'"
        )


def with_scaling(kwargs: dict[str, Any], scaling: float) -> dict[str, Any]:
    """The further arguments of a call with its scaling written out."""
    return {**kwargs, "scaling": scaling}


def boundaries(kwargs: dict[str, Any]) -> Tensor | None:
    """Where sequences packed into one row begin and end, LongTensor [sequences + 1]; None where none are."""
    return kwargs.get("cu_seq_lens_q")


def implementation(config: Any) -> str | None:
    """The implementation that a config names; None where it names none."""
    return getattr(config, IMPLEMENTATION, None)


def set_implementation(config: Any, name: str) -> None:
    """Name another implementation in one config alone, without the checks and the sub-configs of the public setter."""
    setattr(config, _KEPT, name)


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
