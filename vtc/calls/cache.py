"""What a cache of transformers tells about itself, and a cache that tells what it was fed instead of what it holds."""

import copy
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import Cache

#: Methods that a compressed cache has to answer otherwise: those that tell lengths, and the one that fills it.
LENGTH, MASK_SIZES, UPDATE, PREFETCH = "get_seq_length", "get_mask_sizes", "update", "prefetch"
_ASKED = (LENGTH, MASK_SIZES, UPDATE)


def tokens_in(cache: "Cache | None") -> int:
    """Tokens that the cache holds.

    Raises:
        RuntimeError: it can't be asked.
    """
    if cache is None:
        return 0
    check_asked(cache)
    return int(cache.get_seq_length())  # static layers count on their device


def can_be_asked(cache: Any) -> bool:
    """Whether a cache can be asked as transformers' caches are; that of continuous batching can't."""
    return all(hasattr(cache, name) for name in _ASKED)


def check_asked(cache: Any) -> None:
    """Refuse a cache that can't be asked as transformers' caches are.

    Raises:
        RuntimeError: it can't.
    """
    missing = next((name for name in _ASKED if not hasattr(cache, name)), None)
    if missing is not None:
        raise RuntimeError(
            f"vtc: a {type(cache).__name__} has no {missing}, so how much a cache holds, and what was removed from "
            "it, is not known; run `vtc doctor`, or call vtc.unpatch"
        )


def keys_in_layer(cache: "Cache | None", layer: int, fed: int) -> int | None:
    """Keys that a layer of the cache gives its attention in front of new ones; None where it keeps none (recurrent).

    By the layer's own answer: what it stores may be quantized, elsewhere, or more than it gives. A static layer gives
    all that it has room for, `fed` of which hold something, or as many as its window leaves.
    """
    if cache is None or layer >= len(cache.layers):
        return 0
    asked: Any = cache.layers[layer]
    if _is_fixed(asked):
        return min(fed, asked.max_cache_len - 1) if getattr(asked, "is_sliding", False) else fed
    if hasattr(asked, MASK_SIZES):
        return asked.get_mask_sizes(0)[0]
    return 0 if hasattr(asked, "keys") else None


def room_in_layer(cache: "Cache | None", layer: int, held: int | None, new: int) -> int:
    """Keys that a static layer gives its attention behind `held` and `new` ones, since it has room for them."""
    if cache is None or held is None or layer >= len(cache.layers) or not _is_fixed(cache.layers[layer]):
        return 0
    fixed: Any = cache.layers[layer]
    return fixed.get_mask_sizes(new)[0] - held - new


def keys_with(cache: "Cache", layer: int, keys: Tensor, values: Tensor | None, held: int) -> Tensor:
    """The keys [B, H, S, d] that a layer's attention would get with new `keys` and `values`; the cache stays as it is.

    A copy of the layer is updated: whatever it does to what it stores, it gives keys as its attention gets them. A
    static one, which would write into what it shares with its copy, is read: the newest `held` keys in front.
    """
    asked: Any = copy.copy(cache.layers[layer])
    if _is_fixed(asked):
        begin = asked.keys.shape[2] - held if _is_full(asked) else 0
        return torch.cat([asked.keys[:, :, begin : begin + held], keys], dim=2)
    if hasattr(asked, PREFETCH):
        asked.prefetch()  # an offloaded layer comes back just before its turn
    return asked.update(keys, values)[0]


def _is_full(layer: Any) -> bool:
    """Whether the window of a static layer is filled."""
    return getattr(layer, "is_sliding", False) and layer.get_seq_length() >= layer.max_cache_len


def keys_of_last_layer(cache: Any) -> Tensor | None:
    """The keys [B, H, n, d] of the last layer of a cache that keeps some; None where none does.

    Of a static layer they are those that hold something. Waits for the device then.
    """
    for layer in reversed(getattr(cache, "layers", ())):
        keys = getattr(layer, "keys", None)
        if isinstance(keys, Tensor) and keys.dim() == 4 and keys.numel():
            return keys[:, :, : int(layer.get_seq_length())] if _is_fixed(layer) else keys
    return None


def lengths_in(cache: Any) -> list[int | None]:
    """Tokens that each layer of the cache counts, by its own answer; None where a layer counts none."""
    return [_own_length(layer) for layer in getattr(cache, "layers", ())]


def _own_length(layer: Any) -> int | None:
    if not hasattr(layer, "keys") or not hasattr(layer, LENGTH):
        return None
    length = layer.get_seq_length()
    return length if isinstance(length, int) else None  # a static layer counts on its device


def has_state(cache: Any) -> bool:
    """Whether the cache of a decoder without attention holds the state of earlier tokens."""
    return bool(cache.has_previous_state())


def has_fixed_length(cache: "Cache | None") -> bool:
    """Whether it is a static cache: layers whose length was given in advance."""
    return any(_is_fixed(layer) for layer in getattr(cache, "layers", ()))


def _is_fixed(layer: Any) -> bool:
    return getattr(layer, "is_compileable", False) and hasattr(layer, MASK_SIZES)


def own_length(cache: Any, layer: int = 0) -> Any:
    """Tokens that a layer of a cache counts itself, compressed or not: of a static one a tensor, or an int."""
    asked: Any = super(CompressedCache, cache) if isinstance(cache, CompressedCache) else cache
    return asked.get_seq_length(layer)


