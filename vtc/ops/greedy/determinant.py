"""Greedy maximum of a determinant on a CPU: the picks that the whole matrix would give, from a part of it.

A pivoted Cholesky decomposition picks the largest entry that is left of the diagonal. What is left of a token only
falls as picks are added, so what it was bounds what it is, and most tokens are out of the running for many picks (lazy
evaluation; Minoux 1978). Picks span a space, of which an orthonormal basis is kept; what is left of a token is its
squared length without its part in there.
"""

import torch
from torch import Tensor

#: Tokens that are worked through at once, and picks after which all others are brought up to date: enough for a matrix
#: product to run at full speed.
POOL = 256
BEHIND = 32
#: With fewer picks than that from a pool, what is known of the others is too old.
FEW = 8


def determinant_first(rows: Tensor, left: Tensor, quality: Tensor, k: int, floor: float) -> Tensor:
    """Picks of one image, each the token that points farthest out of the span of those before; of equals the first.

    Args:
        rows: [N, D], as long as their quality, or 0.
        left: [N], their squared lengths.
        quality: [N], at least 0: what decides where nothing is left.
        k: picks, 1 <= k <= N.
        floor: share of the largest of `left`, up to which nothing counts as left.

    Returns:
        LongTensor [k], in pick order.
    """
    least = floor * float(left.max())
    picks = _spanning(rows, left, min(k, rows.shape[1]), least)
    quality = quality.clone()
    quality[picks] = -torch.inf
    rest = quality.argsort(descending=True, stable=True)
    return torch.cat([torch.tensor(picks, dtype=torch.int64), rest[: k - len(picks)]])


def _spanning(rows: Tensor, start: Tensor, most: int, least: float) -> list[int]:
    """Picks for as long as more than `least` is left of one, at most `most`."""
    picks: list[int] = []
    basis = rows.new_empty(most, rows.shape[1])  # of the span of the picks
    products = rows.new_empty(len(rows), most)  # of all tokens with the first `known` of the basis
    known, exact = 0, start.clone()  # [N]: what is left without these
    bound = start.clone()  # [N]: at least what is left now; -inf: picked
    few = False
    while (count := len(picks)) < most:
        if count - known >= BEHIND or (few and count > known):
            products[:, known:count] = rows @ basis[known:count].mT
            exact -= products[:, known:count].square().sum(dim=1)
            torch.minimum(bound, exact.clamp_min_(0.0), out=bound)
            known = count
        pool, rival = _in_the_running(bound, POOL)
        own, inside = rows[pool], products[pool, :count]
        inside[:, known:] = own @ basis[known:count].mT
        now = (exact[pool] - inside[:, known:].square().sum(dim=1)).clamp_min_(0.0)
        now = torch.minimum(now, bound[pool])  # -inf stays
        if not torch.maximum(now.max(), now.new_tensor(rival[0])) > least:
            break
        places, factor = _pick(now, pool.tolist(), own, inside, rival, most - count, least)
        bound[pool] = now
        few = len(places) < FEW
        if places:
            picks += pool[places].tolist()
            outside = torch.addmm(own[places], inside[places], basis[:count], alpha=-1.0)
            outside -= (outside @ basis[:count].mT) @ basis[:count]  # what rounding left
            basis[count : len(picks)] = torch.linalg.solve_triangular(factor, outside, upper=False)
    return picks


def _in_the_running(bound: Tensor, size: int) -> tuple[Tensor, tuple[float, int]]:
    """Tokens with the largest `bound`, by index, and of the best of all others: (bound, index)."""
    if size >= len(bound):
        return torch.arange(len(bound)), (-torch.inf, len(bound))
    order = bound.argsort(descending=True, stable=True)
    return order[:size].sort().values, (float(bound[order[size]]), int(order[size]))


def _pick(
    now: Tensor, tokens: list[int], own: Tensor, inside: Tensor, rival: tuple[float, int], most: int, least: float
) -> tuple[list[int], Tensor]:
    """Pick within a pool for as long as no token outside, whose bound is the `rival`, could come first.

    Args:
        now: [M], what is left of the pool's tokens; brought up to date in place.
        tokens: their indices, ascending.
        own: [M, D], their rows.
        inside: [M, P], products of these with the basis of the span of the picks before.
        rival: (left, index) that comes first outside.
        most: picks at most.
        least: what has to be left, and more.

    Returns:
        Places of the picks in the pool, in order, and the lower factor [p, p] of the products of what is left of them.
    """
    places: list[int] = []
    explained = own.new_empty(min(most, len(own)), len(own))
    while len(places) < len(explained):
        place = int(now.argmax())
        left = float(now[place])
        if left <= least or (-left, tokens[place]) >= (-rival[0], rival[1]):
            break
        before = explained[: len(places)]
        new = torch.addmv(torch.mv(own, own[place]), inside, inside[place], alpha=-1.0)
        new = torch.addmv(new, before.mT, before[:, place], alpha=-1.0).div_(left**0.5)
        new[place] = left**0.5
        explained[len(places)] = new
        places.append(place)
        torch.sub(now, new * new, out=now).clamp_min_(0.0)
        now[places] = -torch.inf
    return places, explained[: len(places), places].mT.tril()
