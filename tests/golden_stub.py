"""The golden files' tiny decoders, inside the smallest model that calls its decoder as a VLM of transformers does."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, LlamaConfig, LlamaModel, Qwen2Config, Qwen2Model

import vtc


@dataclass
class Run:
    """What a compressed prefill and one decode step gave.

    Attributes:
        visual: BoolTensor [L].
        hidden: Tensor [L, D], last hidden state at the original length.
        decoded: Tensor [1, D] of the decode step, or None.
        cache_lengths: keys in each layer after prefill.
        trace: of the prefill.
    """

    visual: Tensor
    hidden: Tensor
    decoded: Tensor | None
    cache_lengths: list[int]
    trace: vtc.Trace

    @property
    def length(self) -> int:
        return len(self.visual)

    def survivors(self, layer: int) -> list[int]:
        """Places of the original sequence, text included, that enter decoder `layer` (-1: after all removals)."""
        alive = ~self.visual
        (image,) = self.trace.images
        alive[image.source.positions[image.kept(layer)]] = True
        return alive.nonzero()[:, 0].tolist()


class Stub(nn.Module):
    """Placeholder mask, then decoder: what LlavaModel.forward does once features are in the sequence."""

    def __init__(self, decoder: LlamaModel | Qwen2Model):
        super().__init__()
        self.config = decoder.config
        self.language_model = decoder

    def get_image_features(self, visual: Tensor, inputs_embeds: Tensor) -> list[Tensor]:
        """The embeddings of each image; a row has one at most."""
        return [embeds[here] for embeds, here in zip(inputs_embeds, visual) if here.any()]

    def get_placeholder_mask(self, visual: Tensor, inputs_embeds: Tensor, image_features: Any = None) -> Tensor:
        return visual[..., None].expand_as(inputs_embeds)

    def forward(self, inputs_embeds: Tensor, visual: Tensor | None = None, past_key_values: Any = None) -> Any:
        if visual is not None:
            features = self.get_image_features(visual, inputs_embeds)
            self.get_placeholder_mask(visual, inputs_embeds=inputs_embeds, image_features=features)
        return self.language_model(
            attention_mask=None,
            position_ids=None,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=True,
        )

    @torch.no_grad()
    def run(self, method: Any, embeds: Tensor, visual: Tensor, decode: Tensor | None) -> Run:
        cache = DynamicCache(config=self.config)
        with vtc.patched(self, method):
            hidden = self(embeds[None], visual[None], past_key_values=cache).last_hidden_state[0]
            trace = vtc.trace(self)
            lengths = [layer.keys.shape[-2] for layer in cache.layers]
            decoded = self(decode[None], past_key_values=cache).last_hidden_state[0] if decode is not None else None
        return Run(visual, hidden, decoded, lengths, trace)


def stub(weights: dict[str, Tensor], info: dict[str, Any]) -> Stub:
    """The stub around a decoder with these `weights` (named as in a checkpoint, without "model.").

    A Qwen2 where queries have a bias, else a LLaMA. Sizes are those of the weights. `info` says how many heads there
    are, or how wide one is, which no shape tells; without a word of it there are 4, as in every documented file. Its
    other words are the epsilon and the rotary base; without them, those documented for the two kinds of decoder.
    """
    hidden = weights["norm.weight"].shape[0]
    queries, keys = (weights[f"layers.0.self_attn.{name}_proj.weight"].shape[0] for name in "qk")
    heads, width = head_sizes(queries, keys, info)
    biased = any(key.endswith("q_proj.bias") for key in weights)
    config_class, model_class = (Qwen2Config, Qwen2Model) if biased else (LlamaConfig, LlamaModel)
    epsilon, theta = (1e-6, 1e6) if biased else (1e-5, 1e4)
    config = config_class(
        vocab_size=1,
        hidden_size=hidden,
        intermediate_size=weights["layers.0.mlp.up_proj.weight"].shape[0],
        num_hidden_layers=depth_of(weights),
        num_attention_heads=heads,
        num_key_value_heads=keys // width,
        hidden_act=info.get("act", "silu"),
        rms_norm_eps=float(info.get("rms_eps", info.get("rms_norm_eps", epsilon))),
        rope_parameters={"rope_type": "default", "rope_theta": float(info.get("rope_theta", theta))},
        max_position_embeddings=4096,
        attn_implementation="sdpa",
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    config.head_dim = width
    decoder = model_class(config).eval()
    unused = {"embed_tokens.weight": decoder.embed_tokens.weight}
    decoder.load_state_dict({**weights, **unused})
    return Stub(decoder)


def depth_of(weights: dict[str, Tensor]) -> int:
    return 1 + max(int(key.split(".")[1]) for key in weights if key.startswith("layers."))


def head_sizes(queries: int, keys: int, info: dict[str, Any]) -> tuple[int, int]:
    """Heads and the width of one, from the rows of the projections of queries and keys and what a file says."""
    names = {"heads": ("num_heads", "num_attention_heads"), "kv_heads": ("num_key_value_heads",), "head_dim": ()}
    said = {
        name: int(float(info[other])) for name, more in names.items() for other in (name, *more)[::-1] if other in info
    }
    if "heads" in said:
        width = queries // said["heads"]
    elif "head_dim" in said:
        width = said["head_dim"]
    else:
        width = keys // said["kv_heads"] if "kv_heads" in said else queries // 4
    if not width or queries % width or keys % width:
        raise ValueError(f"heads of {width} do not divide {queries} rows of queries and {keys} of keys; {said=}")
    return queries // width, width
