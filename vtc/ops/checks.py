"""What the operators refuse: shapes and dtypes that do not fit."""

import torch
from torch import Tensor

#: What an index may be.
INDEX = (torch.int64, torch.int32)


def shape_of(name: str, tensor: Tensor, *dims: str) -> torch.Size:
    """The shape of a tensor with these dimensions.

    Raises:
        ValueError: it has others.
    """
    if tensor.dim() != len(dims):
        raise ValueError(f"{name} of shape {tuple(tensor.shape)} is not [{', '.join(dims)}]")
    return tensor.shape


def check_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Check a tensor's shape.

    Raises:
        ValueError: it is another.
    """
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} of shape {tuple(tensor.shape)} is not {list(shape)}")


def check_dtype(name: str, tensor: Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    """Check a tensor's dtype.

    Raises:
        TypeError: it is another.
    """
    if tensor.dtype not in dtypes:
        raise TypeError(f"{name} is {tensor.dtype}; give {' or '.join(map(str, dtypes))}")
