"""The M-RoPE offset of each conversation, which transformers keeps on the model, whoever's it is."""

import threading
from typing import Any

import torch
from torch import Tensor, nn

from vtc.calls.cache import offset_on, put_offset, tokens_in
from vtc.calls.composite import CompositeCall, rope_offset, set_rope_offset, turns_several_axes
from vtc.calls.generate import continued
from vtc.calls.outputs import Output


class _Thread(threading.local):
    """What belongs to one thread.

    Attributes:
        made: the offset that came with the positions that `generate` has made for the call to come; None: it made none.
        call: the model's call that runs; None: none.
        value: its offset; None: no turn of its conversation has told.
        before: what the model had in front of it.
    """

    made: Tensor | None = None
    call: CompositeCall | None = None
    value: Tensor | None = None
    before: Tensor | None = None


class Offsets:
    """Gives the model the offset of the conversation that a call goes on with, and keeps it with that one's cache.

    It says by how much the positions of later tokens are ahead of their number, in each row.

    Args:
        composite: the module that has it.
    """

    def __init__(self, composite: nn.Module):
        self.composite = composite
        self.needed = turns_several_axes(composite)
        self._thread = _Thread()
        self._first = rope_offset(composite)  # caches that were filled before the patch go on with it

    # ---------------------------------------------------------------- in front of the decoder

    def before_positions(self, args: tuple, kwargs: dict[str, Any]) -> None:
        """Called when `generate` makes the positions of a prompt."""
        self._thread.made = None
        self._give(*continued(args, kwargs))

    def after_positions(self, output: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        """Called when it has made them."""
        self._thread.made = rope_offset(self.composite)

    def before_call(self, call: CompositeCall) -> None:
        """Called in front of the module that has the offset."""
        thread, made = self._thread, self._thread.made
        thread.made, thread.call, thread.before, thread.value = None, call, rope_offset(self.composite), None
        if made is not None and call.positions is not None:
            set_rope_offset(self.composite, made)
            thread.value = made
        else:
            thread.value = self._give(call.cache, call.rows)

    def before_decoder(self) -> None:
        """Called behind the model's own positions: what they were made with is the call's."""
        thread = self._thread
        if thread.call is not None and thread.call.positions is None:
            thread.value = rope_offset(self.composite)

    # ---------------------------------------------------------------- behind it

    def keep(self, output: Any, rows: int, begins: bool) -> None:
        """Called behind the decoder.

        Args:
            output: its.
            rows: of the batch.
            begins: whether the call begins its conversation, or has pictures.
        """
        call, value = self._thread.call, self._thread.value
        if call is None:
            return
        filled = Output(output).cache
        cache = call.cache if filled is None else filled
        if cache is None:
            return
        if value is None or (begins and call.positions is not None):
            value = self._told(call, cache, rows) if begins else value
        if value is None:
            return
        if 0 < len(value) < rows and rows % len(value) == 0:  # beams and several returned sequences share theirs
            value = value.repeat_interleave(rows // len(value), dim=0)
        put_offset(cache, value)

    def after_call(self) -> None:
        """Called behind the module, also when it failed: a call that made no offset leaves the one that was there."""
        thread = self._thread
        if thread.call is not None and rope_offset(self.composite) is None:
            set_rope_offset(self.composite, thread.before)
        thread.call = thread.value = thread.before = None

    # ---------------------------------------------------------------- what is known of a cache

    def _give(self, cache: Any, rows: int) -> Tensor | None:
        """Give the model the offset of what a cache holds: none, where that is nothing."""
        value = None
        if cache is not None and tokens_in(cache):
            value = self._of(cache, rows)
            if value is None:
                return None  # nobody knows better than the model
        set_rope_offset(self.composite, value)
        return value

    def _of(self, cache: Any, rows: int) -> Tensor | None:
        """The offset of each of `rows`, or of so many of them that transformers repeats it by itself."""
        known, first = offset_on(cache), self._first
        if known is None and first is not None and rows % len(first) == 0:
            return first
        if known is not None and len(known) > rows and len(known) % rows == 0:
            return known[:: len(known) // rows]  # `generate` repeats the rows later
        return known

    def _told(self, call: CompositeCall, cache: Any, rows: int) -> Tensor:
        """LongTensor [B, 1]: by how much given positions are ahead of the number of tokens; 0 where none are given."""
        positions, mask = call.positions, call.mask
        if positions is None:
            return torch.zeros(rows, 1, dtype=torch.long, device=next(self.composite.parameters()).device)
        axes = positions[-3:] if positions.dim() == 3 else positions[None]  # in front there may be the text's own
        newest = axes.amax(dim=(0, 2))[:, None].expand(rows, 1)
        if isinstance(mask, Tensor) and mask.dim() == 2:
            return newest + 1 - mask.sum(dim=1, keepdim=True).to(newest.device)
        return newest + 1 - tokens_in(cache)
