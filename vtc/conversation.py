"""What a conversation must remember after its visual tokens were removed. It lives on the cache object."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import Cache

    from vtc.revival import Revival
    from vtc.tap import Heads


class Lease:
    """Says whether the patch that fills a cache is still in place; shared by all its caches and their copies."""

    active = True

    def __deepcopy__(self, memo: dict[int, Any]) -> "Lease":
        return self


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
        slots: length of a mask's key axis.
        held: per segment, LongTensor [B, n]: slot of each key in its layers; None: all slots.
        held_valid: per segment, BoolTensor [B, n]: False at padding; None where there is none.
        shift: per segment, LongTensor [B, 1]: by how much packed positions lag behind the logical ones.
        heads: layer -> the heads that it computes, where these are not all.
        revival: what was dropped and may come back; None: nothing may.
        revived: per segment, LongTensor [B]: how many tokens came back so far.
        text_tail: tokens since the last visual one; these can be taken back.
        rope_deltas: the model's M-RoPE offset that belongs to this conversation.
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
        self.slots = logical
        self.outside = outside
        everything = torch.arange(logical, device=device).expand(batch, logical)
        self.held: list[Tensor | None] = [everything if outside else None] + [everything] * (segments - 1)
        self.held_valid: list[Tensor | None] = [valid] * segments
        self.shift = [torch.zeros(batch, 1, dtype=torch.long, device=device)] * segments
        self.heads: dict[int, Heads] = {}
        self.revival: Revival | None = None
        self.revived: dict[int, Tensor] = {}
        self.rope_deltas: Tensor | None = None
        self.lease = lease
        self.text_tail = logical

    def drop_last(self, count: int) -> None:
        """Forget the last `count` tokens, which must be text: only these are the same in every segment."""
        self.text_tail -= count
        self.logical -= count
        self.slots -= count
        self._map(lambda kept: kept[:, : kept.shape[1] - count] if kept is not None else None)

    def choose_rows(self, index: Tensor) -> None:
        """Reorder, repeat or select rows of the batch."""
        self._map(lambda kept: kept[index.to(kept.device)] if kept is not None else None)
        self.heads = {layer: heads.of_rows(index) for layer, heads in self.heads.items()}
        if self.revival is not None:
            self.revival.choose_rows(index)
        rows = len(self.shift[0])
        self.shift = [shift[index.to(shift.device)] for shift in self.shift]
        if self.rope_deltas is not None and len(self.rope_deltas) == rows:
            self.rope_deltas = self.rope_deltas[index.to(self.rope_deltas.device)]

    def _map(self, function: Any) -> None:
        self.held = [function(kept) for kept in self.held]
        self.held_valid = [function(kept) for kept in self.held_valid]


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


def keys_in_layer(cache: "Cache | None", layer: int) -> int | None:
    """Keys that a layer of the cache holds in memory; None where the layer keeps none (recurrent layers)."""
    if cache is None or layer >= len(cache.layers):
        return 0
    keys = getattr(cache.layers[layer], "keys", None)
    if keys is None:
        return 0 if hasattr(cache.layers[layer], "keys") else None
    return keys.shape[-2] if keys.numel() else 0
