"""Features that were made ahead of the call that shows them, known again by their values.

Between the two they may be copied, saved, sent to another device or repeated for beams, and hooks of other packages
rebuild what holds them. Only the values come through.
"""

import weakref
from typing import Any

import torch
from torch import Tensor

#: Odd factors of 64 bits, and how many elements are looked at at once.
_FACTORS, _AT_ONCE = (0x1E3779B97F4A7C15, 0x3F58476D1CE4E5B9), 1 << 22
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Imprint:
    """What features are known by. It holds on to none of them.

    Args:
        pooled: the features, Tensor [images, N, D], or for each image a Tensor [N, D].
    """

    def __init__(self, pooled: Any):
        self._whole = _Same(pooled) if isinstance(pooled, Tensor) else None
        self._parts = [] if isinstance(pooled, Tensor) else [_Same(part) for part in pooled]
        self._shapes = [part.shape for part in pooled]
        self._marks = [_mark(part) for part in pooled]

    def find(self, pooled: Any) -> tuple[int, ...] | None:
        """For each image of `pooled`, which of these it is; None where one is none of them.

        Waits for the device only where they are not the very same tensors, unchanged.
        """
        if self._whole is not None and self._whole.holds(pooled):
            return tuple(range(len(self._marks)))
        if not isinstance(pooled, Tensor | list | tuple) or not all(isinstance(part, Tensor) for part in pooled):
            return None
        if not isinstance(pooled, Tensor):
            same = [[i for i, known in enumerate(self._parts) if known.holds(part)] for part in pooled]
            if all(same):
                return tuple(found[0] for found in same)
        known = [(shape, *mark.tolist()) for shape, mark in zip(self._shapes, self._marks)]
        found: list[int] = []
        for part in pooled:
            wanted = (part.shape, *_mark(part).tolist())
            if wanted not in known:
                return None
            following = found[-1] + 1 if found else 0  # of several alike, the next in order
            found.append(following if known[following : following + 1] == [wanted] else known.index(wanted))
        return tuple(found)

    def cuts(self, pooled: Any) -> bool:
        """Whether `pooled` begins with a row of these: it is a part of them. False where they are gone."""
        held = [same.tensor() for same in ([self._whole] if self._whole is not None else self._parts)]
        parts = [pooled] if isinstance(pooled, Tensor) else pooled
        if not isinstance(parts, list | tuple) or not parts or not isinstance(parts[0], Tensor):
            return False
        first = parts[0].flatten(0, -2)[:1]
        rows = [each.flatten(0, -2) for each in held if each is not None and each.shape[-1:] == first.shape[-1:]]
        return any(bool((each == first.to(each)).all(dim=-1).any()) for each in rows if len(first))


class _Same:
    """Tells a tensor that has not been written to since."""

    def __init__(self, tensor: Tensor):
        self.tensor = weakref.ref(tensor)
        self._version = None if tensor.is_inference() else tensor._version

    def holds(self, value: Any) -> bool:
        same = isinstance(value, Tensor) and self.tensor() is value
        return self._version is not None and same and value._version == self._version


def _mark(part: Tensor) -> Tensor:
    """Two numbers, LongTensor [2], that no other values of this shape and dtype will have. Waits for nothing."""
    flat = part.detach().reshape(-1)
    bits = flat.view(_BITS[flat.element_size()])
    total = torch.zeros(2, dtype=torch.long, device=part.device)
    for start in range(0, len(bits), _AT_ONCE):
        piece = bits[start : start + _AT_ONCE].long()
        place = 2 * torch.arange(start, start + len(piece), device=part.device) + 1
        for number, factor in enumerate(_FACTORS):
            weight = place * factor
            weight = (weight ^ (weight >> 29)) * factor | 1
            total[number] += (piece * weight).sum()
    return total
