"""One forward pass for many questions behind one picture, with the weights of a transformers Llama.

The prefix (`<s> USER:` and the visual tokens) is computed once. Each question sees the prefix and itself, and its
positions restart behind the prefix, so that it gets the same logits as if it were asked alone.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from transformers import LlamaModel
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaDecoderLayer, apply_rotary_pos_emb


def causal_bias(length: int, like: Tensor) -> Tensor:
    """Additive causal mask [length, length]: 0 where a row may look, -inf elsewhere."""
    return torch.full((length, length), float("-inf"), dtype=like.dtype, device=like.device).triu(1)


def question_bias(block: Tensor, chunk: int, like: Tensor) -> Tensor:
    """Additive mask of questions that lie in chunks.

    Args:
        block: int [B, S], which question a token belongs to; no question crosses a chunk's border.
        chunk: Tokens in a chunk; divides S.
        like: Gives type and device.

    Returns:
        [B, 1, S / chunk, chunk, chunk].
    """
    block = block.view(len(block), 1, -1, chunk)
    bias = causal_bias(chunk, like).expand(*block.shape, chunk)
    return bias.masked_fill(block[..., :, None] != block[..., None, :], float("-inf"))


def packed_hidden(
    decoder: LlamaModel,
    prefix: Tensor,
    questions: Tensor,
    positions: Tensor,
    bias: Tensor,
    watch: dict[int, Tensor] | None = None,
) -> Tensor:
    """Last hidden states of the question tokens.

    Args:
        decoder: The language model, without its head.
        prefix: Embedded prefix [B, P, D].
        questions: Embedded questions, one behind the other [B, S, D].
        positions: int [B, P + S].
        bias: From `question_bias`.
        watch: Layer -> anything; replaced by the prefix's hidden states behind that layer, [B, P, D].

    Returns:
        [B, S, D], after the last norm.
    """
    split = prefix.shape[1]
    hidden = torch.cat((prefix, questions), dim=1)
    rotary = decoder.rotary_emb(hidden, positions)
    last = len(decoder.layers) - 1
    for index, layer in enumerate(cast(list[LlamaDecoderLayer], decoder.layers)):
        attended = _attention(layer.self_attn, layer.input_layernorm(hidden), rotary, bias, split, index < last)
        if index == last:  # nobody reads the prefix any more
            hidden = hidden[:, split:]
        hidden = hidden + attended
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        if watch is not None and index in watch:
            watch[index] = hidden[:, :split]
    return decoder.norm(hidden)


def _attention(
    module: LlamaAttention, x: Tensor, rotary: tuple[Tensor, Tensor], bias: Tensor, split: int, with_prefix: bool
) -> Tensor:
    """Attention of one layer, written out: on CPUs its backward is about twice as fast as the fused kernel's."""
    batch, length = x.shape[:2]
    q, k, v = (
        f(x).view(batch, length, -1, module.head_dim).transpose(1, 2)
        for f in (module.q_proj, module.k_proj, module.v_proj)
    )
    q, k = apply_rotary_pos_emb(q * module.scaling, k, *rotary)
    k, v = (t.repeat_interleave(module.num_key_value_groups, dim=1) for t in (k, v))
    keys, values, chunk = k[:, :, :split].mT, v[:, :, :split], bias.shape[-1]
    asked, own_k, own_v = (t[:, :, split:].unflatten(2, (-1, chunk)) for t in (q, k, v))
    own = (asked @ own_k.mT + bias).flatten(2, 3)
    weights = torch.cat((q[:, :, split:] @ keys, own), dim=-1).softmax(-1)
    out = weights[..., :split] @ values
    out = out + (weights[..., split:].unflatten(2, (-1, chunk)) @ own_v).flatten(2, 3)
    if with_prefix:
        front = (q[:, :, :split] @ keys + causal_bias(split, q)).softmax(-1) @ values
        out = torch.cat((front, out), dim=2)
    return module.o_proj(out.transpose(1, 2).flatten(2))
