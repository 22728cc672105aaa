"""Greedy k-center on a CPU: the picks that the whole matrix of similarities would give, from a part of it.

A token's similarity to its nearest pick only grows as picks are added, and to its nearest other token as others are
looked at. So what was found of a token so far bounds it from below, and most tokens are out of the running long before
all of their row is known (lazy evaluation; Minoux 1978 for greedy maximisation).
"""

import torch
from torch import Tensor

#: Rows that are worked through at once: enough for a matrix product to run at full speed.
BLOCK = 64


def farthest_first(unit: Tensor, near: Tensor, k: int, seed: int | None) -> Tensor:
    """Picks of one image, each the token least similar to the picks before it; equal ones: lowest index.

    Args:
        unit: [N, D], rows of length 1 or 0.
        near: [N], the least similarity that each token starts with: -inf, or more than 1 for tokens that come last.
        k: picks, 1 <= k <= N.
        seed: the first pick; None: the token whose nearest other token is least similar.

    Returns:
        LongTensor [k], in pick order.
    """
    picks = [_loneliest(unit, near) if seed is None else seed]
    chosen = unit.new_empty(k, unit.shape[1])  # the rows of the picks
    chosen[0] = unit[picks[0]]
    near = near.clone()  # as it was when `known` tokens were picked, or later
    near[picks[0]] = torch.inf
    known = 0
    while (count := len(picks)) < k:
        if count >= 2 * known:
            _bring_up_to_date(near, unit, chosen[known:count])
            known = count
        pool, rival = _in_the_running(near, max(BLOCK, count // 2))
        rows = unit[pool]
        now = near[pool]
        _bring_up_to_date(now, rows, chosen[known:count])
        for place in _pick(now, pool.tolist(), rows @ rows.T, rival, k - count):
            chosen[len(picks)] = rows[place]
            picks.append(int(pool[place]))
        near[pool] = now
    return torch.tensor(picks)


def _bring_up_to_date(near: Tensor, rows: Tensor, picked: Tensor) -> None:
    """Raise `near` of the rows [M, D], in place, to their similarity to picks [P, D] that it does not know of."""
    for start in range(0, len(picked), 4 * BLOCK):
        torch.maximum(near, (rows @ picked[start : start + 4 * BLOCK].T).amax(dim=1), out=near)


def _in_the_running(near: Tensor, size: int) -> tuple[Tensor, tuple[float, int]]:
    """The `size` tokens with the least `near`, by index, and of the best of all others: (near, index)."""
    order = near.argsort(stable=True)
    if size >= len(order):
        return order.sort().values, (torch.inf, len(order))
    return order[:size].sort().values, (float(near[order[size]]), int(order[size]))


def _pick(now: Tensor, tokens: list[int], similarity: Tensor, rival: tuple[float, int], most: int) -> list[int]:
    """Pick within a pool for as long as no token outside, whose bound is the `rival`, could come first.

    Args:
        now: [M], similarity of the pool's tokens to their nearest pick; brought up to date in place.
        tokens: their indices, ascending.
        similarity: [M, M], of the pool's tokens to each other.
        rival: (similarity, index) that comes first outside.
        most: picks at most.
    """
    places: list[int] = []
    while len(places) < most:
        place = int(now.argmin())
        if (float(now[place]), tokens[place]) >= rival:
            break
        places.append(place)
        torch.maximum(now, similarity[place], out=now)
        now[place] = torch.inf
    return places


def _loneliest(unit: Tensor, near: Tensor) -> int:
    """The token whose nearest other token is least similar, among those that start with the least `near`."""
    tokens = len(unit)
    bound = near.clone()  # similarity to the nearest of the tokens that were looked at
    exact = torch.full_like(near, torch.inf)
    block = torch.arange(0, tokens, max(1, tokens // BLOCK))[:BLOCK]
    while len(block):
        similarity = unit[block] @ unit.T
        similarity[torch.arange(len(block)), block] = -torch.inf
        exact[block] = torch.maximum(near[block], similarity.amax(dim=1))
        torch.maximum(bound, similarity.amax(dim=0), out=bound)
        still = (bound <= exact.min()) & exact.isposinf()
        block = bound.masked_fill(~still, torch.inf).topk(min(BLOCK, int(still.sum())), largest=False).indices
    return int(exact.argmin())
