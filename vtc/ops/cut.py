"""Index arithmetic on batched sequences: one index reduces everything that is per token."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vtc import ops


@dataclass(frozen=True)
class Cut:
    """Which tokens of a sequence of `length` survive, right-aligned, with padding on the left.

    Attributes:
        index: LongTensor [B, n]: place in the old sequence, ascending unless `ordered` made it; 0 at padding.
        valid: BoolTensor [B, n]: False at padding.
        length: tokens per row of the old sequence.
        padded: whether any row has padding (known without asking the device).
        identity: whether the sequence stays as it is, its own padding included.
    """

    index: Tensor
    valid: Tensor
    length: int
    padded: bool
    identity: bool = False

    @classmethod
    def whole(cls, valid: Tensor, padded: bool) -> "Cut":
        """Nothing is removed: valid [B, L]."""
        index = torch.arange(valid.shape[1], device=valid.device).expand(valid.shape)
        return cls(index, valid, valid.shape[1], padded, identity=True)

    @classmethod
    def keep(cls, alive: Tensor, counts: Sequence[int]) -> "Cut":
        """Keep the tokens where `alive` [B, L] is True; `counts` says how many these are in each row."""
        longest = max(max(counts), 1)
        index = alive.to(torch.uint8).argsort(dim=1, stable=True)[:, alive.shape[1] - longest :]
        valid = alive.gather(1, index)
        padded = min(counts) < longest
        return cls(index.masked_fill(~valid, 0) if padded else index, valid, alive.shape[1], padded)

    def __len__(self) -> int:
        return self.index.shape[1]

    def ordered(self, source: Tensor) -> "Cut":
        """The same number of tokens where others stand: at place i that of place `source[:, i]` [B, length]."""
        index = source.to(self.index.device).gather(1, self.index)
        return Cut(index.masked_fill(~self.valid, 0), self.valid, self.length, self.padded)

    def to(self, device: torch.device) -> "Cut":
        """The same cut on another device."""
        if self.index.device == device:
            return self
        return Cut(self.index.to(device), self.valid.to(device), self.length, self.padded, self.identity)

    def then(self, later: "Cut") -> "Cut":
        """This cut followed by `later`, as one cut of the first sequence."""
        if later.identity:
            return self
        later = later.to(self.index.device)
        index = self.index.gather(1, later.index)
        valid = self.valid.gather(1, later.index) & later.valid
        return Cut(index, valid, self.length, later.padded)

    def take(self, value: Tensor, dim: int = 1) -> Tensor:
        """Gather a tensor whose dimensions `dim - 1`, `dim` are (batch or 1, length); padding becomes zero."""
        if dim == 1:
            return self.take_all([value])[0]
        planes = value.flatten(0, dim - 2).unbind(0)
        taken = torch.stack(self.take_all(planes))
        return taken.unflatten(0, value.shape[: dim - 1])

    def take_all(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Gather tensors [B or 1, L, ...] of one device in one go; padding becomes zero."""
        cut = self.to(values[0].device)
        return ops.compact(list(values), cut.index, cut.valid if cut.padded and not cut.identity else None)

    def scatter(self, value: Tensor, samples: Tensor | None = None) -> Tensor:
        """Put tokens [B, n, ..] back where they came from in a sequence of the old length; zeros at dropped places.

        The last dropped place in front of a survivor, or at a row's end, gets the last survivor before it: what comes
        next is predicted from there. Where `samples` (LongTensor [B, L], ascending) are packed into a row, each is one.
        """
        if self.identity:
            return value
        cut = self.to(value.device)
        batch, count = cut.index.shape
        row = torch.arange(count, device=value.device).expand(batch, -1)
        slot = torch.full((batch, cut.length + 1), count, device=value.device)
        slot = slot.scatter(1, torch.where(cut.valid, cut.index, cut.length), row)[:, : cut.length]
        alive = slot < count
        before_next = torch.ones_like(alive)
        before_next[:, :-1] = alive[:, 1:]
        place = torch.arange(cut.length, device=value.device)
        last = torch.where(alive, place, -1).cummax(dim=1).values
        if samples is not None:
            samples = samples.to(value.device)
            before_next[:, :-1] |= samples[:, 1:] != samples[:, :-1]
            last = torch.where(samples.gather(1, last.clamp_min(0)) == samples, last, -1)
        slot = torch.where((alive | before_next) & (last >= 0), slot.gather(1, last.clamp_min(0)), count)
        padded = torch.cat([value, value.new_zeros(batch, 1, *value.shape[2:])], dim=1)
        flat = padded.flatten(0, 1).index_select(0, (slot + cut._offsets(count + 1)).flatten())
        return flat.view(batch, cut.length, *value.shape[2:])

    def put(self, into: Tensor, value: Tensor) -> Tensor:
        """A copy of `into` [B, L, D] with the survivors' rows replaced by `value` [B, n, D]."""
        cut = self.to(value.device)
        if cut.padded:  # padding writes to a row that is cut off again
            index = torch.where(cut.valid, cut.index, cut.length)
            into = torch.cat([into, into.new_zeros(len(into), 1, into.shape[2])], dim=1)
        else:
            index = cut.index
        return into.scatter(1, index[:, :, None].expand(-1, -1, into.shape[2]), value)[:, : cut.length]

    def _offsets(self, length: int) -> Tensor:
        return torch.arange(len(self.index), device=self.index.device)[:, None] * length


