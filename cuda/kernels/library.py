"""The compiled kernels, called with tensors: same arguments and results as the functions of `vtc.ops.reference`.

Launches go to torch's current stream of the tensors' device and don't wait for it. Results and work space come from
torch's allocator, in front of the launch.
"""

import contextlib
import ctypes
import math
from collections.abc import Iterator
from ctypes import c_char_p, c_void_p
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vtc.cuda import choosing
from vtc.cuda.arguments import AttentionArguments
from vtc.cuda.directions import farthest, inverse_lengths, products, unit_rows
from vtc.cuda.structs import SIGNATURES, TYPES, Rows, aligned, attention, dense, last_dense, pointer, rows

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
        for name, signature in SIGNATURES.items():
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
        given = args[0]
        first = given.query if isinstance(given, AttentionArguments) else given
        if first.dtype not in TYPES or first.dtype == torch.bool:
            return False
        if name == "merge":
            return args[3].is_floating_point() and args[3].dtype in TYPES and first.shape[0] <= _MAX_GRID
        if name in ("facility_location", "coverage", "dpp_map"):
            images, others, last = first.shape
            fits = name != "coverage" or others <= choosing.COVERED_TOKENS
            floats = last + args[1] if name == "dpp_map" else others + 8  # of shared memory
            return fits and 4 * floats <= choosing.SHARED and images <= _MAX_GRID
        if name == "weighted_max_min":
            return first.shape[1] <= _MATRIX_TOKENS and first.shape[0] <= _MAX_GRID
        if name == "density_peaks":
            return first.numel() > 0 and first.shape[1] <= choosing.CLUSTERED_TOKENS and first.shape[0] <= _MAX_GRID
        if name == "max_min":
            return 4 * first.shape[2] <= 96 * 1024 and first.shape[0] <= _MAX_GRID
        same = first.dtype == given.key.dtype and max(first.shape[0], first.shape[1]) <= _MAX_GRID
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
                pairs = [(dense(old), new) for old, new in zip(tensors[part], made[part], strict=True) if new.numel()]
                by_length: dict[int, list[tuple[Tensor, Tensor]]] = {}
                for old, new in pairs:
                    by_length.setdefault(old.shape[1], []).append((old, new))
                for length, same in by_length.items():
                    given_rows = (Rows * len(same))(*(rows(old, new) for old, new in same))
                    wide = index.dtype == torch.int64
                    given = pointer(index), wide, pointer(valid), batch, count, length
                    self._call("vtc_compact", given_rows, len(same), *given, stream)
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

    def weighted_max_min(
        self, features: Tensor, k: int, seed: Tensor, weight: Tensor | None, bonus: Tensor | None
    ) -> Tensor:
        """Greedy order by what tokens are worth; see `vtc.ops.weighted_max_min`."""
        images, tokens, _ = features.shape
        picks = torch.empty(images, k, dtype=torch.int64, device=features.device)
        seed = seed.long().contiguous()
        worth = torch.ones(images, tokens, device=features.device) if weight is None else choosing.clean(weight)
        more = torch.zeros_like(worth) if bonus is None else choosing.clean(bonus)
        with self._on(features, seed, worth, more) as stream:
            at_once = max(1, _MATRIX_ENTRIES // tokens**2)
            for start in range(0, images, at_once):
                part = slice(start, start + at_once)
                self._greedy(features[part], seed[part], "max-min", None, picks[part], stream, worth[part], more[part])
        return picks

    def _greedy(
        self,
        features: Tensor,
        seed: Tensor | None,
        rule: str,
        counts: Tensor | None,
        picks: Tensor,
        stream: int,
        weight: Tensor | None = None,
        bonus: Tensor | None = None,
    ) -> None:
        """From the products of all pairs: one launch, and one for the first pick where there is no seed."""
        images, tokens, _ = features.shape
        if features.dtype == torch.float32:
            features, lost = unit_rows(features)
            inverse = (~lost).float()
        else:
            inverse = inverse_lengths(features)
        pairs = products(features, features).float().contiguous()
        nearest = None if seed is not None else torch.empty_like(inverse)
        given = (pointer(value) for value in (pairs, inverse, nearest, seed, counts, weight, bonus, picks))
        self._call("vtc_greedy", *given, images, tokens, picks.shape[1], rule == "max-sum", stream)

    def _greedy_steps(
        self, features: Tensor, seed: Tensor | None, rule: str, counts: Tensor | None, picks: Tensor, stream: int
    ) -> None:
        """From the features: a launch for each pick."""
        images, tokens, dim = features.shape
        features = features if features.stride(2) == 1 else features.contiguous()
        inverse, k = inverse_lengths(features), picks.shape[1]
        near = torch.full_like(inverse, 0.0 if rule == "max-sum" else -math.inf).masked_fill_(inverse == 0, 1e30)
        picks[:, 0] = farthest(features, inverse, counts) if seed is None else seed
        processors = (
            1 if not features.is_cuda else torch.cuda.get_device_properties(features.device).multi_processor_count
        )
        blocks = min(-(-tokens // 8), 4 * processors)
        partial = torch.empty(images, blocks, dtype=torch.int64, device=features.device)
        arrived = torch.zeros(images, dtype=torch.int32, device=features.device)
        sizes = images, tokens, dim, k, rule == "max-sum", blocks
        work = (pointer(value) for value in (inverse, near, partial, arrived, counts, picks))
        self._call(
            "vtc_greedy_steps",
            pointer(features),
            TYPES[features.dtype],
            *features.stride()[:2],
            *work,
            *sizes,
            stream,
        )

    def facility_location(
        self, values: Tensor, k: int, weight: Tensor | None, combine: str, tolerance: float
    ) -> Tensor:
        """Greedy cover of demands; see `vtc.ops.facility_location`."""
        with self._on(values, weight) as stream:
            return choosing.cover(self._call, values.mT, k, weight, combine, tolerance, stream)

    def coverage(self, features: Tensor, k: int, weight: Tensor | None, combine: str) -> Tensor:
        """Greedy cover of tokens by themselves; see `vtc.ops.coverage`."""
        with self._on(features, weight) as stream:
            return choosing.cover_themselves(self._call, features, k, weight, combine, stream)

    def dpp_map(self, features: Tensor, k: int, quality: Tensor | None, floor: float) -> Tensor:
        """Greedy MAP of a determinantal point process; see `vtc.ops.dpp_map`."""
        with self._on(features, quality) as stream:
            return choosing.span(self._call, features, k, quality, floor, stream)

    def density_peaks(
        self, x: Tensor, count: Tensor, most: int, neighbours: Tensor | None, valid: Tensor | None, ranked: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Score, centres and membership; see `vtc.ops.clusters.density_peaks`."""
        with self._on(x, count, neighbours, valid) as stream:
            return choosing.peaks(self._call, x, count, most, neighbours, valid, ranked, stream)

    def attention_rows(self, arguments: AttentionArguments) -> Tensor:
        """Rows of softmax(Q Kᵀ); see `vtc.ops.attention_rows`."""
        query, key = arguments.query, arguments.key
        made = torch.empty(*query.shape[:3], key.shape[2], device=query.device, dtype=torch.float32)
        if made.numel():
            with self._on(query, key, arguments.mask, arguments.begin, arguments.end) as stream:
                call, kept = attention(arguments._replace(query=last_dense(query), key=last_dense(key)))
                self._call("vtc_attention_rows", call, TYPES[query.dtype], pointer(made), len(query), stream)
                del kept
        return made

    def attention_received(self, arguments: AttentionArguments, weights: Tensor | None) -> Tensor:
        """Weighted column sums of softmax(Q Kᵀ); see `vtc.ops.attention_received`."""
        query, key = arguments.query, arguments.key
        batch, heads, queries, _ = query.shape
        partial = torch.empty(batch, heads, key.shape[2], dtype=torch.float32, device=query.device)
        if not partial.numel() or not queries:
            return partial.new_zeros(batch, key.shape[2])
        weights = None if weights is None else weights.float().contiguous()
        denominator = torch.empty(batch, heads, queries, 2, dtype=torch.float32, device=query.device)
        bounds = torch.empty(batch, -(-queries // _TILE), 4, dtype=torch.int32, device=query.device)
        with self._on(query, key, weights, arguments.mask, arguments.begin, arguments.end) as stream:
            call, kept = attention(arguments._replace(query=aligned(query), key=aligned(key)))
            work = (pointer(value) for value in (denominator, bounds, partial))
            given = call, TYPES[query.dtype], pointer(weights), 1 / queries
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
            entries = pointer(source), pointer(target), source.dtype == torch.int64, pointer(weight)
            sizes = images, tokens, dim, source.shape[1], k
            given = (
                pointer(x),
                TYPES[x.dtype],
                *x.stride()[:2],
                *entries,
                TYPES[weight.dtype],
                pointer(made),
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
