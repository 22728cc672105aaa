"""Parts of a model, by what they are."""

from typing import Any, ClassVar

from torch import nn

from vtc.model.parts import Parts

_DECODERS = ("language_model", "text_model")
_INSIDE = ("model", "decoder")
_TOWERS = ("vision_tower", "visual", "vision_model", "vision_embed_tokens", "vision_encoder", "encoder")
_ATTENTIONS = ("self_attn", "attn", "attention", "self_attention")
_DECAY = "A_log"  # what a recurrent layer forgets by; some go by the name of an attention
_RECURRENT = ("linear_attn", "conv", "mamba")
_MLPS = ("mlp", "feed_forward", "block_sparse_moe", "moe", "ffn")
_SECOND_NORMS = ("layer_norm2", "norm2", "layernorm_after", "ffn_norm", "post_attention_layernorm")
_PROJECTORS = ("multi_modal_projector", "aligner", "connector", "mm_projector")

#: Why nothing can be removed where a decoder's own sequence has no visual tokens, and the way out.
CROSSES = (
    "its decoder reads pictures through cross attention, so no visual token stands in its sequence and none can be "
    "removed there; choose a model that puts visual tokens in place of placeholders, as LLaVA does"
)


class Finder:
    """Finds modules of a model by what they are, and where that does not tell, by their usual names.

    Attributes:
        model: any module of a vision-language model: with head, without head.
        fills_in: methods that fill features in at the placeholders; a model has one of them.
        family: the model's `config.model_type`.
        parts: what was found for good, once the adapter has found it.
    """

    model: nn.Module
    fills_in: ClassVar[tuple[str, ...]]
    family: str
    parts: Parts

    def find_composite(self, model: nn.Module) -> nn.Module:
        """The module that puts visual features into the sequence."""
        fills_in = [m for m in model.modules() if any(hasattr(m, name) for name in self.fills_in)]
        found = [m for m in fills_in if self._decoder_in(m) is not None]
        if not found:
            raise ValueError(f"{self.family}: {self._why_none(model, bool(fills_in))}")
        return found[-1]

    def _why_none(self, model: nn.Module, fills_in: bool) -> str:
        """Why a model has no module that puts visual features into a decoder's sequence, and the way out."""
        if fills_in:
            return (
                "its decoder fills the visual placeholders itself, so nothing hands it a sequence that could be "
                "shortened first; vtc needs a model whose language model is a module of its own"
            )
        if is_two_stacks(model) or any("cross" in name.rpartition(".")[2].lower() for name, _ in model.named_modules()):
            return CROSSES
        return (
            f"no module with {' or '.join(self.fills_in)} and a language model was found, so there are no visual "
            "placeholders to compress; vtc needs a vision-language model of transformers >= 5"
        )

    def find_decoder(self, composite: nn.Module) -> nn.Module:
        """The module that owns the decoder layers and takes `inputs_embeds`."""
        decoder = self._decoder_in(composite)
        while decoder is not None and not isinstance(getattr(decoder, "layers", None), nn.ModuleList):
            if is_two_stacks(decoder):
                raise ValueError(f"{self.family}: {CROSSES}")
            decoder = child(decoder, _INSIDE)
        if decoder is None or not layers_of(decoder):
            raise ValueError(f"{self.family}: its language model has no list of decoder layers that vtc can hook")
        return decoder

    def find_tower(self, composite: nn.Module) -> Any:
        """The vision tower; None where none has one of the usual names."""
        return next((getattr(composite, name) for name in _TOWERS if hasattr(composite, name)), None)

    def _decoder_in(self, composite: nn.Module) -> nn.Module | None:
        parts = (composite._modules.get(name) for name in _DECODERS)
        return next((part for part in parts if part is not None), None)

    def attention(self, layer: nn.Module) -> nn.Module:
        """The attention module of a decoder layer or tower block.

        Raises:
            ValueError: it has none, or not under one of the usual names.
        """
        attention = self.find_attention(layer)
        if attention is None:
            raise ValueError(
                f"{self.family}: no attention was found in {type(layer).__name__} (recurrent and convolution layers "
                "have none); choose a layer that has one, or a method that reads no attention, such as 'divprune'"
            )
        return attention

    def find_attention(self, layer: nn.Module) -> nn.Module | None:
        """The attention module of a layer, or None."""
        attention = child(layer, _ATTENTIONS)
        if attention is not None and is_recurrent(attention):
            return None
        inner = attention._modules.get("attention") if attention is not None else None  # BERT-like towers nest it
        return attention if inner is None else inner

    def mlp(self, layer: nn.Module) -> nn.Module:
        """The MLP of a decoder layer.

        Raises:
            ValueError: none under one of the usual names.
        """
        return self._required(layer, _MLPS, "no MLP was found")

    def parts_of_layer(self, layer: nn.Module) -> dict[str, nn.Module]:
        """What a decoder layer adds to the residual stream: "attention", or what stands in its place, and "mlp".

        Raises:
            ValueError: one of them was not found.
        """
        recurrent = child(layer, _RECURRENT) or next(filter(is_recurrent, layer.children()), None)
        return {"attention": recurrent or self.attention(layer), "mlp": self.mlp(layer)}

    def second_norm(self, block: nn.Module) -> nn.Module:
        """The norm between attention and MLP of a tower block.

        Raises:
            ValueError: none under one of the usual names.
        """
        return self._required(block, _SECOND_NORMS, "no norm between attention and MLP was found")

    def _required(self, layer: nn.Module, names: tuple[str, ...], missing: str) -> nn.Module:
        part = child(layer, names)
        if part is None:
            raise ValueError(f"{self.family}: {missing} in {type(layer).__name__}")
        return part

    @property
    def recurrent(self) -> frozenset[int]:
        """Decoder layers that keep no keys: those without attention, where others have it."""
        without = [index for index, layer in enumerate(self.parts.layers) if self.find_attention(layer) is None]
        return frozenset(without if len(without) < len(self.parts.layers) else ())

    @property
    def projector(self) -> nn.Module | None:
        """The module between tower and decoder, or None."""
        return child(self.parts.composite, _PROJECTORS)

    def use_projector(self, projector: nn.Module) -> None:
        """Put another module in the projector's place: what runs the model elsewhere has its own."""
        name = next(name for name in _PROJECTORS if self.parts.composite._modules.get(name) is not None)
        self.parts.composite._modules[name] = projector

    @property
    def mergers(self) -> tuple[nn.Module, ...]:
        """Modules of the tower that turn the rows of its blocks into one row for each visual token."""
        return ()

    def rotary_modules(self) -> list[nn.Module]:
        """The decoder's rotary embeddings that are shared by its layers."""
        layers = {id(m) for layer in self.parts.layers for m in layer.modules()}
        modules = self.parts.decoder.modules()
        return [m for m in modules if "Rotary" in type(m).__name__ and id(m) not in layers]


