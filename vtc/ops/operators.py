"""The only door to the operations that cost time.

Each is a custom operator of torch (`torch.ops.vtc.*`), so that torch.compile traces through it. On a GPU it runs the
kernels of `vtc.cuda` where these can be had, anywhere else the torch references of `vtc.ops.reference`.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from vtc.ops import reference
from vtc.ops.mixing import Mixing

_RULES = ("max-min", "max-sum")
_INDEX = (torch.int64, torch.int32)
_kernels = contextvars.ContextVar("vtc_kernels", default=True)


@contextlib.contextmanager
def kernels(enabled: bool) -> Iterator[None]:
    """Within it, this thread's operations run the kernels, or with False the torch references, on a GPU too."""
    token = _kernels.set(enabled)
    try:
        yield
    finally:
        _kernels.reset(token)


# ---------------------------------------------------------------- compact


def compact(tensors: list[Tensor], index: Tensor, valid: Tensor | None = None) -> list[Tensor]:
    """Gather the rows of several tensors by one index, in one launch; gradients flow to floating-point ones.

    Args:
        tensors: each [B, L, ...], or [1, L, ...] where all rows of the batch share it; any dtype.
        index: LongTensor or IntTensor [B, n]: rows in 0…L-1.
        valid: BoolTensor [B, n]: where it is False the new row is zero; None: nowhere.

    Returns:
        The tensors [B, n, ...].

    Raises:
        ValueError: shapes do not fit.
        TypeError: index or valid of another dtype.
    """
    batch, count = _shape("index", index, "B", "n")
    _dtype("index", index, _INDEX)
    for number, tensor in enumerate(tensors):
        if tensor.dim() < 2 or tensor.shape[0] not in (batch, 1):
            raise ValueError(
                f"tensors[{number}] of shape {tuple(tensor.shape)} is not [{batch} or 1, L, ...], as index has it"
            )
    if valid is not None:
        _same("valid", valid, (batch, count))
        _dtype("valid", valid, (torch.bool,))
    return _implementation("compact", index)(list(tensors), index, valid) if tensors else []


@torch.library.custom_op("vtc::compact", mutates_args=())
def _compact(tensors: list[Tensor], index: Tensor, valid: Tensor | None) -> list[Tensor]:
    return reference.compact(tensors, index, valid)


@_compact.register_fake
def _(tensors: list[Tensor], index: Tensor, valid: Tensor | None) -> list[Tensor]:
    return [tensor.new_empty(*index.shape, *tensor.shape[2:]) for tensor in tensors]


def _save_compact(ctx: Any, inputs: tuple, output: list[Tensor]) -> None:
    tensors, index, valid = inputs
    ctx.shapes = [tensor.shape for tensor in tensors]
    ctx.save_for_backward(index, valid)


def _compact_backward(ctx: Any, gradients: list[Tensor | None]) -> tuple:
    index, valid = ctx.saved_tensors
    return [_spread(gradient, shape, index, valid) for gradient, shape in zip(gradients, ctx.shapes)], None, None


def _spread(gradient: Tensor | None, shape: torch.Size, index: Tensor, valid: Tensor | None) -> Tensor | None:
    """Rows added up where they were taken from."""
    if gradient is None or not gradient.is_floating_point():
        return None
    trailing = [1] * (len(shape) - 2)
    if valid is not None:
        gradient = gradient.masked_fill(~valid.view(*valid.shape, *trailing), 0)
    place = index.long().view(*index.shape, *trailing).expand(gradient.shape)
    whole = gradient.new_zeros(len(index), *shape[1:]).scatter_add(1, place, gradient)
    return whole if shape[0] == len(index) else whole.sum(dim=0, keepdim=True)


_compact.register_autograd(_compact_backward, setup_context=_save_compact)


# ---------------------------------------------------------------- greedy diversity


