"""Decode steps that choose anew, from the whole prompt, what their layers see (LazyLLM, arXiv 2407.14057).

A token that a layer left out earlier is computed when it is chosen: its hidden state was kept where it was dropped,
and it runs beside the new tokens as a further row. So each token is computed at most once in each layer. At every
boundary a token's keys are in the layers behind it, or its hidden state is among what was dropped there.

Tokens are named by their slots (see `Conversation`), which stand in the order of the sequence.
"""

from typing import Any

import torch
from torch import Tensor

from vtc.attention.scores import Attention
from vtc.calls.decoder import LayerCall
from vtc.calls.rotary import RotaryCall
from vtc.ops.cut import Cut, map_tensors, token_dim
from vtc.seam.composition import Composition
from vtc.seam.conversation import Conversation
from vtc.seam.cutting.masks import with_room
from vtc.seam.revival import Tokens, behind
from vtc.seam.segments import Segments


class Recall:
    """One call of the decoder without new images, in a conversation with dropped tokens.

    Args:
        composition: what the patch knows.
        conversation: what earlier calls left, dropped tokens among it.
        segments: of the call.
        rotary: its calls of rotary embeddings, as they come.

    Attributes:
        extra: boundary -> the tokens that run behind it beside the new ones.
    """

    def __init__(
        self, composition: Composition, conversation: Conversation, segments: Segments, rotary: list[RotaryCall]
    ):
        assert composition.reviver is not None and conversation.revival is not None
        self.prune, self.revival = composition.reviver, conversation.revival
        self.boundaries, self.family = composition.boundaries, composition.parts.family
        self.conversation, self.segments, self.rotary = conversation, segments, rotary
        revival = self.revival
        slots = segments.first.in_slots.to(revival.visual.device)
        self.new, self.new_valid = conversation.slots + slots.index, slots.valid
        blank = torch.zeros(len(self.new), slots.length, dtype=torch.bool, device=self.new.device)
        self.visual = torch.cat([revival.visual, blank], dim=1)
        self.selected = self.visual
        self.extra: dict[int, Tokens] = {}
        self._scores: Tensor | None = None

    # ---------------------------------------------------------------- at a boundary

    def boundary(self, hidden: Tensor) -> Tensor:
        """The rows that enter the segment that has just begun: revived tokens, then the new ones."""
        index, new = self.segments.index, hidden[:, -self.new.shape[1] :]
        carried, dropped = self.extra.get(index - 1), self.revival.dropped.get(index)
        if dropped is None:
            dropped = Tokens(self.new[:, :0], self.new_valid[:, :0], new[:, :0])
        waiting = dropped
        if carried is not None and len(carried):
            waiting = dropped + Tokens(carried.slot, carried.valid, hidden[:, : len(carried)])
        assert self._scores is not None
        counts = self.revival.counts.get(index, [0] * len(self.new))
        memory = self.revival.memory.setdefault(index, {})
        self.selected = self.prune.choose(self._scores, self.selected, counts, memory)
        revived = self._revive(index, dropped, waiting) if len(waiting) else waiting
        self.extra[index] = revived
        number = revived.valid.sum(dim=1)
        self.revival.revived[index] = self.revival.revived.get(index, torch.zeros_like(number)) + number
        return torch.cat([revived.hidden.to(new.device), new], dim=1)

    def _revive(self, index: int, dropped: Tokens, waiting: Tokens) -> Tokens:
        """Of the tokens that wait at a boundary those that are chosen, in the order of the sequence."""
        chosen = self.selected.gather(1, waiting.slot) & waiting.valid
        revived = waiting.only(chosen)
        if len(revived):
            order = revived.slot.masked_fill(~revived.valid, -1).argsort(dim=1)
            whole = Cut(order, revived.valid.gather(1, order), len(revived), True)
            revived = Tokens(whole.take(revived.slot), whole.valid, whole.take(revived.hidden))
        if len(revived) or len(waiting) > len(dropped):
            self.revival.dropped[index] = waiting.only(~chosen)
        self._check(index, revived)
        return revived

    def _check(self, index: int, revived: Tokens) -> None:
        """Every selected token has its keys behind the boundary, or is revived there."""
        held, valid = self.conversation.held[index], self.conversation.held_valid[index]
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

    def extra_at(self, index: int) -> Tokens | tuple:
        """The tokens that run in a segment beside the new ones."""
        return self.extra.get(index, ())

    def hear(self, layer: int, attention: Attention) -> Tensor | None:
        """The mask [B, 1, Q, S] of a layer's attention; None in front of the first boundary, where it stays."""
        index = self.segments.index
        keys = attention.key.shape[2]
        slot, valid = self.stored(index, keys)
        room, attention, mask = keys - slot.shape[1], attention.of_keys(slot.shape[1]), None
        if index:
            mask = self._mask(slot, valid, attention).to(attention.query.device)
            attention = Attention(
                attention.query, attention.key, attention.scaling, mask, False, softcap=attention.softcap
            )
        if layer + 1 in self.boundaries:
            with torch.no_grad():
                given = self.prune.recall(attention).float().to(self.visual.device)
            width = self.visual.shape[1]
            scores = given.new_full((len(given), width + 1), float("-inf"))
            self._scores = scores.scatter(1, torch.where(valid, slot, width), given)[:, :width]
        return None if mask is None else with_room(mask, room)

    def stored(self, index: int, keys: int) -> tuple[Tensor, Tensor]:
        """Slot [B, S] of each key of a layer in a segment, and whether it is no padding."""
        conversation = self.conversation
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
        done, key = self.segments.now.done, (slot.shape[1], attention.window)
        if key not in done:
            done[key] = slot, self._make_mask(slot, valid, attention.window)
        return done[key][1]

    def _make_mask(self, slot: Tensor, valid: Tensor, window: int | None) -> Tensor:
        extra = self.extra[self.segments.index]
        query = torch.cat([extra.slot, self.new], dim=1)[:, :, None]
        seen = valid & (~self.visual | self.selected).gather(1, slot)
        mask = seen[:, None] & (slot[:, None] <= query)
        if window is not None:
            mask = mask & (slot[:, None] > query - window)
        mask[:, : len(extra)] |= ~extra.valid[:, :, None]  # padding must see something
        return mask[:, None]

    def arguments(self, call: LayerCall) -> LayerCall:
        """A layer's arguments for revived and new rows; the mask is set where the attention is heard."""
        extra = self.extra[self.segments.index]
        new = call.changed(self._longer, LayerCall.hidden, LayerCall.cache, LayerCall.mask, LayerCall.positions)
        assert isinstance(new, LayerCall)
        if len(extra) and isinstance(call.positions, Tensor):
            given, known = call.positions, self.revival.positions[0]
            known = known[0] if known.dim() > given.dim() else known
            new.positions = torch.cat([self._at(known).to(given.device), given], dim=-1)
        new.mask = None
        return new

    def _longer(self, name: str, value: Any) -> Any:
        if not len(self.extra[self.segments.index]):
            return value
        return map_tensors(value, lambda tensor: self._tensor(name, tensor))

    def _tensor(self, name: str, tensor: Tensor) -> Tensor:
        for number, call in enumerate(self.rotary):
            for place, table in enumerate(call.tables):
                if table is tensor:
                    return self._tables(number, call)[place]
        if tensor.is_floating_point() and token_dim(tensor, len(self.new), self.new.shape[1]) is not None:
            raise ValueError(
                f"{self.family}: argument {name!r} is per token, and tokens can't be brought back with it; give "
                f"{self.prune.name} revive=False"
            )
        return tensor

    def _tables(self, number: int, call: RotaryCall) -> tuple:
        """The tables of a rotary embedding for the rows of this segment; made once for all its layers."""
        done = self.segments.now.done
        key = id(call.module), number
        if key not in done:
            given = call.positions
            done[key] = given, call.again(behind(self._at(self.revival.positions[number]).to(given.device), given))
        return done[key][1]

    def _at(self, positions: Tensor) -> Tensor:
        """The positions [.., B, r] of the revived tokens."""
        slot = self.extra[self.segments.index].slot.to(positions.device)
        return positions.gather(-1, slot.expand(*positions.shape[:-1], -1))
