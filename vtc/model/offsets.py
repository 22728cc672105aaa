"""The M-RoPE offset of each conversation, which transformers keeps on the model, whoever's it is."""

import threading
from typing import Any

from torch import Tensor, nn

from vtc.calls.cache import offset_on, put_offset, tokens_in
from vtc.calls.composite import CompositeCall, rope_offset, set_rope_offset, turns_several_axes
from vtc.calls.generate import continued
from vtc.calls.outputs import Output


class _Thread(threading.local):
    """What belongs to one thread.

    Attributes:
        made: the offset that came with the positions that `generate` has made for the call to come, and whether it made
            any.
        call: the model's call that runs; None: none.
        value: its offset; None: it has none, or no turn of its conversation has told.
        given: whether positions came that `generate` did not make.
        before: what the model had in front of it.
    """

    made: tuple[bool, Tensor | None] = (False, None)
    call: CompositeCall | None = None
    value: Tensor | None = None
    given: bool = False
    before: Tensor | None = None


class Offsets:
    """Gives the model the offset of the conversation that a call goes on with, and keeps it with that one's cache.

    It says by how much the positions of later tokens are ahead of their number, in each row.

    Args:
        composite: the module that has it.

    Attributes:
        needed: whether it has any; else no call is looked at.
    """

    def __init__(self, composite: nn.Module):
        self.composite = composite
        self.needed = turns_several_axes(composite)
        self._thread = _Thread()
        self._first = rope_offset(composite)  # caches that were filled before the patch go on with it

    # ---------------------------------------------------------------- in front of the decoder

    def before_positions(self, args: tuple, kwargs: dict[str, Any]) -> None:
        """Called when `generate` makes the positions of a prompt."""
        self._thread.made = (False, None)
        self._give(*continued(args, kwargs), repeats=True)

    def after_positions(self, output: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        """Called when it has made them."""
        self._thread.made = (True, rope_offset(self.composite))

    def before_call(self, call: CompositeCall) -> None:
        """Called in front of the module that has the offset."""
        if not self.needed:
            return
        thread, (made, value) = self._thread, self._thread.made
        thread.made, thread.call, thread.before = (False, None), call, rope_offset(self.composite)
        thread.given = call.positions is not None and not made
        if made and call.positions is not None:
            set_rope_offset(self.composite, value)
            thread.value = value
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
        if begins and self._thread.given:
            told, value = self._told(call, cache, rows)
            if not told:
                return
        elif value is None and not begins:
            return
        repeated = value is not None and 0 < len(value) < rows and rows % len(value) == 0
        if value is not None and repeated:  # beams and several returned sequences share theirs
            value = value.repeat_interleave(rows // len(value), dim=0)
        put_offset(cache, value)

    def unheard(self) -> None:
        """Called where the decoder was not heard: the cache that it filled looks like one from before the patch."""
        self._first = None

    def after_call(self) -> None:
        """Called behind the module, also when it failed: a call that made no offset leaves the one that was there."""
        thread = self._thread
        if thread.call is not None and rope_offset(self.composite) is None:
            set_rope_offset(self.composite, thread.before)
        thread.call = thread.value = thread.before = None

    # ---------------------------------------------------------------- what is known of a cache

    def _give(self, cache: Any, rows: int, repeats: bool = False) -> Tensor | None:
        """Give the model the offset of what a cache holds: none, where that is nothing."""
        value = None
        if cache is not None and tokens_in(cache):
            known, value = self._of(cache, rows, repeats)
            if not known:
                return None  # nobody knows better than the model
        set_rope_offset(self.composite, value)
        return value

    def _of(self, cache: Any, rows: int, repeats: bool) -> tuple[bool, Tensor | None]:
        """Whether the offset is known, and that of each of `rows`, or of so many that transformers repeats it.

        Args:
            cache: whose.
            rows: of the batch.
            repeats: whether the rows are repeated later, as `generate` does for beams.
        """
        (known, value), first = offset_on(cache), self._first
        if not known and first is not None and rows % len(first) == 0:
            return True, first
        if repeats and value is not None and len(value) > rows and len(value) % rows == 0:
            return True, value[:: len(value) // rows]
        return known, value

    def _told(self, call: CompositeCall, cache: Any, rows: int) -> tuple[bool, Tensor | None]:
        """Whether positions and mask of a call tell its offset, and that [B, 1]: by how much they are ahead."""
        positions, mask = call.positions, call.mask
        if mask is not None and not (isinstance(mask, Tensor) and mask.dim() == 2):
            return False, None  # what is padding there is not known
        axes = positions[-3:] if positions.dim() == 3 else positions[None]  # in front there may be the text's own
        newest = axes.amax(dim=(0, 2))[:, None].expand(rows, 1)
        if mask is not None:
            return True, newest + 1 - mask.sum(dim=1, keepdim=True).to(newest.device)
        return True, newest + 1 - tokens_in(cache)
