"""Greedy cover on a CPU: the picks that all gains would give, from those few that have to be known.

A token's gain only falls as picks are added (it is submodular), so what it was bounds what it is, and a pick is certain
once the largest bound is that of a gain of now (lazy evaluation; Minoux 1978). Gains are sums of the same terms in the
same order whenever they are computed, so that the bound holds for rounded numbers too where values are kept.
"""

from collections.abc import Callable

import torch
from torch import Tensor

#: Tokens whose gains are computed at once, at first; twice as many each time that this was not enough for a pick, up to
#: MOST or so many numbers (of float32: 1 MiB) as stay in a cache.
BLOCK = 8
MOST = 256
_NUMBERS = 2**18
#: Numbers (of float32: 128 MiB) of computed similarities that are kept for when the same tokens are asked for again.
KEPT = 2**25

#: From indices [M] to rows [M, U]: what each of these tokens has for each demand.
Rows = Callable[[Tensor], Tensor]


def cover(values: Tensor, k: int, weight: Tensor | None, combine: str, tolerance: float) -> Tensor:
    """Picks of one image, each the token that adds most to what those before cover; equal ones: lowest index.

    Args:
        values: [U, N], of each demand with each token; finite.
        k: picks, 1 <= k <= N.
        weight: [N], at least 0; None: 1.
        combine: "product" or "sum" of gain and weight.
        tolerance: gains up to that count as 0.

    Returns:
        LongTensor [k], in pick order.
    """
    rows = values.mT.contiguous()
    covered = rows.new_zeros(rows.shape[1])
    bound = torch.cat([_gains(part, covered) for part in rows.split(_at_once(covered))])
    return _lazily(lambda index: rows.index_select(0, index), covered, bound, k, weight, combine, tolerance)


def cover_themselves(unit: Tensor, k: int, weight: Tensor | None, combine: str, tolerance: float) -> Tensor:
    """`cover` of tokens by their own cosine similarities, of which no more than O(N · MOST) are kept.

    Args:
        unit: [N, D], rows of length 1 or 0.
        k: picks, 1 <= k <= N.
        weight: [N], at least 0; None: 1.
        combine: "product" or "sum" of gain and weight.
        tolerance: gains up to that count as 0.

    Returns:
        LongTensor [k], in pick order.
    """
    covered = unit.new_zeros(len(unit))
    return _lazily(_Similarities(unit), covered, first_bound(unit), k, weight, combine, tolerance)


def first_bound(unit: Tensor) -> Tensor:
    """At least the sum [N] of what is above 0 of each token's similarities, without these.

    Of x_v with all x_u it is half the sum of s and of |s|; the latter is at most √(N Σ s²) by Cauchy and Schwarz.

    Args:
        unit: [N, D], rows of length 1 or 0.
    """
    tokens, dim = unit.shape
    total = unit @ unit.sum(dim=0)
    squares = (unit @ (unit.mT @ unit)).mul_(unit).sum(dim=1) if dim < tokens else (unit @ unit.mT).square_().sum(dim=1)
    bound = (total + (tokens * squares.clamp_min_(0.0)).sqrt_()) / 2
    return bound + 8 * tokens * torch.finfo(unit.dtype).eps


class _Similarities:
    """Rows of the matrix of similarities, computed when they are asked for.

    Args:
        unit: [N, D], rows of length 1 or 0.
    """

    def __init__(self, unit: Tensor):
        tokens = len(unit)
        places = min(tokens, max(2 * MOST, KEPT // tokens))
        self._unit = unit
        self._rows = unit.new_empty(places, tokens)
        self._place = torch.full((tokens,), -1)  # of a token's row; -1: not kept
        self._owner = torch.full((places,), -1)  # of a place: its token
        self._asked = torch.full((places,), -1)  # when it was last asked for
        self._time = 0

    def __call__(self, index: Tensor) -> Tensor:
        """Rows [M, N] of M <= MOST tokens; those that were asked for longest ago make room."""
        self._time += 1
        place = self._place[index]
        self._asked[place[place >= 0]] = self._time
        missing = index[place < 0]
        if len(missing):
            room = self._asked.topk(len(missing), largest=False).indices
            gone = self._owner[room]
            self._place[gone[gone >= 0]] = -1
            self._rows[room] = self._unit[missing] @ self._unit.mT
            self._owner[room], self._asked[room], self._place[missing] = missing, self._time, room
        return self._rows.index_select(0, self._place[index])


def _lazily(
    rows: Rows, covered: Tensor, bound: Tensor, k: int, weight: Tensor | None, combine: str, tolerance: float
) -> Tensor:
    """The picks [k] of one image.

    Args:
        rows: of tokens.
        covered: [U] zeros; written to.
        bound: [N], at least each token's first gain; written to.
        k: picks, 1 <= k <= N.
        weight: [N], at least 0; None: 1.
        combine: "product" or "sum" of gain and weight.
        tolerance: gains up to that count as 0.
    """
    weight = torch.ones_like(bound) if weight is None else weight
    chosen = torch.zeros_like(bound, dtype=torch.bool)
    now = torch.full(bound.shape, -1)  # the number of picks that a token's gain is of

    def worth(index: Tensor | slice = slice(None)) -> Tensor:
        gain = bound[index]
        gain = gain.masked_fill(gain <= tolerance, 0.0)
        gain = gain + weight[index] if combine == "sum" else gain * weight[index]
        return gain.masked_fill_(chosen[index], -torch.inf)

    def alone(index: Tensor | slice = slice(None)) -> Tensor:
        gain = bound[index]
        return gain.masked_fill(gain <= tolerance, 0.0).masked_fill_(chosen[index], -torch.inf)

    most = _at_once(covered)
    picks: list[int] = []
    for score_of in (worth, alone):
        score, ahead = score_of(), BLOCK
        while len(picks) < k:
            best = int(score.argmax())
            if score[best] <= 0:
                break  # and none will be again: gains only fall
            if now[best] == len(picks):
                picks.append(best)
                chosen[best] = True
                score[best] = -torch.inf
                ahead = max(BLOCK, ahead // 2)
                torch.maximum(covered, rows(torch.tensor([best]))[0], out=covered)
                continue
            old = score.masked_fill(now == len(picks), -torch.inf)
            index = old.topk(min(ahead, len(old))).indices
            index = index[old[index] > 0]
            bound[index] = _gains(rows(index), covered)
            now[index] = len(picks)
            score[index] = score_of(index)
            ahead = min(2 * ahead, most)
    rest = weight.masked_fill(chosen, -torch.inf).argsort(descending=True, stable=True)
    return torch.cat([torch.tensor(picks, dtype=torch.int64), rest[: k - len(picks)]])


def _gains(rows: Tensor, covered: Tensor) -> Tensor:
    """What rows [M, U] are above `covered` [U], in all: [M]."""
    if len(rows) == 1:  # a sum of its own would be taken in another order
        return _gains(rows.expand(2, -1), covered)[:1]
    return (rows - covered).clamp_min_(0.0).sum(dim=1)


def _at_once(covered: Tensor) -> int:
    """Rows of so many demands [U] that stay in a cache."""
    return min(MOST, max(BLOCK, _NUMBERS // max(len(covered), 1)))
