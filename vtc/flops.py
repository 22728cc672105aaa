"""Floating-point operations of a prefill, from module shapes and token counts alone.

A decoder layer with n tokens costs

    2 n (weights of its linear maps)  +  4 n² · heads · head_dim

operations: two for each weight and token, and two matrix products of the attention over all n² pairs (as an attention
without a causal short cut computes them; torch's FlopCounterMode counts the same). For a Llama layer of width d with
an MLP of width m the weights are 2 d·heads·head_dim + 2 d·kv_heads·head_dim + 3 d·m: three MLP matrices, grouped
heads. A tower block costs the same with its own weights and the pairs within each of its sequences. The projector
and the vocabulary head are left out: they do not depend on the method.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Flops:
    """FLOPs of one prefill of a batch.

    Attributes:
        decoder, tower: with compression.
        unpatched_decoder, unpatched_tower: without.
    """

    decoder: float
    tower: float
    unpatched_decoder: float
    unpatched_tower: float

    @property
    def total(self) -> float:
        """Decoder and tower, with compression."""
        return self.decoder + self.tower

    @property
    def unpatched_total(self) -> float:
        """Decoder and tower, without."""
        return self.unpatched_decoder + self.unpatched_tower


def linear_weights(module: nn.Module) -> int:
    """Number of weights of all linear maps in `module` (biases and norms left out)."""
    return sum(part.weight.numel() for part in module.modules() if isinstance(part, nn.Linear))


def attention_width(attention: nn.Module | None, config: object) -> int:
    """Heads · head_dim of an attention module: the width of its queries. 0 for a layer without attention."""
    if attention is None:
        return 0
    heads = int(getattr(config, "num_attention_heads", 0) or getattr(config, "num_heads", 0))
    head_dim = getattr(attention, "head_dim", None) or getattr(config, "head_dim", None)
    if heads and head_dim:
        return heads * int(head_dim)
    return int(getattr(config, "hidden_size", 0) or getattr(config, "embed_dim", 0))


def layer_flops(weights: int, width: int, tokens: Tensor) -> Tensor:
    """FLOPs of a layer for each row: `tokens` [..] per row."""
    tokens = tokens.double()
    return 2 * tokens * weights + 4 * tokens.square() * width


@dataclass
class Cost:
    """What is needed to count the FLOPs of a prefill.

    Attributes:
        layers: (linear weights, attention width) of each decoder layer.
        blocks: (linear weights, attention width) of each tower block.
        sequences: per tower block that ran, a function that gives the lengths of the sequences that attended within
            themselves (read lazily: they may be on the device).
    """

    layers: Sequence[tuple[int, int]]
    blocks: Sequence[tuple[int, int]]
    sequences: list[tuple[int, Callable[[], Tensor]]] = field(default_factory=list)

    def flops(self, tokens_per_layer: Tensor, original: Tensor, text: Tensor) -> Flops:
        """FLOPs for visual tokens per layer [layers, batch], `original` and `text` tokens [batch]."""
        decoder = unpatched = 0.0
        for (weights, width), visual in zip(self.layers, tokens_per_layer):
            decoder += float(layer_flops(weights, width, visual + text).sum())
            unpatched += float(layer_flops(weights, width, original + text).sum())
        tower = sum(float(layer_flops(*self.blocks[block], lengths()).sum()) for block, lengths in self.sequences)
        return Flops(decoder, tower, unpatched, tower)


def lengths_of(hidden: Tensor, cu_seqlens: Tensor | None) -> Callable[[], Tensor]:
    """Lengths of the sequences in a tower block's input: [crops, P, D], or packed [P, D] with `cu_seqlens`."""
    shape = hidden.shape
    if cu_seqlens is not None:
        return lambda: (cu_seqlens[1:] - cu_seqlens[:-1]).cpu()
    if len(shape) == 3:
        return lambda: torch.full((shape[0],), shape[1])
    return lambda: torch.tensor([shape[0]])
