"""What the operations of `vtc.ops` have to give, in float64, and how far float32 may stray from it.

Written from the operations' docstrings alone, in the plainest way that ends at 65,536 tokens. Inputs in half precision
are exact in float64, so that all that is allowed is what float32 rounds on the way.

The errors of n additions, each by at most u = 2⁻²⁴ of its result, add up like a walk: to about √n·u of the sum of the
absolute values, where n·u is the worst (Higham and Mary, SIAM J. Sci. Comput. 41, 2019). Eight times √n·u is allowed.
"""

import itertools
import math

import torch
from torch import Tensor

from vtc.ops import AttentionArguments

UNIT = 2.0**-24
#: Entries of a float64 matrix that are worked on at once (256 MiB).
_ENTRIES = 2**25


def rounding(terms: int) -> float:
    """Relative error that a sum of `terms` numbers in float32 is allowed."""
    return 8 * math.sqrt(max(terms, 1)) * UNIT


def within(made: Tensor, exact: Tensor, allowed: Tensor) -> None:
    """Assert that `made` is where `exact` is, up to `allowed`; NaN is nowhere."""
    assert made.shape == exact.shape
    off = (made.double() - exact).abs()
    bad = ~(off <= allowed)
    if bad.any():
        place = torch.where(bad, off / allowed, 0.0).nan_to_num(torch.inf).flatten().argmax()
        values = [float(tensor.flatten()[place]) for tensor in (made, exact, allowed)]
        worst = "{!r} for {!r} ± {:.1e}".format(*values)
        raise AssertionError(f"{int(bad.sum())} of {bad.numel()} entries are off, at worst {worst}")


# ---------------------------------------------------------------- compact


def compact(tensors: list[Tensor], index: Tensor, valid: Tensor | None) -> list[Tensor]:
    """Row by row."""
    made = []
    for tensor in tensors:
        new = tensor.new_zeros(*index.shape, *tensor.shape[2:])
        for b, places in enumerate(index):
            seen = torch.ones_like(places, dtype=torch.bool) if valid is None else valid[b]
            new[b, seen] = tensor[b if len(tensor) > 1 else 0][places[seen].long()]
        made.append(new)
    return made


# ---------------------------------------------------------------- max_min