def token_dim(value: Tensor, batch: int, length: int) -> int | None:
    """The dimension of `value` that runs over tokens: of size `length`, right after one of size `batch` or 1."""
    for dim in range(1, value.dim()):
        if value.shape[dim] == length and value.shape[dim - 1] in (batch, 1):
            return dim
    return None


def cut_mask(mask: Tensor, rows: Cut | None, columns: Tensor, visible: Tensor | None) -> Tensor:
    """Gather an attention mask on its query and key axes.

    Args:
        mask: [B or 1, h, Q, S] (bool: True may attend; float: added) or [B, S] (valid keys).
        rows: the surviving queries; None keeps all.
        columns: LongTensor [B, S']: the surviving keys.
        visible: BoolTensor [B, S']: False at padding keys; None where there are none.

    Returns:
        The mask [B, h, Q', S'] or [B, S'].
    """
    device = mask.device
    columns = columns.to(device)
    visible = visible.to(device) if visible is not None else None
    if mask.dim() == 2:
        mask = mask.expand(columns.shape[0], -1).gather(1, columns)
        return mask if visible is None else mask * visible.to(mask.dtype)
    if rows is not None:
        mask = rows.take(mask.transpose(1, 2), dim=1).transpose(1, 2)
    mask = mask.expand(columns.shape[0], -1, -1, -1)
    mask = mask.gather(3, columns[:, None, None, :].expand(-1, mask.shape[1], mask.shape[2], -1))
    if visible is None:
        return mask
    hidden = ~visible[:, None, None, :]
    return mask & ~hidden if mask.dtype == torch.bool else mask.masked_fill(hidden, torch.finfo(mask.dtype).min)


def holds_tensors(value: Any) -> bool:
    """Whether a value is an object, none of torch's own containers, with tensors among its attributes."""
    if isinstance(value, Tensor | torch.nn.Module | dict | list | tuple):
        return False
    found: list[Tensor] = []
    map_tensors(getattr(value, "__dict__", {}), found.append)
    return bool(found)


def map_tensors(value: Any, function: Callable[[Tensor], Any]) -> Any:
    """`value` with `function` applied to every tensor in it, through lists, tuples and dicts.

    Containers in which nothing changed are returned as they are.
    """
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        new = {key: map_tensors(item, function) for key, item in value.items()}
        return value if all(new[key] is value[key] for key in value) else new
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        items = [map_tensors(item, function) for item in value]
        return value if all(new is old for new, old in zip(items, value)) else type(value)(items)
    return value
