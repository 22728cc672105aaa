"""DiffRate's compression rates: what is published, and what can be learned (arXiv 2305.17997, Sec. 3.3)."""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

#: Published schedules, of 197 tokens with CLS: what each block prunes to, and then merges to. The smaller tower's last
#: entry, 3, is left out: a classifier needs CLS alone in the end, a language model needs patches.
_PUBLISHED_TOKENS = 197
_DEIT_S = (
    (197, 196, 190, 168, 150, 139, 129, 117, 99, 78, 58),
    (197, 194, 176, 156, 141, 133, 121, 107, 88, 64, 56),
)
_VIT_L = (
    (197, 197, 197, 195, 194, 193, 191, 187, 182, 180, 173, 149, 142, 134, 125, 121, 111, 106, 91, 87, 77, 39, 38, 32),
    (197, 197, 196, 194, 193, 192, 187, 183, 181, 173, 154, 146, 137, 127, 123, 114, 105, 98, 87, 75, 43, 45, 32, 32),
)
#: Towers with at least this many blocks follow ViT-L's (24 blocks), others DeiT-S's (12).
_DEEP = 18


def published_shares(blocks: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The published curves over relative depth, rescaled to fall from 1 to 0: how much of what is to go is still there.

    Args:
        blocks: how many blocks compress; the last of them ends the curve.

    Returns:
        After pruning and after merging, one entry per block; the last of the second is 0.
    """
    curves = _VIT_L if blocks >= _DEEP else _DEIT_S
    prune, merge = ([(kept - 1) / (_PUBLISHED_TOKENS - 1) for kept in accumulate(curve, min)] for curve in curves)
    end = merge[-1]
    places = [(len(merge) - 1) * (block / (blocks - 1) if blocks > 1 else 1.0) for block in range(blocks)]
    first, second = (tuple((_at(curve, place) - end) / (1 - end) for place in places) for curve in (prune, merge))
    return first, second


def _at(curve: Sequence[float], place: float) -> float:
    """A curve at a place between its entries."""
    left = min(int(place), len(curve) - 2)
    return curve[left] + (curve[left + 1] - curve[left]) * (place - left)


# ---------------------------------------------------------------- rates that can be learned


def candidates(patches: int, granularity: int = 1) -> Tensor:
    """Counts of patches that a block may keep: all of them, and `granularity` fewer each time; above 0."""
    return torch.arange(patches, 0, -granularity, dtype=torch.float32)


def expected_kept(logits: Tensor, counts: Tensor) -> Tensor:
    """Tokens kept, CLS among them: the expectation of `counts` [K] under softmax(logits) [K], rounded up.

    The gradient is that of the expectation (straight through).
    """
    expected = (torch.softmax(logits, dim=-1) * counts).sum(dim=-1)
    return expected + (expected.detach().ceil() - expected.detach()) + 1


def token_probability(logits: Tensor, counts: Tensor) -> Tensor:
    """Probability that the token of each rank is kept: Tensor [1 + N], CLS first, whose probability is 1.

    Rank j is kept by those of the `counts` [K], descending from N, that are at least j.
    """
    probability = torch.softmax(logits, dim=-1)
    ranks = torch.arange(1, int(counts[0]) + 1, device=logits.device)
    kept = (probability * (counts >= ranks[:, None])).sum(dim=-1)
    return torch.cat([kept.new_ones(1), kept])


def token_mask(probability: Tensor, kept: Tensor, before: Tensor | None = None, present: int | None = None) -> Tensor:
    """1 for the first `kept` ranks, 0 for the rest, with the gradient of the probability (straight through).

    Args:
        probability: [1 + N], as from `token_probability`.
        kept: scalar, as from `expected_kept`.
        before: [1 + N], mask of the block before; None: ones.
        present: tokens that are still there: ranks from here on keep their value of `before`. None: all.

    Returns:
        Tensor [1 + N].
    """
    ranks = torch.arange(len(probability), device=probability.device)
    hard = (ranks < kept.detach()).to(probability.dtype)
    mask = probability + (hard - probability).detach()
    before = torch.ones_like(probability) if before is None else before
    return mask if present is None else torch.where(ranks < present, mask, before)
