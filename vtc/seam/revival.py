"""What a conversation keeps of tokens that were dropped and may come back."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vtc.calls.rotary import RotaryCall
from vtc.method.prune import Memory
from vtc.ops.cut import Cut


@dataclass(frozen=True)
class Tokens:
    """Some tokens of each row, in front of a layer.

    Attributes:
        slot: LongTensor [B, m].
        valid: BoolTensor [B, m]: False at padding.
        hidden: Tensor [B, m, D].
    """

    slot: Tensor
    valid: Tensor
    hidden: Tensor

    def __len__(self) -> int:
        return self.slot.shape[1]

    def __add__(self, other: "Tokens") -> "Tokens":
        parts = zip((self.slot, self.valid, self.hidden), (other.slot, other.valid, other.hidden))
        return Tokens(*(torch.cat([one, more.to(one.device)], dim=1) for one, more in parts))

    def only(self, alive: Tensor) -> "Tokens":
        """Those where `alive` [B, m] is True, right-aligned. Waits for the device."""
        counts = (alive & self.valid).sum(dim=1).tolist()
        if not max(counts):
            return self.none()
        cut = Cut.keep(alive & self.valid, counts)
        return Tokens(cut.take(self.slot), cut.valid, cut.take(self.hidden))

    def none(self) -> "Tokens":
        """None of them."""
        return Tokens(self.slot[:, :0], self.valid[:, :0], self.hidden[:, :0])

    def of_rows(self, index: Tensor) -> "Tokens":
        """The tokens of other rows of the batch."""
        return Tokens(*(value[index.to(value.device)] for value in (self.slot, self.valid, self.hidden)))


class Revival:
    """What a conversation keeps of its dropped tokens.

    Attributes:
        visual: BoolTensor [B, slots].
        dropped: boundary (index of the segment behind it) -> what was dropped there.
        counts: boundary -> visual tokens of each row that a step sees behind it.
        memory: boundary -> what the method keeps of step after step, until new images come.
        positions: for each call of a rotary embedding, the positions [.., B, slots] that it was given.
        revived: boundary -> LongTensor [B]: tokens that were revived behind it so far; one object for good.
    """

    def __init__(self, visual: Tensor, revived: dict[int, Tensor]):
        self.visual = visual
        self.revived = revived
        self.dropped: dict[int, Tokens] = {}
        self.counts: dict[int, list[int]] = {}
        self.memory: dict[int, Memory] = {}
        self.positions: list[Tensor] = []

    def choose_rows(self, index: Tensor) -> None:
        """Reorder, repeat or select rows of the batch."""
        self.visual = self.visual[index.to(self.visual.device)]
        self.dropped = {key: tokens.of_rows(index) for key, tokens in self.dropped.items()}
        self.counts = {key: [counts[i] for i in index.tolist()] for key, counts in self.counts.items()}
        for kept in self.memory.values():
            kept.update({key: value[index.to(value.device)] for key, value in kept.items()})
        self.positions = [p.index_select(-2, index.to(p.device)) for p in self.positions]
        self.revived.update({key: count[index.to(count.device)] for key, count in self.revived.items()})

    def drop(self, boundary: int, tokens: Tokens, counts: list[int]) -> None:
        """Keep `tokens`, which are dropped at a boundary; steps see `counts` visual tokens of each row there."""
        self.memory.pop(boundary, None)
        before = self.dropped.get(boundary)
        self.dropped[boundary] = tokens if before is None else before + tokens
        there = self.counts.get(boundary, [0] * len(counts))
        self.counts[boundary] = [old + new for old, new in zip(there, counts)]

    def extend(self, slots: Cut, visual: Tensor, rotary: Sequence[RotaryCall]) -> None:
        """Add the tokens of a call.

        Args:
            slots: from the call's slots to the tokens of its segment 0.
            visual: BoolTensor [B, n]: which of these are visual.
            rotary: its calls of rotary embeddings.
        """
        old = self.visual.shape[1]
        self.visual = torch.cat([self.visual, _spread(slots, visual).to(self.visual.device)], dim=1)
        for number, call in enumerate(rotary):
            given = call.positions
            if number == len(self.positions):
                self.positions.append(given.new_zeros(*given.shape[:-1], old))
            self.positions[number] = behind(self.positions[number], _spread(slots, given))


def _spread(cut: Cut, values: Tensor) -> Tensor:
    """`values` [.., B, n] of the survivors at their places in the old sequence, zeros elsewhere: [.., B, length]."""
    cut = cut.to(values.device)
    index = torch.where(cut.valid, cut.index, cut.length).expand(values.shape)
    return values.new_zeros(*values.shape[:-1], cut.length + 1).scatter(-1, index, values)[..., : cut.length]


def behind(before: Tensor, positions: Tensor) -> Tensor:
    """`positions` [.., B, n] behind those `before`; M-RoPE models give a turn of text one axis, which holds for all."""
    shape = torch.broadcast_shapes(before.shape[:-1], positions.shape[:-1])
    return torch.cat([part.expand(*shape, part.shape[-1]) for part in (before, positions)], dim=-1)
