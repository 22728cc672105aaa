"""What a conversation must remember after its visual tokens were removed. It lives on the cache object."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from uuid import uuid4
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from vtc.attention.heads import Heads
from vtc.calls.cache import counter_of, own_length
from vtc.seam.revival import Revival, Tokens
from vtc.seam.segments import Segments
from vtc.seam.steps import Steps


class Lease:
    """What all caches of one patch share, their copies, and those that come back from a file into its process.

    Attributes:
        active: whether the patch is still in place.
        used: whether it has compressed a cache.
    """

    active = True
    used = False

    def __init__(self) -> None:
        self._key = uuid4().hex
        _leases[self._key] = self

    def __deepcopy__(self, memo: dict[int, Any]) -> "Lease":
        return self

    def __reduce__(self) -> tuple:
        return _lease, (self._key,)


_leases: "WeakValueDictionary[str, Lease]" = WeakValueDictionary()


def _lease(key: str) -> Lease:
    """The lease of a patch of this process; one that is over where there is none."""
    found = _leases.get(key)
    if found is None:
        found = Lease()
        found.active = False
    return found


class Conversation:
    """Lengths and padding of one cache whose layers may hold different numbers of tokens.

    The decoder's layers fall into segments: layers between two prunes see the same tokens. Masks are made of *slots*.
    Where the decoder makes its masks itself, a slot is a token that entered it; where they are made outside, before
    tokens are removed, a slot is a token that the user fed.

    Args:
        segments: number of segments.
        logical: tokens that the cache holds already.
        valid: BoolTensor [B, logical]: False at padding; None where there is none.
        outside: whether masks are made outside the decoder.
        batch: rows.
        device: where indices are kept.
        lease: the patch's.

    Attributes:
        logical: tokens that the user fed; what `get_seq_length()` answers.
        ahead: by how much the logical tokens are more than a static cache counts; None: it is none.
        steps: what decode steps of a static cache need; None: they are calls as others.
        stepping: whether the call that runs is such a step.
        slots: length of a mask's key axis.
        held: per segment, LongTensor [B, n]: slot of each key in its layers; None: all slots.
        held_valid: per segment, BoolTensor [B, n]: False at padding; None where there is none.
        shift: per segment, LongTensor [B, 1]: by how much packed positions lag behind the logical ones.
        heads: layer -> the heads that it computes, where these are not all.
        revival: what was dropped and may come back; None: nothing may.
        revived: per segment, LongTensor [B]: how many tokens came back so far.
        places: LongTensor [B, n]: the place among the tokens that the user fed of each of the first n slots; the others
            follow without gaps. None: all do.
        text_tail: tokens since the last visual one; these can be taken back.
        gaps: segments whose rows have different numbers of tokens behind others, with padding in between.
        rope_offset: the model's M-RoPE offset that belongs to this conversation.
        packed: whether rows hold several samples, so that nothing can follow.
    """

    def __init__(
        self,
        segments: int,
        logical: int,
        valid: Tensor | None,
        outside: bool,
        batch: int,
        device: torch.device,
        lease: Lease,
    ):
        self.logical = logical
        self.ahead: int | None = None
        self.steps: Steps | None = None
        self.stepping = False
        self.slots = logical
        self.outside = outside
        everything = torch.arange(logical, device=device).expand(batch, logical)
        self.held: list[Tensor | None] = [everything if outside else None] + [everything] * (segments - 1)
        self.held_valid: list[Tensor | None] = [valid] * segments
        self.shift = [torch.zeros(batch, 1, dtype=torch.long, device=device)] * segments
        self.places: Tensor | None = None
        self.heads: dict[int, Heads] = {}
        self.revival: Revival | None = None
        self.revived: dict[int, Tensor] = {}
        self.packed = False
        self.rope_offset: Tensor | None = None
        self.gaps: frozenset[int] = frozenset()
        self.lease = lease
        self.text_tail = logical

    def add(self, segments: Segments, visual_ends: Sequence[int], back: Mapping[int, Tokens]) -> None:
        """Remember the tokens of a call that has ended.

        Args:
            segments: its segments, one for each of the model's.
            visual_ends: the last place of each of its images.
            back: segment -> the tokens that ran there beside the new ones.
        """
        for index, segment in enumerate(segments):
            held, valid = self.held[index], self.held_valid[index]
            more = back[index] if index in back and len(back[index]) else None
            if valid is not None or segment.cut.padded or more is not None:
                if valid is None:
                    width = self.slots if held is None else held.shape[1]
                    valid = segment.cut.valid.new_ones(len(segment.cut.valid), width)
                parts = [valid, segment.cut.valid.to(valid.device)]
                self.held_valid[index] = torch.cat(parts if more is None else _insert(parts, more.valid), dim=1)
            if held is not None:
                parts = [held, (segment.in_slots.index + self.slots).to(held.device)]
                self.held[index] = torch.cat(parts if more is None else _insert(parts, more.slot), dim=1)
            self.shift[index] = segment.shift
        length, cut = segments.first.cut.length, segments.first.cut
        if not cut.identity and not self.outside:
            slots = torch.arange(self.slots, device=cut.index.device).expand(len(cut.index), -1)
            self.places = torch.cat([self.place(slots), cut.index + self.logical], dim=1)
        self.slots += segments.first.in_slots.length
        self.logical += length
        self.text_tail = length - 1 - max(visual_ends) if visual_ends else self.text_tail + length

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or pickle keeps: steps go on in a call that begins anew, and without the model's modules."""
        steps = None if self.steps is None else replace(self.steps, rotary=None)
        return {**self.__dict__, "steps": steps, "stepping": False}

    def fed(self, segment: int) -> int:
        """Tokens that the layers of a segment were fed."""
        held = self.held[segment]
        return self.slots if held is None else held.shape[1]

    def fix(self, own: int, steps: "Steps | None") -> None:
        """Take note, behind a call, that a static cache counts `own` tokens itself."""
        self.ahead, self.steps, self.stepping = self.logical - own, steps, steps is not None

    def catch_up(self, own: int) -> None:
        """Take note of steps since the last call: a static cache, which counts `own` tokens now, counted them alone."""
        count = own + (self.ahead or 0) - self.logical
        if self.ahead is None or not count:
            return
        for index, held in enumerate(self.held):
            new = torch.arange(self.slots, self.slots + count, device=self.shift[0].device).expand(self.rows(), -1)
            if held is not None:
                self.held[index] = torch.cat([held, new.to(held.device)], dim=1)
            valid = self.held_valid[index]
            if valid is not None:
                shown = self.steps.shown(index, valid.shape[1], count) if self.steps is not None else None
                more = valid.new_ones(len(valid), count) if shown is None else shown.to(valid)
                self.held_valid[index] = torch.cat([valid, more], dim=1)
        self.slots, self.logical, self.text_tail = self.slots + count, self.logical + count, self.text_tail + count

    @property
    def whole(self) -> bool:
        """Whether every layer holds all that the user fed."""
        return self.slots == self.logical and all(self.fed(index) == self.slots for index in range(len(self.held)))

    def place(self, slots: Tensor) -> Tensor:
        """The place among the tokens that the user fed of `slots` [B, m]."""
        behind = slots + (self.logical - self.slots)
        if self.places is None:
            return behind
        places = self.places.to(slots.device)
        known = places.gather(1, slots.clamp(max=places.shape[1] - 1))
        return torch.where(slots < places.shape[1], known, behind)

    def window(self) -> bool:
        """Whether masks cover every slot, also where layers hold fewer keys."""
        return len(self.held) > 1 or self.outside

    def rows(self) -> int:
        """Rows of the batch."""
        return len(self.shift[0])

    def check_filling(self) -> None:
        """Refuse more keys where nobody cuts them any more.

        Raises:
            RuntimeError: the patch is gone.
        """
        if not self.lease.active:
            raise RuntimeError(
                "this cache was filled by a compressed model that has been unpatched since, or in another process; "
                "start a new conversation, or patch the model again and feed the prompt anew"
            )

    def check_taking_back(self, count: int) -> None:
        """Refuse that the last `count` tokens are taken back, where they can't be.

        Raises:
            ValueError: there are visual tokens among them, or tokens were brought back meanwhile.
        """
        if self.revival is not None:
            raise ValueError(
                f"the last {count} tokens can't be cropped from the cache: those steps may have revived tokens of an "
                "image; choose a method that does not (lazyllm: revive=False, dycoke: decode=False)"
            )
        if count > self.text_tail:
            raise ValueError(
                f"cropping the last {count} tokens of a compressed cache reaches into an image: {self.text_tail} text "
                "tokens can be taken back; start the conversation anew"
            )

    def drop_last(self, count: int) -> None:
        """Forget the last `count` tokens, which must be text: only these are the same in every segment."""
        self.text_tail -= count
        self.logical -= count
        self.slots -= count
        self._map(lambda kept: kept[:, : kept.shape[1] - count] if kept is not None else None)
        if self.places is not None:
            self.places = self.places[:, : self.slots]

    def choose_rows(self, index: Tensor) -> None:
        """Reorder, repeat or select rows of the batch."""
        self._map(lambda kept: kept[index.to(kept.device)] if kept is not None else None)
        if self.places is not None:
            self.places = self.places[index.to(self.places.device)]
        self.heads = {layer: heads.of_rows(index) for layer, heads in self.heads.items()}
        if self.revival is not None:
            self.revival.choose_rows(index)
        if self.steps is not None:
            self.steps = self.steps.of_rows(index)
        rows = len(self.shift[0])
        self.shift = [shift[index.to(shift.device)] for shift in self.shift]
        if self.rope_offset is not None and len(self.rope_offset) == rows:
            self.rope_offset = self.rope_offset[index.to(self.rope_offset.device)]

    def _map(self, function: Any) -> None:
        self.held = [function(kept) for kept in self.held]
        self.held_valid = [function(kept) for kept in self.held_valid]


def conversation_of(cache: Any) -> Conversation | None:
    """The conversation that lives on `cache`, if any."""
    return counter_of(cache)


def resumed(cache: Any) -> Conversation | None:
    """The same, up to date with steps that nobody saw, where a call begins that is no step."""
    conversation = conversation_of(cache)
    if conversation is not None and conversation.ahead is not None:
        conversation.stepping = False
        conversation.catch_up(int(own_length(cache)))
    return conversation


def _insert(parts: list[Tensor], middle: Tensor) -> list[Tensor]:
    return [parts[0], middle.to(parts[0].device), parts[1]]
