"""Attention heads that are left out of a layer."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Heads:
    """The heads of a layer that are computed; the others give zero.

    Attributes:
        index: LongTensor [B, h], ascending; equally many of each group that shares a key head, where there are such.
        whole: BoolTensor [B]: rows of which all are computed, whatever `index` says; None: there are none.
    """

    index: Tensor
    whole: Tensor | None = None

    def of_rows(self, rows: Tensor) -> "Heads":
        """The heads of other rows of the batch."""
        rows = rows.to(self.index.device)
        return Heads(self.index[rows], None if self.whole is None else self.whole[rows])

    def behind(self, earlier: "Heads | None") -> "Heads":
        """These heads, and for the rows that are `whole` here those of an earlier call."""
        if earlier is None or self.whole is None:
            return self
        index = torch.where(self.whole[:, None], earlier.index.to(self.index.device), self.index)
        return Heads(index, None if earlier.whole is None else self.whole & earlier.whole.to(index.device))

    def share(self, total: int) -> float:
        """Share of `total` heads that is computed."""
        return 1.0 if self.whole is not None else self.index.shape[1] / total

    def hide(self, output: Tensor) -> Tensor:
        """`output` [B, Q, H, d] of all heads, with zeros for those that are left out."""
        seen = torch.zeros(len(output), output.shape[2], dtype=torch.bool, device=output.device)
        seen = seen.scatter(1, self.index, True)
        if self.whole is not None:
            seen = seen | self.whole[:, None]
        return output * seen[:, None, :, None]


def choose_heads(query: Tensor, key: Tensor, value: Tensor, heads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Only the query heads `heads` [B, h] and the key heads that they need.

    With a key head for each query head those go too. Grouped heads keep all key heads: of each group as many query
    heads are left.
    """
    batch, groups = len(heads), key.shape[1]
    rows = torch.arange(batch, device=heads.device)[:, None]
    if groups == query.shape[1]:
        key, value = key[rows, heads], value[rows, heads]
    return query[rows, heads], key, value


def spread_heads(output: Tensor, heads: Tensor, total: int) -> Tensor:
    """What `heads` [B, h] gave, [B, Q, h, d], at their places among `total` heads; zeros elsewhere."""
    whole = output.new_zeros(*output.shape[:2], total, output.shape[3])
    return whole.scatter(2, heads[:, None, :, None].expand_as(output), output)
