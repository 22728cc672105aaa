"""Where in an image a selector may pick, and how a budget is shared out over it."""

import math
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from vtc.method.budget import share_out
from vtc.method.reduction import Reduction
from vtc.method.visual_tokens import VisualTokens
from vtc.model.layout import Grid
from vtc.ops.host import on


def candidates(visual: VisualTokens, k: int) -> Tensor:
    """Ascending indices of the tokens that stand for a place in the picture, and the first separators if k needs them.

    Returns:
        LongTensor [M] on the CPU, max(k, tokens of the grids) long.
    """
    places = torch.cat([(~visual.separators).nonzero()[:, 0], visual.separators.nonzero()[:, 0]])
    return places[: max(k, int((~visual.separators).sum()))].sort().values


def all_of(visual: VisualTokens, k: int) -> Reduction | None:
    """The decision where a budget of `k` has room for all tokens that stand for a place; else None."""
    places = candidates(visual, k)
    if len(places) != k:
        return None
    return Reduction.of(on(visual.features.device, places).expand(len(visual.features), -1))


@lru_cache(maxsize=256)
def partition(t: int, h: int, w: int, k: int) -> tuple[Tensor, Tensor]:
    """Cut a T × H × W grid into exactly `k` boxes, as equal and as square as they come. 1 <= k <= T·H·W.

    Frames are kept apart while k reaches; each (group of) frames is cut into bands of rows, each band into boxes.

    Returns:
        LongTensor [T·H·W], the box of each cell (not to be written to), and LongTensor [k], the cell at each box's
        centre, ascending.
    """
    box_of = torch.empty(t, h, w, dtype=torch.long)
    centres: list[int] = []
    spans = min(t, k)
    for (first, last), part in zip(_spans(t, spans), _evenly(k, spans), strict=True):
        bands = min(max(round(math.sqrt(part * h / w)), math.ceil(part / w)), h, part)
        for (top, bottom), columns in zip(_spans(h, bands), _evenly(part, bands), strict=True):
            for left, right in _spans(w, columns):
                box_of[first:last, top:bottom, left:right] = len(centres)
                frame, row, column = (first + last - 1) // 2, (top + bottom - 1) // 2, (left + right - 1) // 2
                centres.append((frame * h + row) * w + column)
    return box_of.flatten(), torch.tensor(centres)


def boxes(grids: tuple[Grid, ...], k: int) -> tuple[Tensor, Tensor, Tensor]:
    """`partition` over all grids of an image, each with its part of `k` in proportion to its tokens.

    Args:
        grids: the grids of an image.
        k: boxes in all, up to the number of tokens in the grids.

    Returns:
        LongTensor [M], tokens within the image; LongTensor [M], the box of each; LongTensor [k], the token at the
        centre of each box, ascending. Grids whose part is 0 are left out.
    """
    sizes = [grid.t * grid.h * grid.w for grid in grids]
    tokens, box_of, centres, count = [], [], [], 0
    for grid, part in zip(grids, share_out(k, sizes), strict=True):
        if part:
            inside = grid.tokens().flatten()
            box, centre = partition(grid.t, grid.h, grid.w, part)
            tokens.append(inside)
            box_of.append(box + count)
            centres.append(inside[centre])
            count += part
    return torch.cat(tokens), torch.cat(box_of), torch.cat(centres)


def _evenly(k: int, parts: int) -> list[int]:
    return [end - start for start, end in _spans(k, parts)]


def _spans(length: int, parts: int) -> list[tuple[int, int]]:
    """Cut 0…length into `parts` stretches of nearly equal length."""
    return list(pairwise(i * length // parts for i in range(parts + 1)))
