"""The compiled kernels, called with tensors: same arguments and results as the functions of `vtc.ops.reference`.

Launches go to torch's current stream of the tensors' device and don't wait for it. Results and work space come from
torch's allocator, in front of the launch.
"""

import contextlib
import ctypes
import math
from collections.abc import Iterator
from ctypes import c_char_p, c_float, c_int, c_int64, c_void_p
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vtc.cuda.unit import unit_rows

_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.bool: 3}
_MAX_TENSORS = 16
#: Up to so many tokens one block walks through the products of all pairs; beyond, each pick computes its row.
_MATRIX_TOKENS = 8192
#: Products of all pairs that are kept at once, of so many images as fit.
_MATRIX_ENTRIES = 2**26
_TILE = 64
#: Bytes of shared memory that received attention takes for float32 heads of 128: three tiles, and a column's numbers.
_FLOAT32_SHARED = 3 * _TILE * (128 + 4) * 4 + 2560
#: Images, or heads, that one launch counts.
_MAX_GRID = 65535


class LibraryError(RuntimeError):
    """The library can't be loaded, or this device can't run it; the message says why."""


class _Rows(ctypes.Structure):
    """`vtc::Rows` of compact.cu."""

    _fields_ = (
        ("from", c_void_p),
        ("to", c_void_p),
        ("batch_stride", c_int64),
        ("row_stride", c_int64),
        ("row_bytes", c_int64),
    )


class _Attention(ctypes.Structure):
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


_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "vtc_compact": (ctypes.POINTER(_Rows), c_int, c_void_p, c_int, c_void_p, c_int, c_int, c_int),
    "vtc_merge": (
        *(c_void_p, c_int, c_int64, c_int64),
        *(c_void_p, c_void_p, c_int, c_void_p, c_int, c_void_p),
        *(c_int, c_int, c_int, c_int, c_int),
    ),
    "vtc_greedy": (*[c_void_p] * 6, c_int, c_int, c_int, c_int),
    "vtc_greedy_steps": (c_void_p, c_int, c_int64, c_int64, *[c_void_p] * 6, *[c_int] * 6),
    "vtc_attention_rows": (ctypes.POINTER(_Attention), c_int, c_void_p, c_int),
    "vtc_attention_received": (
        *(ctypes.POINTER(_Attention), c_int, c_void_p, c_float, c_void_p, c_void_p, c_void_p, c_int),
    ),
}


