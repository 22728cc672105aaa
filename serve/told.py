"""What the front end tells the worker of each item, beside its pixels: one tensor that the engine carries along."""

import hashlib
import struct
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vtc.method.budget import Keep
from vtc.serve.served import Item
from vtc.serve.setting import Setting

_HEADER = 5
_ENGINE, _COUNT, _SHARE = range(3)


@dataclass(frozen=True)
class Told:
    """One item.

    Attributes:
        left: rows that the prompt has room for.
        whole: whether text is among them.
        key: names its pixels, its setting and its budget.
        keep: the request's budget; None: the engine's.
        ids: LongTensor [L], as `Item.ids`.
    """

    left: int
    whole: bool
    key: int
    keep: Keep | None
    ids: Tensor

    def encoded(self) -> Tensor:
        """LongTensor [5 + L]."""
        if self.keep is None:
            kind, bits = _ENGINE, 0
        elif isinstance(self.keep, int):
            kind, bits = _COUNT, self.keep
        else:
            kind, bits = _SHARE, struct.unpack("<q", struct.pack("<d", self.keep))[0]
        return torch.cat([torch.tensor([self.left, self.whole, self.key, kind, bits]), self.ids])

    @classmethod
    def of(cls, encoded: Tensor) -> "Told":
        """Read what `encoded` wrote."""
        left, whole, key, kind, bits = encoded[:_HEADER].tolist()
        keep: Keep | None = None
        if kind == _COUNT:
            keep = bits
        elif kind == _SHARE:
            keep = struct.unpack("<d", struct.pack("<q", bits))[0]
        return cls(left, bool(whole), key, keep, encoded[_HEADER:])

    def item(self, setting: Setting) -> Item:
        """The item, with the budget of its request."""
        return Item(self.ids, setting.asked(self.keep))


def field(modality: str) -> str:
    """The name under which the engine carries it."""
    return f"vtc_{modality}"


def key_of(parts: Any) -> int:
    """A number that names values: tensors (on the CPU), lists, tuples, and whatever else has a `repr`."""
    digest = hashlib.blake2b(digest_size=8)
    _feed(digest, parts)
    return int.from_bytes(digest.digest(), "little", signed=True)


def _feed(digest: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        digest.update(f"{value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.contiguous().view(-1).view(torch.uint8).numpy().data)
    elif isinstance(value, list | tuple):
        digest.update(f"{len(value)} of".encode())
        for part in value:
            _feed(digest, part)
    else:
        digest.update(repr(value).encode())
