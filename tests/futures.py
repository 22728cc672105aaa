"""Releases of transformers that do not exist: each calls something by another name, in another way, or not at all.

A future changes how a model is called and leaves what it computes as it is, bit for bit (a test holds it). Its shims are
put into one model instance for the length of a `with`, and leave nothing behind.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

from future_tools import (
    Convention,
    Parts,
    Shim,
    all_by_name,
    every,
    first,
    positional,
    renamed,
    speaking,
)

FAMILIES = ("llava", "qwen2_5_vl", "gemma3", "internvl")


@dataclass(frozen=True)
class Future:
    """One such release.

    Attributes:
        shim: what puts it into a model.
        families: those that it may come to; others have it already, or can't.
        exact: the bare model gives the same bits; else the same to rounding.
    """

    shim: Callable[[Parts], Shim]
    families: tuple[str, ...] = FAMILIES
    exact: bool = True


FUTURES: dict[str, Future] = {}


def future(*families: str, exact: bool = True) -> Callable[[Callable[[Parts], Shim]], Callable[[Parts], Shim]]:
    """Register a function that puts a future into a model, under its own name."""

    def register(shim: Callable[[Parts], Shim]) -> Callable[[Parts], Shim]:
        FUTURES[shim.__name__] = Future(shim, families or FAMILIES, exact)
        return shim

    return register


def calls(name: str, part: str, make: Callable[[], Convention], *families: str, exact: bool = True) -> None:
    """Register a future in which the modules of a part are called in another convention."""

    def shim(parts: Parts) -> Shim:
        return every(*(speaking(module, make()) for module in parts.of(part)))

    FUTURES[name] = Future(shim, families or FAMILIES, exact)


# ---------------------------------------------------------------- arguments by other names

NAMES = {
    "decoder": {
        "past_key_values": "memory",
        "position_ids": "positions",
        "attention_mask": "mask",
        "inputs_embeds": "embeddings",
    },
    "layers": {
        "past_key_values": "memory",
        "position_ids": "positions",
        "attention_mask": "mask",
        "hidden_states": "x",
        "position_embeddings": "rope",
    },
    "composite": {"past_key_values": "memory", "attention_mask": "mask", "input_ids": "ids", "pixel_values": "pixels"},
    "blocks": {"hidden_states": "x"},
    "attentions": {"past_key_values": "memory", "position_embeddings": "rope", "hidden_states": "x"},
}
for part, names in NAMES.items():
    for name, new in names.items():
        calls(f"{part}: {name} renamed", part, functools.partial(renamed, **{name: new}))
    if len(names) > 1:
        calls(f"{part}: everything renamed", part, functools.partial(renamed, **names))
    calls(f"{part}: everything renamed, hidden signature", part, functools.partial(renamed, opaque=True, **names))
    calls(f"{part}: everything by name", part, all_by_name)

# ---------------------------------------------------------------- arguments by position

for name in ("attention_mask", "position_ids", "past_key_values", "inputs_embeds"):
    calls(f"decoder: up to {name} by position", "decoder", functools.partial(positional, name))
calls("decoder: by position, hidden signature", "decoder", functools.partial(positional, "inputs_embeds", opaque=True))
calls("decoder: inputs_embeds first", "decoder", functools.partial(first, "inputs_embeds"))
calls("composite: by position", "composite", functools.partial(positional, "inputs_embeds"))
calls("layers: by position", "layers", functools.partial(positional, "past_key_values"))
