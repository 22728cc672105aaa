"""The operations that gather and merge tokens.

Each is a custom operator of torch (`torch.ops.vtc.*`), so that torch.compile traces through it. On a GPU it runs the
kernels of `vtc.cuda` where these can be had, anywhere else the torch references of `vtc.ops.reference`.
"""

from typing import Any

import torch
from torch import Tensor

from vtc.ops import reference
from vtc.ops.checks import INDEX, check_dtype, check_shape, shape_of
from vtc.ops.dispatch import operator_for, register
from vtc.ops.mixing import Mixing

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
    batch, count = shape_of("index", index, "B", "n")
    check_dtype("index", index, INDEX)
    for number, tensor in enumerate(tensors):
        if tensor.dim() < 2 or tensor.shape[0] not in (batch, 1):
            raise ValueError(
                f"tensors[{number}] of shape {tuple(tensor.shape)} is not [{batch} or 1, L, ...], as index has it"
            )
    if valid is not None:
        check_shape("valid", valid, (batch, count))
        check_dtype("valid", valid, (torch.bool,))
    return (operator_for("compact", index) or reference.compact)(list(tensors), index, valid) if tensors else []


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
    images, _, _ = shape_of("x", x, "G", "N", "D")
    entries = mixing.source.shape[-1]
    for name in ("source", "target", "weight"):
        check_shape(f"mixing.{name}", getattr(mixing, name), (images, entries))
    check_dtype("mixing.source", mixing.source, INDEX)
    check_dtype("mixing.target", mixing.target, INDEX)
    return (operator_for("merge", x) or reference.merge)(x, mixing.source, mixing.target, mixing.weight, k)


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


register("compact", _compact)
register("merge", _merge)