@torch.no_grad()
def max_min(
    features: Tensor, k: int, seed: Tensor | None = None, rule: str = "max-min", counts: Tensor | None = None
) -> Tensor:
    """Greedy diversity order under cosine distance, for G images at once.

    Each step picks the token that lies farthest from those picked before. How far a token is: "max-min" (greedy
    k-center): the distance to its nearest pick; "max-sum": the sum of its distances to all picks. Equal distances:
    lowest index. A smaller k gives a prefix. Rows that have no direction (zero, NaN, Inf) come last.

    Args:
        features: [G, N, D]; half precision is computed in float32.
        k: picks per image, 1 <= k <= N.
        seed: LongTensor or IntTensor [G], the first picks, in 0…N-1; None: the token whose nearest other token is
            farthest away.
        rule: "max-min" or "max-sum".
        counts: LongTensor or IntTensor [G], each at least 1: an image's tokens, where those behind are padding; None:
            all are tokens.

    Returns:
        LongTensor [G, k] in pick order, no duplicates; -1 where an image has no more tokens.

    Raises:
        ValueError: k or rule out of range, shapes that do not fit.
        TypeError: seed or counts of another dtype.
    """
    images, tokens, _ = _shape("features", features, "G", "N", "D")
    if not 1 <= k <= tokens:
        raise ValueError(f"k={k} is not in 1…{tokens}, the tokens present")
    if rule not in _RULES:
        raise ValueError(f"rule={rule!r} is not one of 'max-min', 'max-sum'")
    for name, value in (("seed", seed), ("counts", counts)):
        if value is not None:
            _same(name, value, (images,))
            _dtype(name, value, _INDEX)
    return _implementation("max_min", features)(features, k, seed, rule, counts)


@torch.library.custom_op("vtc::max_min", mutates_args=())
def _max_min(features: Tensor, k: int, seed: Tensor | None, rule: str, counts: Tensor | None) -> Tensor:
    return reference.max_min(features, k, seed, rule, counts)


@_max_min.register_fake
def _(features: Tensor, k: int, seed: Tensor | None, rule: str, counts: Tensor | None) -> Tensor:
    return features.new_empty(features.shape[0], k, dtype=torch.int64)


# ---------------------------------------------------------------- attention