def directions(features: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [N, D] of length 1, and which have a direction; the others are zero, which makes them like nothing."""
    rows = features.double()
    length = rows.square().sum(dim=-1).sqrt()
    known = length.isfinite() & (length > 0)
    return torch.where(known[:, None], rows / length[:, None], 0.0), known


def _nearest(unit: Tensor) -> Tensor:
    """Cosine [N] of each row with the other row that is most like it."""
    count, best = len(unit), []
    for start in range(0, count, step := max(1, _ENTRIES // count)):
        block = unit[start : start + step] @ unit.T
        mine = torch.arange(len(block), device=unit.device)
        block[mine, start + mine] = -torch.inf
        best.append(block.amax(dim=1))
    return torch.cat(best)


def greedy(features: Tensor, k: int, seed: int | None, rule: str) -> tuple[list[int], float]:
    """The greedy order of one image [N, D], and the smallest lead that a pick had over what came next."""
    unit, known = directions(features)
    close = (_nearest(unit) if seed is None else torch.zeros(len(unit), device=unit.device)).masked_fill(~known, 1e30)
    picks, leads = [], []
    while len(picks) < k:
        if picks or seed is None:
            first_two = close.sort(stable=True)  # equal ones in ascending order of their indices
            picks.append(int(first_two.indices[0]))
            leads += (first_two.values[1:2] - first_two.values[:1]).tolist()
        else:
            picks.append(seed)
        cosine = unit @ unit[picks[-1]]
        if len(picks) == 1:
            close = cosine.masked_fill(~known, 1e30)
        else:
            close = close + cosine if rule == "max-sum" else torch.maximum(close, cosine)
        close[picks] = torch.inf
    return picks, min(leads, default=math.inf)


def check_greedy(features: Tensor, picks: Tensor, seed: int | None, rule: str) -> None:
    """Assert that each of `picks` [k] lay farthest from those before, up to rounding, in one image [N, D]."""
    unit, known = directions(features)
    order = picks.tolist()
    assert len(set(order)) == len(order) and all(0 <= pick < len(unit) for pick in order), order
    slack = 2 * rounding(unit.shape[1])  # of two cosines that are compared
    close = torch.zeros(len(unit), dtype=torch.float64, device=unit.device)
    if seed is not None:
        assert order[0] == seed
    elif bool(known.any()):
        nearest = _nearest(unit).masked_fill(~known, torch.inf)
        assert known[order[0]] and nearest[order[0]] <= nearest.min() + slack
    else:
        assert order[0] == 0
    unpicked = torch.ones_like(known)
    for step, (pick, following) in enumerate(itertools.pairwise(order), start=1):
        cosine = unit @ unit[pick]
        close = close + cosine if rule == "max-sum" else cosine if step == 1 else torch.maximum(close, cosine)
        unpicked[pick] = False
        open_ = unpicked & known
        if bool(open_.any()):
            allowed = slack if rule == "max-min" else step * (slack + 2 * rounding(step))
            least = close[open_].min()
            assert open_[following] and close[following] <= least + allowed, (
                f"pick {step} is {following} at {float(close[following])!r}; the farthest is at {float(least)!r}"
            )
        else:  # what has no direction, by its index
            assert following == int(unpicked.nonzero()[0])


def check_weighted(features: Tensor, picks: Tensor, seed: int, weight: Tensor | None, bonus: Tensor | None) -> None:
    """Assert that each of `picks` [k] was worth most given those before, up to rounding, in one image [N, D]."""
    unit, _ = directions(features)
    ones = torch.ones(len(unit), dtype=torch.float64, device=unit.device)
    weight = ones if weight is None else weight.double()
    bonus = 0 * ones if bonus is None else bonus.double()
    order = picks.tolist()
    assert order[0] == seed and len(set(order)) == len(order) and all(0 <= pick < len(unit) for pick in order), order
    close, open_ = -torch.inf * ones, ones.bool()
    for step, pick in enumerate(order):
        if step:
            slack = weight * 2 * rounding(unit.shape[1]) + 8 * UNIT * (weight * (1 - close).abs() + bonus.abs())
            worth = weight * (1 - close) + bonus
            assert open_[pick] and bool(worth[pick] + slack[pick] >= (worth - slack)[open_].max()), (step, pick)
        open_[pick] = False
        close = torch.maximum(close, unit @ unit[pick])


# ---------------------------------------------------------------- attention


def attention(arguments: AttentionArguments) -> tuple[Tensor, Tensor]:
    """Probabilities [B, H, R, S] and the error that each is allowed, in float64.

    To first order the error of a probability, relative to it, is that of its own logit plus that of the denominator:
    the largest of any logit that is seen, and of the sum. A logit is off by what a product of d numbers rounds, and by
    some roundings of itself (scaling, cap, mask, change of base); an exponential by up to 2⁻²⁰.
    """
    query, key, scaling, mask, begin, end, softcap = arguments
    heads, keys, dim = query.shape[1], *key.shape[2:]
    left, right = query.double(), key.double().repeat_interleave(heads // key.shape[1], dim=1).transpose(2, 3)
    logits = left @ right * scaling
    off = rounding(dim) * abs(scaling) * (left.abs() @ right.abs()) + 8 * UNIT * logits.abs()
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
        off = off + 8 * UNIT * softcap
    seen = torch.ones_like(logits, dtype=torch.bool)
    place = torch.arange(keys, device=key.device)
    if begin is not None:
        seen &= (place >= begin[..., None])[:, None]
    if end is not None:
        seen &= (place < end[..., None])[:, None]
    if mask is not None and mask.dtype == torch.bool:
        seen &= mask
    elif mask is not None:
        logits = logits + mask.double()
        off = off + 8 * UNIT * mask.double().abs().nan_to_num(0.0, 0.0, 0.0)
    logits, off = logits.masked_fill(~seen, -torch.inf), off.masked_fill(~seen, 0.0).nan_to_num(0.0, 0.0, 0.0)
    most = logits.amax(dim=-1, keepdim=True)
    powers = torch.exp(logits - most)
    share = (powers / powers.sum(dim=-1, keepdim=True)).nan_to_num(0.0)  # 0 where nothing is seen, or a NaN
    counted = off.masked_fill(logits < most - 100, 0.0)  # less than 1e-43 of the largest: not in the sum
    return share, share * (counted + counted.amax(dim=-1, keepdim=True) + rounding(keys) + 2.0**-20) + 1e-37


def received(arguments: AttentionArguments, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weighted column sums [B, S] of the probabilities, mean over heads, and the error that each is allowed."""
    query, key, scaling, mask, begin, end, softcap = arguments
    batch, heads, queries, _ = query.shape
    keys = key.shape[2]
    total, allowed = (torch.zeros(batch, keys, dtype=torch.float64, device=key.device) for _ in range(2))
    weight = total.new_full((batch, queries), 1 / max(queries, 1)) if weights is None else weights.double()
    for start in range(0, queries, step := max(1, _ENTRIES // max(batch * heads * keys, 1))):
        some = slice(start, start + step)
        part = None if mask is None else mask if mask.shape[2] == 1 else mask[:, :, some]
        bounds = (None if bound is None else bound[:, some] for bound in (begin, end))
        share, off = attention(AttentionArguments(query[:, :, some], key, scaling, part, *bounds, softcap))
        by = weight[:, None, some, None]
        total += (share * by).sum(dim=(1, 2)) / heads
        allowed += ((off + rounding(heads * queries) * share) * by.abs()).sum(dim=(1, 2)) / heads
    return total, allowed + 1e-37


# ---------------------------------------------------------------- merge


def merge(x: Tensor, source: Tensor, target: Tensor, weight: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """W · x [G, k, D] by a dense W, and the error that each number is allowed, the last rounding included."""
    images, tokens, _ = x.shape
    mixing, size = (torch.zeros(images, k, tokens, dtype=torch.float64, device=x.device) for _ in range(2))
    image = torch.arange(images, device=x.device)[:, None].expand_as(source)
    at = image.reshape(-1), target.reshape(-1).long(), source.reshape(-1).long()
    mixing.index_put_(at, weight.reshape(-1).double(), accumulate=True)
    size.index_put_(at, weight.reshape(-1).double().abs(), accumulate=True)
    exact = mixing @ x.double()
    kind = torch.finfo(x.dtype)
    last = kind.eps / 2 * exact.abs() + kind.smallest_normal * kind.eps
    return exact, last + rounding(source.shape[1] + 2) * (size @ x.double().abs())
