"""How a decoder is called, and how it calls its layers."""

from typing import Any

from vtc.calls.roles import Call, Role


class DecoderCall(Call):
    """One call of the module that owns the decoder layers."""

    ids = Role("input_ids")
    embeds = Role("inputs_embeds")
    mask = Role("attention_mask")
    positions = Role("position_ids")
    cache = Role("past_key_values", "cache")  # renamed by 5.24
    state = Role("cache_params")  # the cache of Mamba, which does not count tokens

    @property
    def extras(self) -> dict[str, Any]:
        """The further arguments that may be per token: DeepStack rows, masks of them, per-layer inputs."""
        plain = (bool, int, float, str, type(None))
        cls = type(self)
        rest = self.without(cls.embeds, cls.mask, cls.positions, cls.cache, cls.ids)
        return {name: value for name, value in rest.items() if not isinstance(value, plain)}

    @property
    def wants_attentions(self) -> bool:
        """Whether attention matrices are asked for in this call."""
        return bool(self.kwargs.get("output_attentions"))


class LayerCall(Call):
    """One call of a decoder layer."""

    hidden = Role("hidden_states", first=True)
    mask = Role("attention_mask")
    positions = Role("position_ids")
    cache = Role("past_key_values", "cache")  # renamed by 5.24
    rotary = Role("position_embeddings")

    def probing(self) -> tuple[tuple, dict[str, Any]]:
        """The arguments behind the hidden state with which the layer touches no cache."""
        kwargs = self.without(type(self).hidden)
        kwargs[type(self).cache.name_in(self) or type(self).cache.names[0]] = None
        return self.args[1:], {**kwargs, "use_cache": False}


def may_return_tuples(config: Any) -> bool:
    """Whether a decoder's config hides its outputs by returning plain tuples."""
    return getattr(config, "return_dict", True) is False


def always_gives_attentions(config: Any) -> bool:
    """Whether a decoder's config asks for attention matrices in every call."""
    return bool(getattr(config, "output_attentions", False))
