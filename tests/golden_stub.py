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

    def get_placeholder_mask(self, visual: Tensor, inputs_embeds: Tensor, image_features: Any = None) -> Tensor:
        return visual[..., None].expand_as(inputs_embeds)

    def forward(self, inputs_embeds: Tensor, visual: Tensor | None = None, past_key_values: Any = None) -> Any:
        if visual is not None:
            self.get_placeholder_mask(visual, inputs_embeds=inputs_embeds, image_features=inputs_embeds[visual])
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
    """The stub around a decoder with these `weights` (named as in a checkpoint, without "model."); `info` has sizes.

    A Qwen2 where queries have a bias, else a LLaMA.
    """
    hidden = weights["norm.weight"].shape[0]
    heads = info.get("heads", 4)
    biased = any(key.endswith("q_proj.bias") for key in weights)
    config_class, model_class = (Qwen2Config, Qwen2Model) if biased else (LlamaConfig, LlamaModel)
    config = config_class(
        vocab_size=1,
        hidden_size=hidden,
        intermediate_size=weights["layers.0.mlp.up_proj.weight"].shape[0],
        num_hidden_layers=1 + max(int(key.split(".")[1]) for key in weights if key.startswith("layers.")),
        num_attention_heads=heads,
        num_key_value_heads=weights["layers.0.self_attn.k_proj.weight"].shape[0] * heads // hidden,
        rms_norm_eps=info.get("rms_eps", 1e-5),
        rope_parameters={"rope_type": "default", "rope_theta": info.get("rope_theta", 1e4)},
        max_position_embeddings=4096,
        attn_implementation="sdpa",
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    decoder = model_class(config).eval()
    unused = {"embed_tokens.weight": decoder.embed_tokens.weight}
    decoder.load_state_dict({**weights, **unused})
    return Stub(decoder)
