"""Decode steps that choose anew, from the whole prompt, what their layers see (LazyLLM, arXiv 2407.14057).

A token that a layer left out earlier is computed when it is chosen: its hidden state was kept where it was dropped,
and it runs beside the new tokens as a further row. So each token is computed at most once in each layer. At every
boundary a token's keys are in the layers behind it, or its hidden state is among what was dropped there.

Tokens are named by their slots (see `Conversation`), which stand in the order of the sequence.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vtc.method import Prune, top_visual
from vtc.scores import Attention
from vtc.sequence import Cut, map_tensors, token_dim

if TYPE_CHECKING:
    from vtc.inside import Inside
    from vtc.segments import Segment


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
            return Tokens(self.slot[:, :0], self.valid[:, :0], self.hidden[:, :0])
        cut = Cut.keep(alive & self.valid, counts)
        return Tokens(cut.take(self.slot), cut.valid, cut.take(self.hidden))

    def of_rows(self, index: Tensor) -> "Tokens":
        """The tokens of other rows of the batch."""
        return Tokens(*(value[index.to(value.device)] for value in (self.slot, self.valid, self.hidden)))


class Revival:
    """What a conversation keeps of its dropped tokens.

    Attributes:
        visual: BoolTensor [B, slots].
        dropped: boundary (index of the segment behind it) -> what was dropped there.
        counts: boundary -> visual tokens that each row has left behind it.
        positions: for each call of a rotary embedding, the positions [.., B, slots] that it was given.
        revived: boundary -> LongTensor [B]: tokens that were revived behind it so far; one object for good.
    """

    def __init__(self, visual: Tensor, revived: dict[int, Tensor]):
        self.visual = visual
        self.revived = revived
        self.dropped: dict[int, Tokens] = {}
        self.counts: dict[int, list[int]] = {}
        self.positions: list[Tensor] = []

    def choose_rows(self, index: Tensor) -> None:
        """Reorder, repeat or select rows of the batch."""
        self.visual = self.visual[index.to(self.visual.device)]
        self.dropped = {key: tokens.of_rows(index) for key, tokens in self.dropped.items()}
        self.counts = {key: [counts[i] for i in index.tolist()] for key, counts in self.counts.items()}
        self.positions = [p.index_select(-2, index.to(p.device)) for p in self.positions]
        self.revived.update({key: count[index.to(count.device)] for key, count in self.revived.items()})

    def drop(self, boundary: int, tokens: Tokens, counts: list[int]) -> None:
        """Keep `tokens`, which are dropped at a boundary; `counts` visual tokens of each row go on there."""
        before = self.dropped.get(boundary)
        self.dropped[boundary] = tokens if before is None else before + tokens
        there = self.counts.get(boundary, [0] * len(counts))
        self.counts[boundary] = [old + new for old, new in zip(there, counts)]

    def extend(self, first: "Segment", rotary: list[tuple]) -> None:
        """Add the tokens of a call: `first` is its segment 0."""
        slots, old = first.in_slots, self.visual.shape[1]
        self.visual = torch.cat([self.visual, _spread(slots, first.visual).to(self.visual.device)], dim=1)
        for call, (_, args, kwargs, _) in enumerate(rotary):
            given = _positions(args, kwargs)
            if call == len(self.positions):
                self.positions.append(given.new_zeros(*given.shape[:-1], old))
            self.positions[call] = _behind(self.positions[call], _spread(slots, given))


class Recall:
    """One call of the decoder without new images, in a conversation with dropped tokens.

    Args:
        inside: the call's layers.
        prune: the method that dropped them.
        revival: the conversation's.

    Attributes:
        extra: boundary -> the tokens that run behind it beside the new ones.
    """

    def __init__(self, inside: "Inside", prune: Prune, revival: Revival):
        self.inside, self.prune, self.revival = inside, prune, revival
        first = inside.segments[0]
        slots = first.in_slots.to(revival.visual.device)
        self.new, self.new_valid = inside.conversation.slots + slots.index, slots.valid
        blank = torch.zeros(len(self.new), slots.length, dtype=torch.bool, device=self.new.device)
        self.visual = torch.cat([revival.visual, blank], dim=1)
        self.selected = self.visual
        self.extra: dict[int, Tokens] = {}
        self._scores: Tensor | None = None

    @property
    def segment(self) -> int:
        """Index of the segment that the layers are in."""
        return len(self.inside.segments) - 1

    # ---------------------------------------------------------------- at a boundary

    def boundary(self, hidden: Tensor) -> Tensor:
        """The rows that enter the segment that has just begun: revived tokens, then the new ones."""
        index, new = self.segment, hidden[:, -self.new.shape[1] :]
        carried, dropped = self.extra.get(index - 1), self.revival.dropped.get(index)
        if dropped is None:
            dropped = Tokens(self.new[:, :0], self.new_valid[:, :0], new[:, :0])
        waiting = dropped
        if carried is not None and len(carried):
            waiting = dropped + Tokens(carried.slot, carried.valid, hidden[:, : len(carried)])
        assert self._scores is not None
        counts = self.revival.counts.get(index, [0] * len(self.new))
        self.selected = top_visual(self._scores, self.selected, counts)
        chosen = self.selected.gather(1, waiting.slot) & waiting.valid
        revived = waiting.only(chosen)
        if len(revived):
            order = revived.slot.masked_fill(~revived.valid, -1).argsort(dim=1)
            whole = Cut(order, revived.valid.gather(1, order), len(revived), True)
            revived = Tokens(whole.take(revived.slot), whole.valid, whole.take(revived.hidden))
        if len(revived) or len(waiting) > len(dropped):
            self.revival.dropped[index] = waiting.only(~chosen)
        self._check(index, revived)
        self.extra[index] = revived
        number = revived.valid.sum(dim=1)
        self.revival.revived[index] = self.revival.revived.get(index, torch.zeros_like(number)) + number
        return torch.cat([revived.hidden.to(new.device), new], dim=1)

    def _check(self, index: int, revived: Tokens) -> None:
        """Every selected token has its keys behind the boundary, or is revived there."""
        held, valid = self.inside.conversation.held[index], self.inside.conversation.held_valid[index]
        assert held is not None
        there = self._mark(held, torch.ones_like(held, dtype=torch.bool) if valid is None else valid)
        if (self.selected & ~there & ~self._mark(revived.slot, revived.valid)).any():
            raise RuntimeError("vtc: a token that was dropped is neither in the cache nor among what was kept of it")

    def _mark(self, slot: Tensor, valid: Tensor) -> Tensor:
        """BoolTensor [B, slots]: True at `slot` [B, m] where `valid`."""
        width = self.visual.shape[1]
        marks = torch.zeros(len(slot), width + 1, dtype=torch.bool, device=slot.device)
        return marks.scatter(1, torch.where(valid.to(slot.device), slot, width), True)[:, :width]

    # ---------------------------------------------------------------- in a layer

    def hear(self, layer: int, attention: Attention) -> Tensor | None:
        """The mask [B, 1, Q, S] of a layer's attention; None in front of the first boundary, where it stays."""
        index = self.segment
        slot, valid = self._stored(index, attention.key.shape[2])
        mask = None
        if index:
            mask = self._mask(slot, valid, attention).to(attention.query.device)
            attention = Attention(
                attention.query, attention.key, attention.scaling, mask, False, softcap=attention.softcap
            )
        if layer + 1 in self.inside.seam.boundaries:
            with torch.no_grad():
                given = self.prune.recall(attention).float().to(self.visual.device)
            width = self.visual.shape[1]
            scores = given.new_full((len(given), width + 1), float("-inf"))
            self._scores = scores.scatter(1, torch.where(valid, slot, width), given)[:, :width]
        return mask

    def _stored(self, index: int, keys: int) -> tuple[Tensor, Tensor]:
        """Slot [B, S] of each key of a layer in a segment, and whether it is no padding."""
        conversation = self.inside.conversation
        held, valid = conversation.held[index], conversation.held_valid[index]
        if held is None:
            held = torch.arange(conversation.slots, device=self.new.device).expand(len(self.new), -1)
        if valid is None:
            valid = torch.ones_like(held, dtype=torch.bool)
        slots, valids = [held, self.new], [valid.to(held.device), self.new_valid]
        if index in self.extra:
            slots.insert(1, self.extra[index].slot)
            valids.insert(1, self.extra[index].valid)
        return torch.cat(slots, dim=1)[:, -keys:], torch.cat(valids, dim=1)[:, -keys:]

    def _mask(self, slot: Tensor, valid: Tensor, attention: Attention) -> Tensor:
        done, key = self.inside.now.done, (slot.shape[1], attention.window)
        if key not in done:
            done[key] = slot, self._make_mask(slot, valid, attention.window)
        return done[key][1]

    def _make_mask(self, slot: Tensor, valid: Tensor, window: int | None) -> Tensor:
        extra = self.extra[self.segment]
        query = torch.cat([extra.slot, self.new], dim=1)[:, :, None]
        seen = valid & (~self.visual | self.selected).gather(1, slot)
        mask = seen[:, None] & (slot[:, None] <= query)
        if window is not None:
            mask = mask & (slot[:, None] > query - window)
        mask[:, : len(extra)] |= ~extra.valid[:, :, None]  # padding must see something
        return mask[:, None]

    def arguments(self, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """A layer's arguments for revived and new rows; the mask is set where the attention is heard."""
        extra = self.extra[self.segment]
        new = {name: value if name in _UNTOUCHED else self._longer(name, value) for name, value in kwargs.items()}
        if len(extra) and isinstance(kwargs.get("position_ids"), Tensor):
            given, known = kwargs["position_ids"], self.revival.positions[0]
            known = known[0] if known.dim() > given.dim() else known
            new["position_ids"] = torch.cat([self._at(known).to(given.device), given], dim=-1)
        new["attention_mask"] = None
        return args[:1] + tuple(self._longer("a positional argument", value) for value in args[1:]), new

    def _longer(self, name: str, value: Any) -> Any:
        extra = self.extra[self.segment]
        if not len(extra) or name == "position_ids":
            return value
        return map_tensors(value, lambda tensor: self._tensor(name, tensor))

    def _tensor(self, name: str, tensor: Tensor) -> Tensor:
        for call, (module, args, kwargs, output) in enumerate(self.inside.rotary):
            parts = output if isinstance(output, tuple) else (output,)
            for place, part in enumerate(parts):
                if part is tensor:
                    again = self._rotary(call, module, args, kwargs)
                    return again[place] if isinstance(again, tuple) else again
        if tensor.is_floating_point() and token_dim(tensor, len(self.new), self.new.shape[1]) is not None:
            raise ValueError(
                f"{self.inside.seam.parts.family}: argument {name!r} is per token, and tokens can't be brought back "
                f"with it; give {self.prune.name} revive=False"
            )
        return tensor

    def _rotary(self, call: int, module: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        """The tables of a rotary embedding for the rows of this segment; made once for all its layers."""
        done = self.inside.now.done
        key = id(module), call
        if key not in done:
            given = _positions(args, kwargs)
            longer = _behind(self._at(self.revival.positions[call]).to(given.device), given)
            again = module.forward(
                *(longer if a is given else a for a in args),
                **{name: longer if a is given else a for name, a in kwargs.items()},
            )
            done[key] = given, again
        return done[key][1]

    def _at(self, positions: Tensor) -> Tensor:
        """The positions [.., B, r] of the revived tokens."""
        slot = self.extra[self.segment].slot.to(positions.device)
        return positions.gather(-1, slot.expand(*positions.shape[:-1], -1))


_UNTOUCHED = ("hidden_states", "past_key_values", "attention_mask")


def _spread(cut: Cut, values: Tensor) -> Tensor:
    """`values` [.., B, n] of the survivors at their places in the old sequence, zeros elsewhere: [.., B, length]."""
    cut = cut.to(values.device)
    index = torch.where(cut.valid, cut.index, cut.length).expand(values.shape)
    return values.new_zeros(*values.shape[:-1], cut.length + 1).scatter(-1, index, values)[..., : cut.length]


def _behind(before: Tensor, positions: Tensor) -> Tensor:
    """`positions` [.., B, n] behind those `before`; M-RoPE models give a turn of text one axis, which holds for all."""
    shape = torch.broadcast_shapes(before.shape[:-1], positions.shape[:-1])
    return torch.cat([part.expand(*shape, part.shape[-1]) for part in (before, positions)], dim=-1)


def _positions(args: tuple, kwargs: dict[str, Any]) -> Tensor:
    """The positions [.., B, n] that a rotary embedding was called with."""
    return next(a for a in (*args, *kwargs.values()) if isinstance(a, Tensor) and not a.is_floating_point())
