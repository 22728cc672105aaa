"""A FlashAttention for CPU tests: transformers' own flash path with the two kernels written in torch.

Importing this module registers the attention implementation ``"flash_stand_in"`` (`NAME`). Everything around the
kernels is transformers' real code (`flash_attention_forward`, the 2-D masks, unpadding, packed sequences found in
`position_ids`, `cu_seqlens` of vision towers), so a model sees what it sees under ``flash_attention_2``: no weights
returned, no 4-D mask, no right padding.
"""

import torch
from transformers import AttentionInterface, AttentionMaskInterface, modeling_flash_attention_utils
from transformers.integrations.flash_attention import flash_attention_forward
from transformers.masking_utils import flash_attention_mask

NAME = "flash_stand_in"


def flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0):
    """`flash_attn.flash_attn_func` in torch: the causal mask and the window are aligned bottom right.

    Args:
        q: `[batch, queries, heads, head_dim]`.
        k: `[batch, keys, kv_heads, head_dim]`.
        v: as `k`.
        dropout_p: ignored, tests run in eval mode.
        softmax_scale: defaults to `head_dim ** -0.5`.
        causal: whether a query sees no later key.
        window_size: keys to the left and right of a query that it sees, -1 for all.
        softcap: `softcap * tanh(scores / softcap)` where positive.

    Returns:
        `[batch, queries, heads, head_dim]`; zeros for a query that sees nothing.
    """
    groups = q.shape[2] // k.shape[2]
    k, v = k.repeat_interleave(groups, dim=2), v.repeat_interleave(groups, dim=2)
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    scores = torch.einsum("bqhd,bkhd->bhqk", q.float(), k.float()) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    queries, keys = scores.shape[-2:]
    distance = torch.arange(keys - queries, keys, device=q.device)[:, None] - torch.arange(keys, device=q.device)
    left, right = window_size[0], 0 if causal else window_size[1]
    hidden = torch.zeros_like(distance, dtype=torch.bool)
    if left >= 0:
        hidden |= distance > left
    if right >= 0:
        hidden |= -distance > right
    weights = scores.masked_fill(hidden, -torch.inf).softmax(dim=-1).nan_to_num(0.0)
    return torch.einsum("bhqk,bkhd->bqhd", weights, v.float()).to(q.dtype)


def flash_attn_varlen_func(
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
):
    """`flash_attn.flash_attn_varlen_func` in torch: one sequence after another, `[tokens, heads, head_dim]` each."""
    if len(cu_seqlens_q) != len(cu_seqlens_k) or cu_seqlens_q[-1] != len(q) or cu_seqlens_k[-1] != len(k):
        raise ValueError(f"lengths {cu_seqlens_q.tolist()} / {cu_seqlens_k.tolist()} for {len(q)} / {len(k)} tokens")
    lengths_q, lengths_k = cu_seqlens_q.diff().tolist(), cu_seqlens_k.diff().tolist()
    if max_seqlen_q < max(lengths_q) or max_seqlen_k < max(lengths_k):
        raise ValueError("a sequence is longer than max_seqlen")
    rows = zip(q.split(lengths_q), k.split(lengths_k), v.split(lengths_k), strict=True)
    options = {"softmax_scale": softmax_scale, "causal": causal, "window_size": window_size, "softcap": softcap}
    return torch.cat([flash_attn_func(*(x[None] for x in row), **options)[0] for row in rows])


def _lazy_imports(implementation, *args, **kwargs):
    """Answers transformers' search for the kernels of an implementation, for `NAME` with those above."""
    if implementation != NAME:
        return _bare_lazy_imports(implementation, *args, **kwargs)
    utils = modeling_flash_attention_utils
    return flash_attn_func, flash_attn_varlen_func, None, utils._pad_input, utils._unpad_input


_bare_lazy_imports = modeling_flash_attention_utils._lazy_imports
modeling_flash_attention_utils._lazy_imports = _lazy_imports
AttentionInterface.register(NAME, flash_attention_forward)
AttentionMaskInterface.register(NAME, flash_attention_mask)