class Counter(Protocol):
    """Knows what a cache was fed.

    Attributes:
        logical: tokens that the user fed, removed ones included.
        ahead: by how much these are more than a static cache counts; None: it is none.
        stepping, steps: whether a call is a step of one, and what that needs; slots: length of a mask's key axis.
        rope_offset: M-RoPE offset of each row, [B, 1], if any.
    """

    logical: int
    ahead: int | None
    stepping: bool
    steps: Any
    slots: int
    rope_offset: Tensor | None

    def window(self) -> bool:
        """Whether masks cover every slot, also where layers hold fewer keys."""

    def check_filling(self) -> None:
        """Refuse more keys where nobody cuts them any more."""

    def check_taking_back(self, count: int) -> None:
        """Refuse that the last `count` tokens are taken back, where they can't be."""

    def drop_last(self, count: int) -> None:
        """Forget the last `count` tokens."""

    def choose_rows(self, index: Tensor) -> None:
        """Reorder, repeat or select rows of the batch."""

    def rows(self) -> int:
        """Rows of the batch."""


class CompressedCache:
    """Mixed into the class of a cache: answers the three readers of its length.

    `generate` and position ids want the *logical* length; masks want the *slots* of segment 0.
    """

    _vtc: Counter

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens that the user fed, removed ones included; of a static cache counted by itself, as it is untouched."""
        if self._vtc.ahead is not None:
            return super().get_seq_length() + self._vtc.ahead  # type: ignore[misc]
        return self._vtc.logical

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Slots before the new queries."""
        if self._vtc.stepping:
            return super().get_seq_length(layer_idx)  # type: ignore[misc]
        return self._vtc.slots

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Length and offset of the keys that a mask covers: all slots, where layers may hold fewer."""
        if self._vtc.window() and not self._vtc.stepping:
            return self._vtc.slots + query_length, 0
        return super().get_mask_sizes(query_length, layer_idx)  # type: ignore[misc]

    def update(self, *args: Any, **kwargs: Any) -> Any:
        """Store keys and values.

        Raises:
            RuntimeError: the patch that made this cache is gone.
        """
        self._vtc.check_filling()
        return super().update(*args, **kwargs)  # type: ignore[misc]

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last `-tokens_to_remove` tokens (as transformers, a negative number).

        Raises:
            ValueError: there are visual tokens among them, or tokens were brought back meanwhile.
        """
        self._vtc.check_taking_back(abs(tokens_to_remove))
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
        self._vtc.choose_rows(torch.arange(self._vtc.rows()).repeat_interleave(repeats))

    def __reduce__(self) -> tuple:
        """Its class is made at run time, so copies and pickles name the class that it was mixed into."""
        return _made_again, (type(self).__mro__[2],), self.__dict__

    def reset(self) -> None:
        """Empty the cache; it is an ordinary one again."""
        super().reset()  # type: ignore[misc]
        del self._vtc
        self.__class__ = type(self).__mro__[2]


_classes: dict[type, type] = {}
_WHOLE, _OFFSET = "_vtc_whole", "_vtc_offset"


def counter_of(cache: Any) -> Any:
    """What `attach` left on a cache, if anything."""
    return getattr(cache, "_vtc", None)


def attach(cache: Any, counter: Counter) -> None:
    """Make `cache` a compressed cache: same object, same content.

    Raises:
        RuntimeError: its class is none that can be asked as transformers' caches are.
    """
    if not isinstance(cache, CompressedCache):
        check_asked(cache)
        cache.__class__ = _compressed(type(cache))
    cache._vtc = counter


def _compressed(cls: type) -> type:
    """The class `cls` with `CompressedCache` mixed in."""
    if cls not in _classes:
        _classes[cls] = type(f"Compressed{cls.__name__}", (CompressedCache, cls), {})
    return _classes[cls]


def _made_again(cls: type) -> Any:
    """A compressed cache without anything in it, to be filled by `copy` or `pickle`."""
    return object.__new__(_compressed(cls))


def mark_whole(cache: Any) -> None:
    """Take note that nothing was removed from a cache, as yet; one that can't be asked is refused when it matters."""
    if hasattr(cache, LENGTH) and hasattr(cache, "__dict__") and not isinstance(cache, CompressedCache):
        object.__setattr__(cache, _WHOLE, cache.get_seq_length())


def is_whole(cache: Any) -> bool:
    """Whether `mark_whole` saw a cache at its present length, or longer: it may have been cropped since."""
    return getattr(cache, _WHOLE, 0) >= tokens_in(cache)


def put_offset(cache: Any, offset: Tensor | None) -> None:
    """Keep the M-RoPE offset [B, 1] of a conversation with its cache; None: it has none."""
    if (counter := counter_of(cache)) is not None:
        counter.rope_offset = offset
    elif hasattr(cache, "__dict__"):
        object.__setattr__(cache, _OFFSET, offset)


def offset_on(cache: Any) -> tuple[bool, Tensor | None]:
    """Whether `put_offset` has left an offset on a cache, and which."""
    counter = counter_of(cache)
    if counter is not None:
        return counter.rope_offset is not None, counter.rope_offset
    return hasattr(cache, _OFFSET), getattr(cache, _OFFSET, None)