def attention_rows(
    query: Tensor,
    key: Tensor,
    scaling: float,
    mask: Tensor | None = None,
    begin: Tensor | None = None,
    end: Tensor | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Rows of softmax(Q Kᵀ) for few queries, grouped heads, in float32.

    Args:
        query: [B, H, R, d].
        key: [B, H_kv, S, d]; H is a multiple of H_kv.
        scaling: factor of the logits.
        mask: broadcast to [B, H, R, S]: True may attend (bool), or added to the logits (float).
        begin: LongTensor or IntTensor [B, R]: the first key that each query may see; None: 0.
        end: LongTensor or IntTensor [B, R]: the first key behind those that it may see; None: S.
        softcap: c of c · tanh(logits / c), before the mask; None: no cap.

    Returns:
        Tensor [B, H, R, S]; a row that may see nothing is all zeros.

    Raises:
        ValueError: shapes do not fit.
        TypeError: begin or end of another dtype.
    """
    arguments = query, key, scaling, _attended(query, key, mask, begin, end), begin, end, softcap
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad):
        return reference.attention_rows(*arguments)  # which torch can differentiate
    return _implementation("attention_rows", query)(*arguments)


@torch.library.custom_op("vtc::attention_rows", mutates_args=())
def _attention_rows(
    query: Tensor,
    key: Tensor,
    scaling: float,
    mask: Tensor | None,
    begin: Tensor | None,
    end: Tensor | None,
    softcap: float | None,
) -> Tensor:
    return reference.attention_rows(query, key, scaling, mask, begin, end, softcap)


@_attention_rows.register_fake
def _(query: Tensor, key: Tensor, *_: Any) -> Tensor:
    return query.new_empty(*query.shape[:3], key.shape[2], dtype=torch.float32)


def attention_received(
    query: Tensor,
    key: Tensor,
    scaling: float,
    weights: Tensor | None = None,
    mask: Tensor | None = None,
    begin: Tensor | None = None,
    end: Tensor | None = None,
    softcap: float | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """Attention probability that each key receives: weighted column sums of softmax(Q Kᵀ), mean over heads, in float32.

    No matrix of all queries and keys is kept.

    Args:
        query: [B, H, Q, d].
        key: [B, H_kv, S, d]; H is a multiple of H_kv.
        scaling: factor of the logits.
        weights: [B, Q] of each query; None: 1 / Q, or 1 / length of its sequence, so that the result sums to 1 in each.
        mask: broadcast to [B, H, Q, S]: True may attend (bool), or added to the logits (float).
        begin: LongTensor or IntTensor [B, Q]: the first key that each query may see; None: 0.
        end: LongTensor or IntTensor [B, Q]: the first key behind those that it may see; None: S.
        softcap: c of c · tanh(logits / c), before the mask; None: no cap.
        cu_seqlens: LongTensor or IntTensor [sequences + 1], 0 … S: sequences packed into one row (B = 1, Q = S), each
            of which sees itself; instead of begin and end.

    Returns:
        Tensor [B, S]; a query that may see nothing gives nothing.

    Raises:
        ValueError: shapes do not fit, or cu_seqlens beside begin and end.
        TypeError: begin, end or cu_seqlens of another dtype.
    """
    if cu_seqlens is not None:
        if begin is not None or end is not None:
            raise ValueError("cu_seqlens says which keys a query may see, as begin and end do; give one of them")
        begin, end = _bounds(query, key, cu_seqlens)
        weights = 1 / (end - begin) if weights is None else weights
    if weights is not None:
        _same("weights", weights, (query.shape[0], query.shape[2]))
    mask = _attended(query, key, mask, begin, end)
    arguments = query, key, scaling, weights, mask, begin, end, softcap
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad):
        return reference.attention_received(*arguments)  # which torch can differentiate
    return _implementation("attention_received", query)(*arguments)


@torch.library.custom_op("vtc::attention_received", mutates_args=())
def _attention_received(
    query: Tensor,
    key: Tensor,
    scaling: float,
    weights: Tensor | None,
    mask: Tensor | None,
    begin: Tensor | None,
    end: Tensor | None,
    softcap: float | None,
) -> Tensor:
    return reference.attention_received(query, key, scaling, weights, mask, begin, end, softcap)


@_attention_received.register_fake
def _(query: Tensor, key: Tensor, *_: Any) -> Tensor:
    return query.new_empty(query.shape[0], key.shape[2], dtype=torch.float32)


def _bounds(query: Tensor, key: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
    """The sequence [1, Q] of each query in a packed row: where it begins, and ends."""
    _dtype("cu_seqlens", cu_seqlens, _INDEX)
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


def _attended(
    query: Tensor, key: Tensor, mask: Tensor | None, begin: Tensor | None, end: Tensor | None
) -> Tensor | None:
    """The mask with four dimensions, after all shapes were checked."""
    batch, heads, queries, dim = _shape("query", query, "B", "H", "Q", "d")
    same, groups, keys, width = _shape("key", key, "B", "H_kv", "S", "d")
    if (same, width) != (batch, dim) or not groups or heads % groups:
        raise ValueError(
            f"key of shape {tuple(key.shape)} does not fit query {tuple(query.shape)}: batch and d must be equal, H a "
            "multiple of H_kv"
        )
    for name, bound in (("begin", begin), ("end", end)):
        if bound is not None:
            _same(name, bound, (batch, queries))
            _dtype(name, bound, _INDEX)
    if mask is None:
        return None
    shape = (1,) * (4 - mask.dim()) + tuple(mask.shape)
    if len(shape) > 4 or any(n not in (1, full) for n, full in zip(shape, (batch, heads, queries, keys))):
        raise ValueError(f"mask of shape {tuple(mask.shape)} can't be broadcast to {(batch, heads, queries, keys)}")
    return mask.view(shape) if mask.dim() < 4 else mask


# ---------------------------------------------------------------- merge


def merge(x: Tensor, mixing: Mixing, k: int) -> Tensor:
    """New tokens = W · old tokens, for sparse W; gradients flow to `x` and the weights.

    Args:
        x: [G, N, D]; half precision is summed in float32.
        mixing: W, with targets in 0…k-1.
        k: new tokens per image.

    Returns:
        Tensor [G, k, D] in the dtype of `x`; a row without entries is zero.

    Raises:
        ValueError: shapes do not fit.
        TypeError: source or target of another dtype.
    """
    images, _, _ = _shape("x", x, "G", "N", "D")
    entries = mixing.source.shape[-1]
    for name in ("source", "target", "weight"):
        _same(f"mixing.{name}", getattr(mixing, name), (images, entries))
    _dtype("mixing.source", mixing.source, _INDEX)
    _dtype("mixing.target", mixing.target, _INDEX)
    return _implementation("merge", x)(x, mixing.source, mixing.target, mixing.weight, k)


@torch.library.custom_op("vtc::merge", mutates_args=())
def _merge(x: Tensor, source: Tensor, target: Tensor, weight: Tensor, k: int) -> Tensor:
    return reference.merge(x, source, target, weight, k)


@_merge.register_fake
def _(x: Tensor, source: Tensor, target: Tensor, weight: Tensor, k: int) -> Tensor:
    return x.new_empty(x.shape[0], k, x.shape[2])


def _save_merge(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, source, target, weight, _ = inputs
    ctx.save_for_backward(x, source, target, weight)


def _merge_backward(ctx: Any, gradient: Tensor) -> tuple:
    x, source, target, weight = ctx.saved_tensors
    of_x = of_weight = None
    if ctx.needs_input_grad[0]:  # Wᵀ · gradient
        of_x = _merge(gradient, target, source, weight, x.shape[1]).to(x.dtype)
    if ctx.needs_input_grad[3]:
        exact = torch.promote_types(x.dtype, torch.float32)
        rows = (
            taken.gather(1, index.long()[:, :, None].expand(-1, -1, x.shape[2])).to(exact)
            for taken, index in ((gradient, target), (x, source))
        )
        of_weight = torch.mul(*rows).sum(dim=-1).to(weight.dtype)
    return of_x, None, None, of_weight, None


_merge.register_autograd(_merge_backward, setup_context=_save_merge)


# ---------------------------------------------------------------- who does it


def _implementation(name: str, tensor: Tensor) -> Callable[..., Any]:
    """The operator; on a CPU, outside of compiled code, the reference, for which calling it would take longer."""
    if tensor.device.type == "cpu" and not torch.compiler.is_compiling():
        return getattr(reference, name)
    return _OPERATORS[name]


def _register(name: str, operator: Any) -> None:
    """Let `operator` run the kernel on a GPU where there is one for these arguments, and else the reference."""
    plain: Callable[..., Any] = getattr(reference, name)

    @operator.register_kernel("cuda")
    def on_cuda(*args: Any) -> Any:
        with torch.autocast("cuda", enabled=False):  # what is said to be in float32 is
            if _kernels.get():
                from vtc.ops.cuda import kernel_for

                kernel = kernel_for(name, *args)
                if kernel is not None:
                    return kernel(*args)
            return plain(*args)


_OPERATORS: dict[str, Any] = {
    "compact": _compact,
    "max_min": _max_min,
    "attention_rows": _attention_rows,
    "attention_received": _attention_received,
    "merge": _merge,
}
for _name, _operator in _OPERATORS.items():
    _register(_name, _operator)


# ---------------------------------------------------------------- what is refused


def _shape(name: str, tensor: Tensor, *dims: str) -> torch.Size:
    if tensor.dim() != len(dims):
        raise ValueError(f"{name} of shape {tuple(tensor.shape)} is not [{', '.join(dims)}]")
    return tensor.shape


def _same(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} of shape {tuple(tensor.shape)} is not {list(shape)}")


def _dtype(name: str, tensor: Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    if tensor.dtype not in dtypes:
        raise TypeError(f"{name} is {tensor.dtype}; give {' or '.join(map(str, dtypes))}")
