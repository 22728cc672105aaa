"""How a decoder is called, and how it calls its layers."""

from typing import Any

from torch import Tensor

from vtc.calls import words
from vtc.calls.packing import is_bound
from vtc.calls.roles import Call, Key, Role, is_cache, real, whole

_CACHE_POSITION = "cache_position"


#: What a decoder, and its layers, are told by its usual name.
EMBEDS, HIDDEN = "inputs_embeds", "hidden_states"
MASK, POSITIONS, ROTARY = "attention_mask", "position_ids", "position_embeddings"


class DecoderCall(Call):
    """One call of the module that owns the decoder layers."""

    ids = Role("input_ids")
    embeds = Role("inputs_embeds", like=real(3), words=words.HIDDEN, sure=True)
    mask = Role("attention_mask", like=words.is_mask, words=words.MASK)
    positions = Role("position_ids", like=whole(2, 3), words=words.POSITIONS)
    cache = Role("past_key_values", "cache", "cache_params", like=is_cache, words=words.CACHE, always=True)  # 5.24
    tail = Role("logits_to_keep")

    @property
    def extras(self) -> dict[Key, Any]:
        """The further arguments that may be per token: DeepStack rows, masks of them, per-layer inputs."""
        plain = (bool, int, float, str, type(None))
        cls = type(self)
        rest = self.without(cls.embeds, cls.mask, cls.positions, cls.cache, cls.ids)
        left = {key: value for key, value in rest.items() if not isinstance(value, plain)}
        return {key: value for key, value in left.items() if not is_bound(self.label(key))}

    @property
    def bounds(self) -> dict[Key, Any]:
        """The arguments that tell the lengths of samples packed into a row, where there are any."""
        return {key: value for key, value in self.named.items() if value is not None and is_bound(key)}

    @property
    def has_axes(self) -> bool:
        """Whether its position ids are those of M-RoPE, which every token keeps."""
        return isinstance(self.positions, Tensor) and self.positions.dim() == 3

    def drop_ignored(self) -> None:
        """Leave out the cache positions [L] of older scripts, where the decoder takes none and passes them on."""
        if _CACHE_POSITION in self.values and _CACHE_POSITION not in self.parameters:
            del self.values[_CACHE_POSITION]

    def ask_for_all(self) -> None:
        """Have the decoder give all its states: some leave out early, by place, those that no logit needs."""
        if isinstance(self.tail, int) and self.tail:
            self.tail = 0


_TOKENS, _CACHES = (EMBEDS, "input_ids", HIDDEN), ("past_key_values", "cache")


def cache_of_step(args: tuple, kwargs: dict[str, Any]) -> Any:
    """The cache of a call, of a model, its decoder or a layer, that brings one token a row; None: it is another call.

    Read so plainly that `torch.compile` follows it: what does not go by its usual name is another call.
    """
    tokens = args[0] if args else None
    for name in _TOKENS:
        tokens = kwargs.get(name) if tokens is None else tokens
    if not isinstance(tokens, Tensor) or tokens.dim() < 2 or tokens.shape[1] != 1:
        return None
    for name in _CACHES:
        if kwargs.get(name) is not None:
            return kwargs[name]
    return None


class LayerCall(Call):
    """One call of a decoder layer."""

    hidden = Role("hidden_states", like=real(3), words=words.HIDDEN, sure=True, first=True)
    mask = Role("attention_mask", like=words.is_mask, words=words.MASK)
    positions = Role("position_ids", like=whole(2, 3), words=words.POSITIONS)
    cache = Role("past_key_values", "cache", "cache_params", like=is_cache, words=words.CACHE, always=True)  # 5.24
    rotary = Role("position_embeddings", like=lambda value: isinstance(value, tuple), words=words.ROTARY)
    shared = Role("shared_kv_states")  # keys that one layer leaves to others: of the segment's tokens as it is

    def probing(self, hidden: Tensor) -> tuple[tuple, dict[str, Any]]:
        """The arguments with another hidden state, with which the layer touches no cache."""
        call = self.copy()
        assert isinstance(call, LayerCall)
        call.hidden = hidden
        if self.has(LayerCall.cache):
            call.cache = None
        args, kwargs = call.given
        return args, {**kwargs, "use_cache": False}


def window_of(config: Any) -> int:
    """The shortest window, or chunk, of a decoder's layers that have one; 0 where its config tells none."""
    widths = (getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
    return min((width for width in widths if width), default=0)