def is_two_stacks(model: nn.Module) -> bool:
    """Whether a model is an encoder and a decoder that reads what the encoder gives."""
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def is_recurrent(mixer: nn.Module) -> bool:
    """Whether a module that mixes tokens forgets as it goes, whatever it is called."""
    return any(hasattr(part, _DECAY) for part in mixer.modules())


def child(layer: nn.Module, names: tuple[str, ...]) -> nn.Module | None:
    """The first of the child modules `names` that `layer` has, or None."""
    return next((layer._modules[name] for name in names if layer._modules.get(name) is not None), None)


def layers_of(decoder: nn.Module) -> tuple[nn.Module, ...]:
    """The decoder layers; none where `decoder.layers` is no list of modules."""
    layers = decoder.layers
    return tuple(layers) if isinstance(layers, nn.ModuleList) else ()


def longest_list(module: nn.Module) -> tuple[nn.Module, ...]:
    """The longest list of modules anywhere in `module`: a tower's blocks."""
    lists = [tuple(part) for part in module.modules() if isinstance(part, nn.ModuleList)]
    return max(lists, key=len, default=())


def has_cls(tower: nn.Module) -> bool:
    """Whether a vision tower has a CLS token."""
    names = ("class_embedding", "cls_token", "class_token", "cls_embedding")
    return any(getattr(part, name, None) is not None for part in tower.modules() for name in names)


def block_of_hidden_state(index: int, blocks: int) -> int:
    """Index (negative) of the block that produces `hidden_states[index]`: hidden state 0 is the embedding."""
    return index if index < 0 else index - 1 - blocks
