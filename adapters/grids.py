"""The grid behind the tokens of a picture: told by the call, or by the config where pictures have one size."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from vtc.calls.composite import SIDES, grid_thw
from vtc.model.layout import Grid


def told_grids(arguments: dict[str, Any], kind: str, index: int, tokens: int) -> tuple[Grid, ...] | None:
    """The grids of `tokens` of image `index` that the arguments of its features tell; None where they do not."""
    both = arguments.get(f"{kind}_grids")  # of a view of the whole, and of the joined tiles
    if isinstance(both, Tensor) and both.dim() == 2 and both.shape[1] == 4 and index < len(both):
        height, width, rows, columns = both[index].tolist()
        if height * width + rows * columns == tokens:
            whole = Grid(0, 1, height, width, kind="thumbnail" if rows * columns else "image")
            return (whole, Grid(len(whole), 1, rows, columns, kind="tiles")) if rows * columns else (whole,)
    grid = _told_grid(arguments, kind, index, tokens)
    return None if grid is None else (grid,)


def _told_grid(arguments: dict[str, Any], kind: str, index: int, tokens: int) -> Grid | None:
    """One grid of all tokens, by a grid in patches, the picture's sides or the places of its patches."""
    thw = grid_thw(arguments, kind)
    if thw is not None and index < len(thw):
        t, h, w = thw[index].tolist()
        merge = round((t * h * w / tokens) ** 0.5)
        if merge and t * (h // merge) * (w // merge) == tokens:
            return Grid(0, t, h // merge, w // merge)
        if (grid := _broken_grid(t, h, w, tokens)) is not None:
            return grid
    for name in SIDES:
        sizes = arguments.get(name)
        if sizes is not None and index < len(sizes):
            height, width = (int(side) for side in sizes[index])
            if (grid := _even(height, width, tokens)) is not None:
                return grid
    places = arguments.get(f"{kind}_position_ids")
    if isinstance(places, Tensor) and places.dim() == 3 and index < len(places):
        width, height = (int(side) + 1 for side in places[index].amax(dim=0))
        return _even(height, width, tokens)
    return None


def _broken_grid(t: int, h: int, w: int, tokens: int) -> Grid | None:
    """A grid in patches with a line break behind each row of tokens, and for one frame maybe a mark at either end."""
    found = [
        Grid(0, t, h // merge, w // merge, row_end=1, front=marks, end=marks)
        for merge in range(1, min(h, w) + 1)
        for marks in (0, 1)
        if h % merge == w % merge == 0 and (t == 1 or not marks)
    ]
    fitting = [grid for grid in found if len(grid) == tokens]
    return fitting[0] if len(fitting) == 1 else None


def config_grid(config: Any, tokens: int) -> Grid | None:
    """The grid of `tokens` of a picture of the size that a config names; None where it names none, or they don't fit.

    Every token is a square of patches then.
    """
    height, width = config_sides(config)
    edge = math.isqrt(height * width // tokens) if tokens else 0
    if not edge or height % edge or width % edge or (height // edge) * (width // edge) != tokens:
        return None
    return Grid(0, 1, height // edge, width // edge)


def config_sides(config: Any) -> tuple[int, int]:
    """Rows and columns of patches of a picture of the size that a config names; none where it names none."""
    vision = getattr(config, "vision_config", config)
    image, patch = (_pair(getattr(vision, name, None)) for name in ("image_size", "patch_size"))
    if image is None or patch is None:
        return 0, 0
    return image[0] // patch[0], image[1] // patch[1]


def pixel_grid(shapes: dict[str, tuple[int, ...]], tokens: int) -> Grid | None:
    """The grid of `tokens` of one of the pictures [images, 3, H, W] that a call was given, all of one size."""
    sides = [shape[-2:] for shape in shapes.values() if len(shape) == 4]
    return _even(*sides[0], tokens) if len(sides) == 1 else None


def are_flat(shapes: dict[str, tuple[int, ...]]) -> bool:
    """Whether what a call was given are lists of patches, whose rows and columns the config of a picture can't tell."""
    return bool(shapes) and all(len(shape) < 4 for shape in shapes.values())


def _even(height: int, width: int, tokens: int) -> Grid | None:
    """`tokens` squares over a picture; None where they do not fit."""
    cell = (height * width / tokens) ** 0.5 if tokens else 0
    if not cell:
        return None
    rows, columns = round(height / cell), round(width / cell)
    return Grid(0, 1, rows, columns) if rows * columns == tokens else None


def _pair(value: Any) -> tuple[int, int] | None:
    """(height, width) of a size of a config."""
    if isinstance(value, int):
        return value, value
    if isinstance(value, list | tuple | Tensor) and len(value) == 2:
        return int(value[0]), int(value[1])
    return None


def tile_grids(config: Any, cell: Callable[[int], int], tokens: int) -> tuple[Grid, ...] | None:
    """Grids for tiles that stand one behind the other, each a picture of the size that a config names.

    Args:
        config: of the model.
        cell: tells how many of a tile's patches make a token.
        tokens: of all tiles.

    Returns:
        None where they are not so many whole tiles.
    """
    patches = math.prod(config_sides(config))
    tile = config_grid(config, patches // cell(patches))
    if tile is None or not tokens or tokens % len(tile):
        return None
    count = tokens // len(tile)
    return tuple(replace(tile, start=n * len(tile), kind="image" if count == 1 else "tile") for n in range(count))
