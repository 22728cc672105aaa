"""What crosses the border to the compiled kernels: structures, signatures, and tensors in the form that they take."""

import ctypes
from ctypes import c_float, c_int, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor

from vtc.cuda.arguments import AttentionArguments

TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.bool: 3}


class Rows(ctypes.Structure):
    """`vtc::Rows` of compact.cu."""

    _fields_ = (
        ("from", c_void_p),
        ("to", c_void_p),
        ("batch_stride", c_int64),
        ("row_stride", c_int64),
        ("row_bytes", c_int64),
    )


class Attention(ctypes.Structure):
    """`vtc::Attention` of attention.cu."""

    _fields_ = (
        ("query", c_void_p),
        ("key", c_void_p),
        ("query_strides", c_int64 * 3),
        ("key_strides", c_int64 * 3),
        ("heads", c_int),
        ("groups", c_int),
        ("queries", c_int),
        ("keys", c_int),
        ("dim", c_int),
        ("scaling", c_float),
        ("softcap", c_float),
        ("begin", c_void_p),
        ("end", c_void_p),
        ("mask", c_void_p),
        ("mask_strides", c_int64 * 4),
        ("mask_type", c_int),
    )


SIGNATURES: dict[str, tuple[Any, ...]] = {
    "vtc_compact": (ctypes.POINTER(Rows), c_int, c_void_p, c_int, c_void_p, c_int, c_int, c_int),
    "vtc_merge": (
        *(c_void_p, c_int, c_int64, c_int64),
        *(c_void_p, c_void_p, c_int, c_void_p, c_int, c_void_p),
        *(c_int, c_int, c_int, c_int, c_int),
    ),
    "vtc_greedy": (*[c_void_p] * 8, c_int, c_int, c_int, c_int),
    "vtc_greedy_steps": (c_void_p, c_int, c_int64, c_int64, *[c_void_p] * 6, *[c_int] * 6),
    "vtc_cover": (c_void_p, c_int, *[c_void_p] * 4, *[c_int] * 4, c_float, c_int, c_int),
    "vtc_span": (c_void_p, c_int, c_int64, c_int64, *[c_void_p] * 6, *[c_int] * 5),
    "vtc_peaks": (c_void_p, c_int, *[c_void_p] * 6, *[c_int] * 5),
    "vtc_members": (*[c_void_p] * 5, *[c_int] * 3),
    "vtc_attention_rows": (ctypes.POINTER(Attention), c_int, c_void_p, c_int),
    "vtc_attention_received": (
        *(ctypes.POINTER(Attention), c_int, c_void_p, c_float, c_void_p, c_void_p, c_void_p, c_int),
    ),
}


def pointer(tensor: Tensor | None) -> int | None:
    """Where a tensor begins; None for none."""
    return None if tensor is None else tensor.data_ptr()


def rows(old: Tensor, new: Tensor) -> Rows:
    """A tensor [B, L, ...] to gather from, rows in one piece, and the new one."""
    size = old.element_size()
    batch_stride = 0 if old.shape[0] == 1 else old.stride(0) * size
    return Rows(pointer(old), pointer(new), batch_stride, old.stride(1) * size, old[0, 0].numel() * size)


def attention(arguments: AttentionArguments) -> tuple[Attention, list[Tensor]]:
    """What the kernels know of a call, and the tensors that have to live until it is launched."""
    query, key, scaling, mask, begin, end, softcap = arguments
    batch, heads, queries, dim = query.shape
    bounds = [None if bound is None else bound.to(torch.int32).contiguous() for bound in (begin, end)]
    strides: tuple[int, ...] = (0, 0, 0, 0)
    if mask is not None:
        mask = mask if mask.dtype in TYPES else mask.float()
        mask = mask.expand(batch, heads, queries, key.shape[2])
        strides = mask.stride()
    call = Attention(
        query=pointer(query),
        key=pointer(key),
        query_strides=(c_int64 * 3)(*query.stride()[:3]),
        key_strides=(c_int64 * 3)(*key.stride()[:3]),
        heads=heads,
        groups=key.shape[1],
        queries=queries,
        keys=key.shape[2],
        dim=dim,
        scaling=scaling,
        softcap=softcap or 0.0,
        begin=pointer(bounds[0]),
        end=pointer(bounds[1]),
        mask=pointer(mask),
        mask_strides=(c_int64 * 4)(*strides),
        mask_type=0 if mask is None else TYPES[mask.dtype],
    )
    return call, [tensor for tensor in (query, key, mask, *bounds) if tensor is not None]


def dense(tensor: Tensor) -> Tensor:
    """`tensor` [B, L, ...] with each row in one piece."""
    expected = 1
    for size, stride in zip(reversed(tensor.shape[2:]), reversed(tensor.stride()[2:]), strict=True):
        if size > 1 and stride != expected:
            return tensor.contiguous()
        expected *= size
    return tensor


def last_dense(tensor: Tensor) -> Tensor:
    """`tensor` with its last dimension in one piece."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def aligned(tensor: Tensor) -> Tensor:
    """`tensor` [B, H, N, d] whose rows begin at multiples of 16 bytes; d grows by zeros where it has to."""
    vector = 16 // tensor.element_size()
    if missing := -tensor.shape[-1] % vector:
        return torch.nn.functional.pad(tensor, (0, missing))
    strides = [stride for stride, size in zip(tensor.stride()[:3], tensor.shape, strict=False) if size > 1]
    fits = tensor.stride(-1) == 1 and tensor.data_ptr() % 16 == 0 and all(stride % vector == 0 for stride in strides)
    return tensor if fits else tensor.clone(memory_format=torch.contiguous_format)
