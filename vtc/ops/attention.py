"""Attention of few queries, and what keys receive, as custom operators of torch: no matrix of all pairs is kept."""

from typing import Any

import torch
from torch import Tensor

from vtc.cuda.arguments import SCHEMA, AttentionArguments
from vtc.ops import reference
from vtc.ops.checks import INDEX, check_dtype, check_shape, shape_of
from vtc.ops.dispatch import operator_for, register


def attention_rows(arguments: AttentionArguments) -> Tensor:
    """Rows of softmax(Q Kᵀ) for few queries, grouped heads, in float32.

    Args:
        arguments: R = Q queries.

    Returns:
        Tensor [B, H, R, S]; a row that may see nothing is all zeros.

    Raises:
        ValueError: shapes do not fit.
        TypeError: begin or end of another dtype.
    """
    arguments = _checked(arguments)
    operator = None if _differentiable(arguments) else operator_for("attention_rows", arguments.query)
    return reference.attention_rows(arguments) if operator is None else operator(*arguments)


def _rows(*flat: Any) -> Tensor:
    return reference.attention_rows(AttentionArguments(*flat))


_attention_rows = torch.library.custom_op("vtc::attention_rows", _rows, mutates_args=(), schema=f"({SCHEMA}) -> Tensor")


@_attention_rows.register_fake
def _(query: Tensor, key: Tensor, *_: Any) -> Tensor:
    return query.new_empty(*query.shape[:3], key.shape[2], dtype=torch.float32)


def attention_received(
    arguments: AttentionArguments, weights: Tensor | None = None, cu_seqlens: Tensor | None = None
) -> Tensor:
    """Attention probability that each key receives: weighted column sums of softmax(Q Kᵀ), mean over heads, in float32.

    Args:
        arguments: all queries and keys.
        weights: [B, Q] of each query; None: 1 / Q, or 1 / length of its sequence, so that the result sums to 1 in each.
        cu_seqlens: LongTensor or IntTensor [sequences + 1], 0 … S: sequences packed into one row (B = 1, Q = S), each
            of which sees itself; instead of begin and end.

    Returns:
        Tensor [B, S]; a query that may see nothing gives nothing.

    Raises:
        ValueError: shapes do not fit, or cu_seqlens beside begin and end.
        TypeError: begin, end or cu_seqlens of another dtype.
    """
    query = arguments.query
    if cu_seqlens is not None:
        if arguments.begin is not None or arguments.end is not None:
            raise ValueError("cu_seqlens says which keys a query may see, as begin and end do; give one of them")
        begin, end = _bounds(query, arguments.key, cu_seqlens)
        arguments = arguments._replace(begin=begin, end=end)
        weights = 1 / (end - begin) if weights is None else weights
    if weights is not None:
        check_shape("weights", weights, (query.shape[0], query.shape[2]))
    arguments = _checked(arguments)
    operator = None if _differentiable(arguments) else operator_for("attention_received", query)
    return reference.attention_received(arguments, weights) if operator is None else operator(*arguments, weights)


def _received(*flat: Any) -> Tensor:
    return reference.attention_received(AttentionArguments(*flat[:-1]), flat[-1])


_attention_received = torch.library.custom_op(
    "vtc::attention_received", _received, mutates_args=(), schema=f"({SCHEMA}, Tensor? weights) -> Tensor"
)


@_attention_received.register_fake
def _(query: Tensor, key: Tensor, *_: Any) -> Tensor:
    return query.new_empty(query.shape[0], key.shape[2], dtype=torch.float32)


register("attention_rows", _attention_rows, lambda *flat: (AttentionArguments(*flat),))
register("attention_received", _attention_received, lambda *flat: (AttentionArguments(*flat[:-1]), flat[-1]))


def _differentiable(arguments: AttentionArguments) -> bool:
    """Whether gradients are wanted: torch can differentiate the reference alone."""
    return torch.is_grad_enabled() and (arguments.query.requires_grad or arguments.key.requires_grad)


def _bounds(query: Tensor, key: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
    """The sequence [1, Q] of each query in a packed row: where it begins, and ends."""
    check_dtype("cu_seqlens", cu_seqlens, INDEX)
    if cu_seqlens.dim() != 1 or len(cu_seqlens) < 2:
        raise ValueError(f"cu_seqlens of shape {tuple(cu_seqlens.shape)} is not [sequences + 1]")
    if query.shape[0] != 1 or query.shape[2] != key.shape[2]:
        raise ValueError(
            f"cu_seqlens is for one packed row of as many queries as keys, not for query {tuple(query.shape)} and key "
            f"{tuple(key.shape)}"
        )
    bounds = cu_seqlens.to(query.device)
    place = torch.arange(query.shape[2], device=bounds.device, dtype=bounds.dtype)
    sequence = torch.bucketize(place, bounds, right=True)[None]
    return bounds[sequence - 1], bounds[sequence.clamp_max(len(bounds) - 1)]


def _checked(arguments: AttentionArguments) -> AttentionArguments:
    """The same, with a mask of four dimensions, after all shapes were checked."""
    query, key, mask = arguments.query, arguments.key, arguments.mask
    batch, heads, queries, dim = shape_of("query", query, "B", "H", "Q", "d")
    same, groups, keys, width = shape_of("key", key, "B", "H_kv", "S", "d")
    if (same, width) != (batch, dim) or not groups or heads % groups:
        raise ValueError(
            f"key of shape {tuple(key.shape)} does not fit query {tuple(query.shape)}: batch and d must be equal, H a "
            "multiple of H_kv"
        )
    for name, bound in (("begin", arguments.begin), ("end", arguments.end)):
        if bound is not None:
            check_shape(name, bound, (batch, queries))
            check_dtype(name, bound, INDEX)
    if mask is None:
        return arguments
    shape = (1,) * (4 - mask.dim()) + tuple(mask.shape)
    if len(shape) > 4 or any(n not in (1, full) for n, full in zip(shape, (batch, heads, queries, keys))):
        raise ValueError(f"mask of shape {tuple(mask.shape)} can't be broadcast to {(batch, heads, queries, keys)}")
    return arguments if mask.dim() == 4 else arguments._replace(mask=mask.view(shape))
