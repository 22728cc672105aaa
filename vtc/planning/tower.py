"""What the vision tower does with an image, told from its config: the sequences, and what a reducer leaves of them."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vtc.attention.scores import Attention
from vtc.calls.tower import BlockCall
from vtc.model.flops import BlockRun, lengths_of
from vtc.seam.composition import Composition
from vtc.tower.run import TowerRun

#: Width of the random rows that a reducer is shown; how many it leaves does not depend on them.
_WIDTH = 8


class Untold(ValueError):
    """Shapes alone don't tell; the message says what, and the way out."""


@dataclass(frozen=True)
class Encoding:
    """The vision tower's sequences for the images of one prompt.

    Attributes:
        images: how many there are.
        tokens: visual tokens of each.
        sequences: entries of the tower's batch, of all images together.
        patches: P, patches in each, CLS left out.
        cell: patches that make one token.
        prefix: 1 where row 0 is a CLS token, else 0.
        flat: whether all images stand in one sequence without a batch dimension (Qwen-VL).
        boundaries: for each block LongTensor, where the sequences within a packed one begin and end; None: it is one.
    """

    images: int
    tokens: int
    sequences: int
    patches: int
    cell: int
    prefix: int
    flat: bool = False
    boundaries: Callable[[int], Tensor | None] = lambda block: None

    @property
    def whole(self) -> bool:
        """Whether every patch makes a token, and every token is made of patches."""
        return self.images * self.tokens * self.cell == self.sequences * self.patches

    def lengths(self, block: int) -> Callable[[], Tensor]:
        """Gives the lengths of the sequences that attend within themselves, CLS counted."""
        return lengths_of((self.sequences, self.patches), self.prefix, self.boundaries(block))


def tokens_per_image(adapter: Any) -> int | None:
    """Visual tokens of one image (of one tile, InternVL), where the model's config fixes it."""
    config = adapter.parts.composite.config
    if _tiled(config) or _merge(adapter):
        return None
    if (fixed := getattr(config, "image_seq_length", None)) is not None:
        return fixed
    patches = _patches(adapter) if adapter.follows_patches else None
    return None if patches is None else patches // adapter.cell(patches)


def encode(adapter: Any, tokens: int, images: int, crops: int | None) -> Encoding:
    """How the tower sees `images` images of `tokens` visual tokens each.

    Args:
        adapter: of the model.
        tokens: visual tokens of one image.
        images: how many there are.
        crops: tiles of one image; None: as many as make so many tokens.

    Raises:
        Untold: the config does not tell.
    """
    family, prefix = adapter.family, int(adapter.parts.has_cls)
    if not adapter.follows_patches or not adapter.parts.blocks:
        raise Untold(f"{family}: how its vision tower works is not known here; {_WAY_OUT}")
    if merge := _merge(adapter):
        return _packed(adapter, tokens, images, merge)
    patches, config = _patches(adapter), adapter.parts.composite.config
    if patches is None:
        raise Untold(f"{family}: its config does not tell how many patches its vision tower sees; {_WAY_OUT}")
    cell = adapter.cell(patches)
    per_crop = patches // cell
    if crops is None:
        if _tiled(config) or tokens % per_crop:
            raise Untold(
                f"{family}: in how many tiles of {per_crop} tokens its vision tower sees {tokens} visual tokens is not "
                f"told by the config; give crops=…, e.g. 5 for four tiles and a thumbnail, or {_WAY_OUT}"
            )
        crops = tokens // per_crop
    return Encoding(images, tokens, images * crops, patches, cell, prefix)


def runs_of(composition: Composition, encoding: Encoding) -> list[BlockRun]:
    """The calls of the tower's blocks for one prompt, as a run would record them.

    Raises:
        Untold: how many patches are left depends on what they show.
        ValueError: the reducer can't leave so few.
    """
    if composition.reducer is None or composition.reducer.count(encoding.tokens) >= encoding.tokens:
        blocks = range(len(composition.parts.blocks))
        return [BlockRun(block, encoding.lengths(block), encoding.lengths(block)) for block in blocks]
    name = composition.reducer.name
    if composition.reducer.together != "all":
        raise Untold(f"{name}: how many patches each block of the tower drops depends on the picture; {_WAY_OUT}")
    if not encoding.whole:
        raise Untold(f"{name}: which of the tower's patches make tokens depends on the picture's size; {_WAY_OUT}")
    return _reduced(composition, encoding)


