"""So many tokens of each frame, and masks as places: what selectors that share a budget out over frames have alike."""

import torch
from torch import Tensor


def lowest_of_frames(score: Tensor, budgets: Tensor) -> Tensor:
    """The tokens with the lowest scores of each frame, the first of equal ones; NaN counts as the highest.

    Args:
        score: [G, T, S].
        budgets: LongTensor [G, T]: how many of each frame.

    Returns:
        BoolTensor [G, T, S].
    """
    score = torch.where(score.isnan(), float("inf"), score)
    rank = score.argsort(dim=2, stable=True).argsort(dim=2)
    return rank < budgets[:, :, None]


def places_of(mask: Tensor, count: int) -> Tensor:
    """LongTensor [G, count], ascending: the places of a mask [G, ...] that has `count` in each of its G rows.

    Nothing waits for the device.
    """
    return (~mask).flatten(1).to(torch.uint8).argsort(dim=1, stable=True)[:, :count]
