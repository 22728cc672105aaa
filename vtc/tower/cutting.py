"""Arguments of a tower block, cut to the rows that are left."""

from typing import Any

import torch
from torch import Tensor

from vtc.calls.tower import is_boundaries
from vtc.ops.host import on


def is_per_row(value: Any, length: int) -> bool:
    """Whether an argument, or a part of it, has something for each of `length` rows."""
    if isinstance(value, tuple | list):
        return any(is_per_row(part, length) for part in value)
    return isinstance(value, Tensor) and length in value.shape


def cut(value: Any, name: str, alive: Tensor, length: int, by: str) -> Any:
    """What an argument is for the rows that are left.

    Args:
        value: for all rows.
        name: of the argument.
        alive: LongTensor [E, P]: the rows that are left.
        length: rows of each entry in the untouched tower.
        by: who cuts, for the sentence.

    Raises:
        ValueError: it is told for each row of a batch.
    """
    if isinstance(value, tuple | list):
        return type(value)(cut(part, name, alive, length, by) for part in value)
    if not isinstance(value, Tensor):
        return value
    if is_boundaries(name):
        ahead = torch.zeros(length + 1, dtype=torch.long, device=value.device)
        ahead[1:] = torch.zeros_like(ahead[1:]).index_fill_(0, on(value.device, alive[0]), 1).cumsum(0)
        return ahead[value.long()].unique_consecutive().to(value.dtype)
    if not is_per_row(value, length):
        return value
    if len(alive) > 1:
        raise ValueError(
            f"{by}: the tower's blocks take {name} for each patch of a batch, which can't be cut here; use a selector, "
            "or give images one at a time"
        )
    index = on(value.device, alive[0])
    first = value.shape.index(length)
    pairs = value.dim() == 4 and value.shape[-2:] == (length, length)  # a mask over queries and keys
    for axis in (2, 3) if pairs else (first,):
        value = value.index_select(axis, index)
    return value