def _reduced(composition: Composition, encoding: Encoding) -> list[BlockRun]:
    """Show the reducer random patches, block by block, as in a run."""
    assert composition.reducer is not None
    generator = torch.Generator().manual_seed(0)
    each = encoding.tokens * encoding.cell
    maps = [(torch.arange(each) + image * each).view(-1, encoding.cell) for image in range(encoding.images)]
    shape = (encoding.sequences, encoding.prefix + encoding.patches, _WIDTH)
    x = torch.randn(shape[1:] if encoding.flat else shape, generator=generator)
    depth, acts = len(composition.parts.blocks), composition.reducer.acts
    tower = TowerRun(composition.reducer, composition.reducing_at, maps, x, encoding.prefix, depth)
    runs = []
    for block in range(depth):
        boundaries = encoding.boundaries(block)
        changed = tower.before_block(block, BlockCall.of(x, boundaries))
        x = x if changed is None else changed[0][0]
        original = encoding.lengths(block)
        runs.append(BlockRun(block, original, original if changed is None else tower.lengths()))
        if acts != "entry" and block in composition.reducing_at:
            rows = torch.randn(3, *(x[None] if encoding.flat else x)[:, None].shape, generator=generator)
            tower.hear(Attention(rows[0], rows[1], _WIDTH**-0.5, causal=False, value=rows[2]), True)
            move = tower.reduce(block, x)
            if move is not None:
                x = move.rows
                if acts == "attention":
                    runs[-1].mlp_rows = tower.rows()
    return runs


# ---------------------------------------------------------------- what configs tell

_WAY_OUT = "use a target of the decoder alone, such as 'decoder=0.2' or 'tokens=64'"


def _tiled(config: Any) -> bool:
    """Whether tiles of an image are packed with newlines, so that tokens don't tell how many there are."""
    spatial = str(getattr(config, "mm_patch_merge_type", "")).startswith("spatial")
    return spatial or getattr(config, "image_grid_pinpoints", None) is not None


def _merge(adapter: Any) -> int | None:
    """Patches along a token's side where images of any size stand in one packed sequence; None: they don't."""
    config = adapter.parts.composite.config
    return getattr(adapter.tower, "spatial_merge_size", getattr(config, "spatial_merge_size", None))


def _patches(adapter: Any) -> int | None:
    """Patches of the square that a tower of fixed size sees."""
    config = getattr(adapter.tower, "config", None)
    image, patch = (_side(getattr(config, name, None)) for name in ("image_size", "patch_size"))
    return (image // patch) ** 2 if image and patch else None


def _side(value: Any) -> int | None:
    sides = set(value) if isinstance(value, list | tuple) else {value}
    side = sides.pop()
    return side if isinstance(side, int) and not sides else None


def _packed(adapter: Any, tokens: int, images: int, merge: int) -> Encoding:
    """All images in one sequence."""
    cell, tower = merge**2, adapter.tower
    if not hasattr(tower, "spatial_merge_size"):  # Pixtral: one sequence, images apart by the mask alone
        return Encoding(images, tokens, 1, images * tokens * cell, cell, 0)
    whole, full = [tokens], getattr(tower, "fullatt_block_indexes", None)
    windows = whole if full is None else _windows(tokens, tower.window_size // merge // tower.patch_size)

    def boundaries(block: int) -> Tensor:
        parts = whole if full is None or block in full else windows
        return torch.tensor([0, *parts * images]).cumsum(0) * cell

    return Encoding(images, tokens, 1, images * tokens * cell, cell, 0, flat=True, boundaries=boundaries)


def _windows(tokens: int, edge: int) -> list[int]:
    """Tokens of each attention window of edge × edge in an image as near to a square as its tokens allow."""
    high = next(side for side in range(math.isqrt(tokens), 0, -1) if tokens % side == 0)
    rows, columns = ([min(edge, side - start) for start in range(0, side, edge)] for side in (high, tokens // high))
    return [row * column for row in rows for column in columns]
