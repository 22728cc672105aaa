"""A cache whose layers may hold different numbers of tokens, with the conversation that it belongs to."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vtc.calls.cache import keys_in_layer
from vtc.seam.conversation import Conversation

if TYPE_CHECKING:
    from transformers import Cache


class CompressedCache:
    """Mixed into the class of a cache: answers the three readers of its length.

    `generate` and position ids want the *logical* length; masks want the *slots* of segment 0.
    """

    _vtc: Conversation

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens that the user fed, removed ones included."""
        return self._vtc.logical

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Slots before the new queries."""
        return self._vtc.slots

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Length and offset of the keys that a mask covers: all slots, where layers may hold fewer."""
        if len(self._vtc.held) > 1 or self._vtc.outside:
            return self._vtc.slots + query_length, 0
        return super().get_mask_sizes(query_length, layer_idx)  # type: ignore[misc]

    def update(self, *args: Any, **kwargs: Any) -> Any:
        """Store keys and values.

        Raises:
            RuntimeError: the patch that made this cache is gone.
        """
        if not self._vtc.lease.active:
            raise RuntimeError(
                "this cache was filled by a compressed model that has been unpatched since; "
                "start a new conversation, or patch the model again and feed the prompt anew"
            )
        return super().update(*args, **kwargs)  # type: ignore[misc]

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last `-tokens_to_remove` tokens (as transformers, a negative number).

        Raises:
            ValueError: there are visual tokens among them, or tokens were brought back meanwhile.
        """
        if self._vtc.revival is not None:
            raise ValueError(
                f"crop({tokens_to_remove}) can't take steps back that may have revived tokens of an image; choose a "
                "method that does not (lazyllm: revive=False)"
            )
        if abs(tokens_to_remove) > self._vtc.text_tail:
            raise ValueError(
                f"crop({tokens_to_remove}) reaches into an image of a compressed cache, of which "
                f"{self._vtc.text_tail} text tokens can be taken back; start the conversation anew"
            )
        super().crop(tokens_to_remove)  # type: ignore[misc]
        self._vtc.drop_last(abs(tokens_to_remove))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder rows for beam search."""
        super().reorder_cache(beam_idx)  # type: ignore[misc]
        self._vtc.choose_rows(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows `indices`."""
        super().batch_select_indices(indices)  # type: ignore[misc]
        self._vtc.choose_rows(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row `repeats` times."""
        super().batch_repeat_interleave(repeats)  # type: ignore[misc]
        rows = self._vtc.shift[0].shape[0]
        self._vtc.choose_rows(torch.arange(rows, device=self._vtc.shift[0].device).repeat_interleave(repeats))

    def reset(self) -> None:
        """Empty the cache; it is an ordinary one again."""
        super().reset()  # type: ignore[misc]
        del self._vtc
        self.__class__ = type(self).__mro__[2]


_classes: dict[type, type] = {}


def conversation_of(cache: "Cache | None") -> Conversation | None:
    """The conversation that lives on `cache`, if any."""
    return getattr(cache, "_vtc", None)


def attach(cache: "Cache", conversation: Conversation) -> None:
    """Make `cache` a compressed cache: same object, same content."""
    if not isinstance(cache, CompressedCache):
        cls = type(cache)
        if cls not in _classes:
            _classes[cls] = type(f"Compressed{cls.__name__}", (CompressedCache, cls), {})
        cache.__class__ = _classes[cls]
    cache._vtc = conversation  # type: ignore[attr-defined]


def check_lengths(cache: Any, conversation: Conversation, segments: Sequence[int], family: str) -> None:
    """Hold a cache against the plan (contract clause 9).

    Args:
        cache: after the call.
        conversation: the call's tokens included.
        segments: the segment of each decoder layer.
        family: the model's.

    Raises:
        RuntimeError: a layer holds another number of tokens than its segment.
    """
    for layer, (stored, segment) in enumerate(zip(cache.layers, segments)):
        held = conversation.held[segment]
        expected = conversation.slots if held is None else held.shape[1]
        if keys_in_layer(cache, layer) and stored.get_seq_length() != expected:
            raise RuntimeError(
                f"vtc: layer {layer} of {family} has {stored.get_seq_length()} tokens in its cache where the plan says "
                f"{expected}"
            )
