"""Recognises a cache that was made of the keys of a compressed one: what was removed is not known there any more."""

from collections import deque
from typing import Any

import torch
from torch import Tensor

from vtc.calls.cache import is_whole, keys_of_last_layer, tokens_in
from vtc.seam.conversation import conversation_of

_PREFILLS = 64  # as many are remembered
_NUMBERS = 16  # of a key


class KeysSeen:
    """The last key of each prompt that one patch has compressed: in the last layer no other prompt has the same."""

    def __init__(self) -> None:
        self._keys: deque[Tensor] = deque(maxlen=_PREFILLS)

    def note(self, cache: Any) -> None:
        """Called behind a call with images; nothing waits for the device."""
        keys = keys_of_last_layer(cache) if conversation_of(cache) is not None else None
        if keys is not None:
            self._keys.append(keys[:, 0, -1, :_NUMBERS].detach().clone())

    def check(self, cache: Any) -> None:
        """Called with the cache of each call.

        Raises:
            RuntimeError: it has keys of a compressed cache, and is none.
        """
        if not self._keys or cache is None or conversation_of(cache) is not None:
            return
        keys = keys_of_last_layer(cache)
        if keys is None or not tokens_in(cache) or is_whole(cache):  # a decode step
            return
        there = keys[:, 0, :, :_NUMBERS].flatten(0, 1)
        seen = [known for known in self._keys if known.shape[1] == there.shape[1]]
        if seen and (there[:, None] == torch.cat([known.to(there.device) for known in seen])).all(dim=-1).any():
            raise RuntimeError(
                f"vtc: this {type(cache).__name__} was made of the keys of a compressed cache, and what was removed "
                "from that is not known here; go on with the compressed cache itself (copy.deepcopy and pickle keep "
                "what it knows), or start the conversation anew with its whole prompt"
            )