class Library:
    """One compiled library.

    Args:
        path: the shared library.

    Raises:
        LibraryError: it can't be loaded, or the current device can't run it.
    """

    def __init__(self, path: Path):
        try:
            self._library = ctypes.CDLL(str(path))
        except OSError as error:
            raise LibraryError(f"{path} can't be loaded: {error}") from error
        self._library.vtc_error.restype = c_char_p
        for name, signature in _SIGNATURES.items():
            getattr(self._library, name).argtypes = (*signature, c_void_p)
        device = torch.cuda.current_device() if torch.cuda.is_available() else 0
        if failed := self._library.vtc_use(device) or self._library.vtc_probe():
            raise LibraryError(f"{path} does not run on this GPU: {self._library.vtc_error(failed).decode()}")

    def takes(self, name: str, *args: Any) -> bool:
        """Whether there is a kernel for these arguments: float32, float16 and bfloat16, heads of up to 256 (128).

        Received attention of float32 with heads of more than 80 takes 101 KiB of shared memory; not all GPUs have that.
        """
        if name == "compact":
            return True
        first = args[0]
        if first.dtype not in _TYPES or first.dtype == torch.bool:
            return False
        if name == "merge":
            return args[3].is_floating_point() and args[3].dtype in _TYPES and first.shape[0] <= _MAX_GRID
        if name == "max_min":
            return 4 * first.shape[2] <= 96 * 1024 and first.shape[0] <= _MAX_GRID
        same = first.dtype == args[1].dtype and max(first.shape[0], first.shape[1]) <= _MAX_GRID
        longest = 256 if first.element_size() == 2 else 128
        if name == "attention_received" and longest == 128 and first.is_cuda:
            properties = torch.cuda.get_device_properties(first.device)
            longest = longest if getattr(properties, "shared_memory_per_block_optin", 0) >= _FLOAT32_SHARED else 80
        return same and first.shape[3] <= longest

    # ---------------------------------------------------------------- the operations

    def compact(self, tensors: list[Tensor], index: Tensor, valid: Tensor | None) -> list[Tensor]:
        """Gather rows; see `vtc.ops.compact`."""
        batch, count = index.shape
        made = [tensor.new_empty(batch, count, *tensor.shape[2:]) for tensor in tensors]
        index, valid = index.contiguous(), None if valid is None else valid.contiguous()
        with self._on(tensors[0], index, valid, *tensors) as stream:
            for start in range(0, len(tensors), _MAX_TENSORS):
                part = slice(start, start + _MAX_TENSORS)
                pairs = [(_dense(old), new) for old, new in zip(tensors[part], made[part], strict=True) if new.numel()]
                by_length: dict[int, list[tuple[Tensor, Tensor]]] = {}
                for old, new in pairs:
                    by_length.setdefault(old.shape[1], []).append((old, new))
                for length, same in by_length.items():
                    rows = (_Rows * len(same))(*(_rows(old, new) for old, new in same))
                    wide = index.dtype == torch.int64
                    given = _pointer(index), wide, _pointer(valid), batch, count, length
                    self._call("vtc_compact", rows, len(same), *given, stream)
        return made

    def max_min(self, features: Tensor, k: int, seed: Tensor | None, rule: str, counts: Tensor | None) -> Tensor:
        """Greedy diversity order; see `vtc.ops.max_min`."""
        images, tokens, _ = features.shape
        picks = torch.empty(images, k, dtype=torch.int64, device=features.device)
        seed = None if seed is None else seed.long().contiguous()
        counts = None if counts is None else counts.long().contiguous()
        with self._on(features, seed, counts) as stream:
            if tokens > _MATRIX_TOKENS:
                self._greedy_steps(features, seed, rule, counts, picks, stream)
                return picks
            at_once = max(1, _MATRIX_ENTRIES // tokens**2)
            for start in range(0, images, at_once):
                part = slice(start, start + at_once)
                seeds, sizes = (None if value is None else value[part] for value in (seed, counts))
                self._greedy(features[part], seeds, rule, sizes, picks[part], stream)
        return picks

    def _greedy(
        self, features: Tensor, seed: Tensor | None, rule: str, counts: Tensor | None, picks: Tensor, stream: int
    ) -> None:
        """From the products of all pairs: one launch, and one for the first pick where there is no seed."""
        images, tokens, _ = features.shape
        if features.dtype == torch.float32:
            features, lost = unit_rows(features)
            inverse = (~lost).float()
        else:
            inverse = _inverse_lengths(features)
        products = _products(features, features).float().contiguous()
        nearest = None if seed is not None else torch.empty_like(inverse)
        given = (_pointer(value) for value in (products, inverse, nearest, seed, counts, picks))
        self._call("vtc_greedy", *given, images, tokens, picks.shape[1], rule == "max-sum", stream)

    def _greedy_steps(
        self, features: Tensor, seed: Tensor | None, rule: str, counts: Tensor | None, picks: Tensor, stream: int
    ) -> None:
        """From the features: a launch for each pick."""
        images, tokens, dim = features.shape
        features = features if features.stride(2) == 1 else features.contiguous()
        inverse, k = _inverse_lengths(features), picks.shape[1]
        near = torch.full_like(inverse, 0.0 if rule == "max-sum" else -math.inf).masked_fill_(inverse == 0, 1e30)
        picks[:, 0] = _farthest(features, inverse, counts) if seed is None else seed
        processors = (
            1 if not features.is_cuda else torch.cuda.get_device_properties(features.device).multi_processor_count
        )
        blocks = min(-(-tokens // 8), 4 * processors)
        partial = torch.empty(images, blocks, dtype=torch.int64, device=features.device)
        arrived = torch.zeros(images, dtype=torch.int32, device=features.device)
        sizes = images, tokens, dim, k, rule == "max-sum", blocks
        work = (_pointer(value) for value in (inverse, near, partial, arrived, counts, picks))
        self._call(
            "vtc_greedy_steps",
            _pointer(features),
            _TYPES[features.dtype],
            *features.stride()[:2],
            *work,
            *sizes,
            stream,
        )

    def attention_rows(
        self,
        query: Tensor,
        key: Tensor,
        scaling: float,
        mask: Tensor | None,
        begin: Tensor | None,
        end: Tensor | None,
        softcap: float | None,
    ) -> Tensor:
        """Rows of softmax(Q Kᵀ); see `vtc.ops.attention_rows`."""
        rows = torch.empty(*query.shape[:3], key.shape[2], device=query.device, dtype=torch.float32)
        if rows.numel():
            with self._on(query, key, mask, begin, end) as stream:
                call, kept = _attention(_last_dense(query), _last_dense(key), scaling, mask, begin, end, softcap)
                self._call("vtc_attention_rows", call, _TYPES[query.dtype], _pointer(rows), len(query), stream)
                del kept
        return rows

    def attention_received(
        self,
        query: Tensor,
        key: Tensor,
        scaling: float,
        weights: Tensor | None,
        mask: Tensor | None,
        begin: Tensor | None,
        end: Tensor | None,
        softcap: float | None,
    ) -> Tensor:
        """Weighted column sums of softmax(Q Kᵀ); see `vtc.ops.attention_received`."""
        batch, heads, queries, _ = query.shape
        partial = torch.empty(batch, heads, key.shape[2], dtype=torch.float32, device=query.device)
        if not partial.numel() or not queries:
            return partial.new_zeros(batch, key.shape[2])
        weights = None if weights is None else weights.float().contiguous()
        denominator = torch.empty(batch, heads, queries, 2, dtype=torch.float32, device=query.device)
        bounds = torch.empty(batch, -(-queries // _TILE), 4, dtype=torch.int32, device=query.device)
        with self._on(query, key, weights, mask, begin, end) as stream:
            call, kept = _attention(_aligned(query), _aligned(key), scaling, mask, begin, end, softcap)
            work = (_pointer(value) for value in (denominator, bounds, partial))
            given = call, _TYPES[query.dtype], _pointer(weights), 1 / queries
            self._call("vtc_attention_received", *given, *work, batch, stream)
            del kept
        return partial.mean(dim=1)

    def merge(self, x: Tensor, source: Tensor, target: Tensor, weight: Tensor, k: int) -> Tensor:
        """New tokens = W · old tokens; see `vtc.ops.merge`."""
        images, tokens, dim = x.shape
        made = x.new_empty(images, k, dim)
        if not made.numel():
            return made
        if source.dtype != target.dtype:
            source, target = source.long(), target.long()
        x = x if x.stride(2) == 1 else x.contiguous()
        source, target, weight = source.contiguous(), target.contiguous(), weight.contiguous()
        with self._on(x, source, target, weight) as stream:
            entries = _pointer(source), _pointer(target), source.dtype == torch.int64, _pointer(weight)
            sizes = images, tokens, dim, source.shape[1], k
            given = (
                _pointer(x),
                _TYPES[x.dtype],
                *x.stride()[:2],
                *entries,
                _TYPES[weight.dtype],
                _pointer(made),
                *sizes,
            )
            self._call("vtc_merge", *given, stream)
        return made

    # ---------------------------------------------------------------- calling

    @contextlib.contextmanager
    def _on(self, first: Tensor, *others: Tensor | None) -> Iterator[int]:
        """The current stream of the device of `first`, which all others have to be on.

        Raises:
            ValueError: they are not.
        """
        for other in others:
            if other is not None and other.device != first.device:
                raise ValueError(f"tensors are on {first.device} and {other.device}; bring them to one device")
        if first.device.type != "cuda":
            yield 0
            return
        with torch.cuda.device(first.device):
            self._call("vtc_use", torch.cuda.current_device())
            yield torch.cuda.current_stream().cuda_stream

    def _call(self, name: str, *args: Any) -> None:
        failed = getattr(self._library, name)(*args)
        if failed:
            raise RuntimeError(f"{name}: {self._library.vtc_error(failed).decode()}")


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _dense(tensor: Tensor) -> Tensor:
    """`tensor` [B, L, ...] with each row in one piece."""
    expected = 1
    for size, stride in zip(reversed(tensor.shape[2:]), reversed(tensor.stride()[2:]), strict=True):
        if size > 1 and stride != expected:
            return tensor.contiguous()
        expected *= size
    return tensor


def _rows(old: Tensor, new: Tensor) -> _Rows:
    size = old.element_size()
    batch_stride = 0 if old.shape[0] == 1 else old.stride(0) * size
    return _Rows(_pointer(old), _pointer(new), batch_stride, old.stride(1) * size, old[0, 0].numel() * size)


def _last_dense(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _aligned(tensor: Tensor) -> Tensor:
    """`tensor` [B, H, N, d] whose rows begin at multiples of 16 bytes; d grows by zeros where it has to."""
    vector = 16 // tensor.element_size()
    if missing := -tensor.shape[-1] % vector:
        return torch.nn.functional.pad(tensor, (0, missing))
    strides = [stride for stride, size in zip(tensor.stride()[:3], tensor.shape, strict=False) if size > 1]
    fits = tensor.stride(-1) == 1 and tensor.data_ptr() % 16 == 0 and all(stride % vector == 0 for stride in strides)
    return tensor if fits else tensor.clone(memory_format=torch.contiguous_format)


def _attention(
    query: Tensor,
    key: Tensor,
    scaling: float,
    mask: Tensor | None,
    begin: Tensor | None,
    end: Tensor | None,
    softcap: float | None,
) -> tuple[_Attention, list[Tensor]]:
    """What the kernels know of a call, and the tensors that have to live until it is launched."""
    batch, heads, queries, dim = query.shape
    bounds = [None if bound is None else bound.to(torch.int32).contiguous() for bound in (begin, end)]
    strides: tuple[int, ...] = (0, 0, 0, 0)
    if mask is not None:
        mask = mask if mask.dtype in _TYPES else mask.float()
        mask = mask.expand(batch, heads, queries, key.shape[2])
        strides = mask.stride()
    call = _Attention(
        query=_pointer(query),
        key=_pointer(key),
        query_strides=(c_int64 * 3)(*query.stride()[:3]),
        key_strides=(c_int64 * 3)(*key.stride()[:3]),
        heads=heads,
        groups=key.shape[1],
        queries=queries,
        keys=key.shape[2],
        dim=dim,
        scaling=scaling,
        softcap=softcap or 0.0,
        begin=_pointer(bounds[0]),
        end=_pointer(bounds[1]),
        mask=_pointer(mask),
        mask_strides=(c_int64 * 4)(*strides),
        mask_type=0 if mask is None else _TYPES[mask.dtype],
    )
    return call, [tensor for tensor in (query, key, mask, *bounds) if tensor is not None]


# ---------------------------------------------------------------- what torch computes for max_min


def _products(left: Tensor, right: Tensor) -> Tensor:
    """Products [G, n, m] in float32 of rows [G, n, D] and [G, m, D], which are not rounded on the way."""
    if left.is_cuda and left.dtype != torch.float32:
        return torch.bmm(left, right.mT, out_dtype=torch.float32)
    return left.float() @ right.float().mT


def _inverse_lengths(features: Tensor) -> Tensor:
    """1 / length [G, N] of each row; 0 where it has no direction."""
    inverse = 1 / torch.linalg.vector_norm(features, dim=-1, dtype=torch.float32)
    return inverse.masked_fill_(~inverse.isfinite(), 0.0)


def _farthest(features: Tensor, inverse: Tensor, counts: Tensor | None, chunk: int = 1024) -> Tensor:
    """The token [G] whose nearest other token is farthest away, among those that have a direction."""
    tokens, nearest = features.shape[1], []
    behind = None if counts is None else torch.arange(tokens, device=features.device) >= counts[:, None]
    for start in range(0, tokens, chunk):
        block = _products(features[:, start : start + chunk], features)
        block.mul_(inverse[:, start : start + chunk, None]).mul_(inverse[:, None]).nan_to_num_(0.0, 0.0, 0.0)
        block.diagonal(offset=start, dim1=1, dim2=2).fill_(-math.inf)
        if behind is not None:
            block.masked_fill_(behind[:, None], -math.inf)
        nearest.append(block.amax(dim=-1))
    near = torch.cat(nearest, dim=1).masked_fill_(inverse == 0, 1e30)
    return (near if behind is None else near.masked_fill_(behind, math.inf)).argmin(dim=1)
