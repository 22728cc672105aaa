"""Rows of the vision tower that move: which old row stands where, and how to get back."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vtc import ops
from vtc.ops.host import on
from vtc.ops.mixing import Mixing


@dataclass(frozen=True)
class Placement:
    """Which rows of the untouched tower stand in the entries.

    Attributes:
        index: LongTensor [E, P].
        valid: BoolTensor [E, P]: False at padding.
    """

    index: Tensor
    valid: Tensor

    def restore(self, x: Tensor, length: int) -> Tensor:
        """`x` [E, P, D] with its rows back in their places among `length`; zeros elsewhere."""
        full = x.new_zeros(x.shape[0], length + 1, x.shape[-1])
        place = torch.where(self.valid, self.index, length)  # padding goes to a row that is cut off again
        return full.scatter(1, place[:, :, None].expand_as(x), x)[:, :length]


@dataclass(frozen=True)
class Move:
    """New rows for old ones.

    Attributes:
        source: LongTensor [E, P']: the old row that each new one stands for.
        valid: BoolTensor [E, P']: False at padding.
        new: Tensor [E, P', D].
        old_length: P, rows of an entry before.
        flat: whether the tower knows no entries.
    """

    source: Tensor
    valid: Tensor
    new: Tensor
    old_length: int
    flat: bool

    @property
    def rows(self) -> Tensor:
        """`new` as the tower's modules take it."""
        return self.new[0] if self.flat else self.new

    def write(self, x: Tensor) -> None:
        """Put the new rows into `x`, the old residual stream, at the rows that they stand for."""
        x = x[None] if self.flat else x
        rows = Placement(self.source, self.valid)
        new = rows.restore(self.new, x.shape[1])
        x.copy_(torch.where(rows.restore(self.valid[..., None], x.shape[1]), new, x))

    def expand(self, x: Tensor) -> Tensor:
        """What was made of the new rows, at the old rows that they stand for; zeros elsewhere."""
        full = Placement(self.source, self.valid).restore(x[None] if self.flat else x, self.old_length)
        return full[0] if self.flat else full

    def take(self, x: Tensor) -> Tensor:
        """The rows of `x`, a block's output at the old length, that the new ones stand for."""
        x = x[None] if self.flat else x
        entry = torch.arange(len(x), device=x.device)[:, None].expand_as(self.source)
        new = x[entry, self.source] * self.valid[..., None]
        return new[0] if self.flat else new


@dataclass(frozen=True)
class Blend:
    """Units that are mixed into new rows.

    Attributes:
        entries: LongTensor [G, 1], and `rows` LongTensor [G, U · cell]: the old rows of the units.
        cell: rows of a unit.
        mixing: of units, for G sequences.
        units: how many units these become in each sequence.
        places: for each sequence, (entry, place) of the new units' rows.
    """

    entries: Tensor
    rows: Tensor
    cell: int
    mixing: Mixing
    units: int
    places: list[tuple[Tensor, Tensor]]

    def put(self, old: Tensor, new: Tensor) -> Tensor:
        """The rows `new` [E, P', D] with those of the new units, made of the rows `old` [E, P, D]."""
        parts = old[self.entries, self.rows].unflatten(1, (-1, self.cell)).flatten(2)
        for place, mixed in zip(self.places, ops.merge(parts, self.mixing, self.units)):
            new = new.index_put(place, mixed.view(len(place[0]), -1).to(new.dtype))
        return new


@dataclass(frozen=True)
class Arrangement:
    """Which old rows stand where, and which are mixed; the same for whatever the rows hold.

    Attributes:
        source, valid, flat: see `Move`.
        blends: what is mixed.
    """

    source: Tensor
    valid: Tensor
    flat: bool
    blends: list[Blend]

    def of(self, x: Tensor) -> Move:
        """The move of the rows `x` [E, P, D] or [P, D]."""
        x = x[None] if self.flat else x
        entry = torch.arange(len(x), device=x.device)[:, None].expand_as(self.source)
        new = x[entry, self.source] * self.valid[..., None]
        for blend in self.blends:
            new = blend.put(x, new)
        return Move(self.source, self.valid, new, x.shape[1], self.flat)


def padded(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows of several lengths as LongTensor [E, P] (0 where padded) and BoolTensor [E, P]."""
    index = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    lengths = on(index.device, [len(row) for row in rows])
    return index, torch.arange(index.shape[1], device=index.device) < lengths[:, None]
