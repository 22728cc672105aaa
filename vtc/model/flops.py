"""Floating-point operations of a prefill, from module shapes and token counts alone.

A decoder layer with n tokens costs

    2 n (weights of its linear maps)  +  4 n² · heads · head_dim

operations: two for each weight and token, and two matrix products of the attention over all n² pairs (as an attention
without a causal short cut computes them; torch's FlopCounterMode counts the same). For a Llama layer of width d with
an MLP of width m the weights are 2 d·heads·head_dim + 2 d·kv_heads·head_dim + 3 d·m: three MLP matrices, grouped
heads. A tower block costs the same with its own weights and the pairs within each of its sequences. The projector
and the vocabulary head are left out: they do not depend on the method. Of recurrent layers the scan and the convolution
(a constant for each token) are left out, of experts the weights that are no linear maps.
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


def layer_flops(weights: int, width: float, tokens: Tensor) -> Tensor:
    """FLOPs of a layer for each row: `tokens` [..] per row, `width` of the heads that are computed."""
    tokens = tokens.double()
    return 2 * tokens * weights + 4 * tokens.square() * width


@dataclass(frozen=True)
class Weights:
    """What a layer's FLOPs depend on.

    Attributes:
        attention: weights of the linear maps of its attention.
        rest: weights of its other linear maps (the MLP).
        width: heads · head_dim.
    """

    attention: int
    rest: int
    width: int

    def flops(self, tokens: Tensor, rest_tokens: Tensor | None = None, heads: float = 1.0) -> float:
        """FLOPs of the layer for `tokens` per row.

        Args:
            tokens: per row.
            rest_tokens: of the MLP, where it sees another number.
            heads: share of the heads that attend (their linear maps are computed all the same).
        """
        rest = tokens if rest_tokens is None else rest_tokens
        attention = layer_flops(self.attention, self.width * heads, tokens).sum()
        return float(attention + 2 * rest.double().sum() * self.rest)


def weights_of(layer: nn.Module, attention: nn.Module | None, config: object) -> Weights:
    """The `Weights` of a layer with this attention module (None: it has none)."""
    inside = linear_weights(attention) if attention is not None else 0
    return Weights(inside, linear_weights(layer) - inside, attention_width(attention, config))


@dataclass
class BlockRun:
    """One call of a tower block.

    Attributes:
        block: index from 0.
        original: gives the lengths of the sequences that attend within themselves, in the untouched tower.
        rows: the same with compression.
        mlp_rows: rows that the MLP gets, where that is another number.
    """

    block: int
    original: Callable[[], Tensor]
    rows: Callable[[], Tensor]
    mlp_rows: Callable[[], Tensor] | None = None


@dataclass
class Cost:
    """What is needed to count the FLOPs of a prefill.

    Attributes:
        layers: of each decoder layer.
        blocks: of each tower block.
        runs: each call of a tower block (lengths are read lazily: they may be on the device).
    """

    layers: Sequence[Weights]
    blocks: Sequence[Weights]
    runs: list[BlockRun] = field(default_factory=list)

    def flops(
        self, tokens_per_layer: Tensor, original: Tensor, text: Tensor, heads: Sequence[float] | None = None
    ) -> Flops:
        """FLOPs for visual tokens per layer [layers, batch], `original` and `text` tokens [batch].

        Args:
            tokens_per_layer: with compression.
            original: visual tokens, without.
            text: the others.
            heads: share of the heads that each layer computes; None: all.
        """
        decoder = unpatched = tower = unpatched_tower = 0.0
        for weights, visual, share in zip(self.layers, tokens_per_layer, heads or [1.0] * len(self.layers)):
            decoder += weights.flops(visual + text, heads=share)
            unpatched += weights.flops(original + text)
        for run in self.runs:
            weights = self.blocks[run.block]
            tower += weights.flops(run.rows(), run.mlp_rows() if run.mlp_rows else None)
            unpatched_tower += weights.flops(run.original())
        return Flops(decoder, tower, unpatched, unpatched_tower)

    def rows_per_block(self) -> list[int]:
        """Rows of the tower that enter each block, all sequences together."""
        rows = [0] * len(self.blocks)
        for run in self.runs:
            rows[run.block] += int(run.rows().sum())
        return rows


def lengths_of(shape: tuple[int, int], prefix: int, cu_seqlens: Tensor | None) -> Callable[[], Tensor]:
    """Lengths of the sequences in a tower: `shape` (sequences, rows behind `prefix`), or packed with `cu_seqlens`."""
    if cu_seqlens is not None:
        return lambda: (cu_seqlens[1:] - cu_seqlens[:-1]).cpu()
    return lambda: torch.full((shape[0],), shape[1] + prefix)
