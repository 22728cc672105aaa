"""The operations of `vtc.ops` in plain torch: on any device, what the kernels are held against.

More than 300 lines: one function for each operation, in one place since each stands for the others' measure.
"""

import functools

import torch
from torch import Tensor

from vtc.cuda.arguments import AttentionArguments
from vtc.cuda.directions import unit_rows
from vtc.ops.greedy.coverage import cover, cover_themselves
from vtc.ops.greedy.determinant import determinant_first
from vtc.ops.greedy.farthest import farthest_first
from vtc.ops.greedy.peaks import density_peaks as density_peaks
from vtc.ops.similarity import as_float

#: From so many tokens on, of which at most a quarter are picked, a CPU computes a part of the similarities only.
MANY = 2048
#: Up to this many entries (of float32: 256 MiB) all pairwise similarities are kept; beyond, each pick computes its row.
MATRIX_ENTRIES = 2**26
#: From so many values, or tokens, of an image on, a CPU computes those gains, similarities or products that it needs.
COVER_VALUES = 2**19
COVER_TOKENS = 8193
SPAN_TOKENS = 2048
_CHUNK = 512
#: Attention probabilities (of float32: 16 MiB) and queries that are worked through at once: what a CPU's cache holds.
_ENTRIES = 2**22
_QUERIES = 64
#: Numbers (of float32: 1 MiB) of old tokens that are added up at once on a CPU.
_ADDED = 2**18
_LOST = 1e30


# ---------------------------------------------------------------- compact


def compact(tensors: list[Tensor], index: Tensor, valid: Tensor | None) -> list[Tensor]:
    """Gather rows; arguments as `vtc.ops.compact`."""
    batch, count = index.shape
    row = torch.arange(batch, device=index.device)[:, None]
    taken = []
    for tensor in tensors:
        place = index if len(tensor) == 1 else index + row * tensor.shape[1]  # int64, as row is
        new = tensor.flatten(0, 1).index_select(0, place.flatten()).view(batch, count, *tensor.shape[2:])
        if valid is not None:
            new = new.masked_fill(~valid.view(batch, count, *[1] * (new.dim() - 2)), 0)
        taken.append(new)
    return taken


# ---------------------------------------------------------------- greedy diversity


@torch.no_grad()
def max_min(features: Tensor, k: int, seed: Tensor | None, rule: str, counts: Tensor | None) -> Tensor:
    """Greedy diversity order; arguments as `vtc.ops.max_min`."""
    images, tokens, _ = features.shape
    unit, lost = unit_rows(features)
    behind = None
    if counts is not None:  # what is behind an image's tokens comes after its last, so that its picks can be cut off
        behind = torch.arange(tokens, device=counts.device) >= counts[:, None]
        unit, lost = unit.masked_fill(behind[:, :, None], 0.0), lost | behind
    fits = images * tokens * tokens <= MATRIX_ENTRIES
    if images > 1 and not fits:
        seeds = [None] * images if seed is None else seed.split(1)
        sizes = [None] * images if counts is None else counts.split(1)
        parts = zip(features.split(1), seeds, sizes, strict=True)
        return torch.cat([max_min(one, k, first, rule, size) for one, first, size in parts])
    # `near` [G, N] is how close a token is to the picks; the smallest is next, a picked one is at +inf.
    near = unit.new_full((images, tokens), 0.0 if rule == "max-sum" else -torch.inf).masked_fill_(lost, _LOST)
    if behind is not None:
        near.masked_fill_(behind, 2 * _LOST)
    if rule == "max-min" and unit.device.type == "cpu" and tokens >= max(MANY, 4 * k):
        return _from_a_part(unit, near, k, seed, counts)
    join = torch.add if rule == "max-sum" else torch.maximum
    if fits and (seed is None or images > 1 or 3 * k >= tokens):
        similarity = _gram(unit)
        if seed is None:
            similarity.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
            others = similarity if behind is None else similarity.masked_fill(behind[:, None], -torch.inf)
            seed = _first(others.amax(dim=-1), near)
        similarity.diagonal(dim1=1, dim2=2).fill_(torch.inf)  # so that a pick takes itself out
        picks = _greedy_from_matrix(similarity, near, k, seed, join)
    else:
        seed = _first(nearest_other(unit, behind), near) if seed is None else seed
        picks = _greedy_from_rows(unit, near, k, seed, join)
    if counts is None:
        return picks
    return picks.masked_fill_(torch.arange(k, device=picks.device) >= counts[:, None], -1)


def _from_a_part(unit: Tensor, near: Tensor, k: int, seed: Tensor | None, counts: Tensor | None) -> Tensor:
    """`farthest_first` of each image, of its own tokens."""
    picks = torch.full((len(unit), k), -1)
    for image, (rows, start) in enumerate(zip(unit, near)):
        size = len(rows) if counts is None else int(counts[image])
        first = None if seed is None else int(seed[image])
        found = farthest_first(rows[:size], start[:size], min(k, size), first)
        picks[image, : len(found)] = found
    return picks


def _first(nearest: Tensor, near: Tensor) -> Tensor:
    """The token [G] whose nearest other token is farthest away, among those that have a direction."""
    return torch.where(near >= _LOST, near, nearest).argmin(dim=-1)


def _gram(unit: Tensor, parts: int = 5) -> Tensor:
    """All products of rows [G, N, D], of which half are computed and half mirrored: [G, N, N]."""
    images, tokens, _ = unit.shape
    if tokens < _CHUNK:
        return unit @ unit.transpose(1, 2)
    products, size = unit.new_empty(images, tokens, tokens), -(-tokens // parts)
    for start in range(0, tokens, size):
        stop = min(start + size, tokens)
        block = unit[:, start:stop] @ unit[:, start:].transpose(1, 2)
        products[:, start:stop, start:] = block
        products[:, stop:, start:stop] = block[:, :, stop - start :].transpose(1, 2)
    return products


def nearest_other(unit: Tensor, behind: Tensor | None = None) -> Tensor:
    """Similarity [G, N] of each row to the most similar other one, but those `behind` [G, N], in parts."""
    best = []
    for start in range(0, unit.shape[1], _CHUNK):
        block = unit[:, start : start + _CHUNK] @ unit.transpose(1, 2)
        block.diagonal(offset=start, dim1=1, dim2=2).fill_(-torch.inf)
        if behind is not None:
            block.masked_fill_(behind[:, None], -torch.inf)
        best.append(block.amax(dim=-1))
    return torch.cat(best, dim=1)


def _greedy_from_matrix(similarity: Tensor, near: Tensor, k: int, seed: Tensor, join) -> Tensor:
    images, tokens = near.shape
    rows = similarity.view(images * tokens, tokens)
    first_row = torch.arange(0, images * tokens, tokens, device=near.device)
    picks = first_row.new_empty(k, images)
    picks[0] = seed
    for i in range(1, k):
        join(near, rows.index_select(0, picks[i - 1] + first_row), out=near)
        torch.argmin(near, dim=1, out=picks[i])
    return picks.t().contiguous()


def _greedy_from_rows(unit: Tensor, near: Tensor, k: int, seed: Tensor, join) -> Tensor:
    images, tokens, dim = unit.shape
    rows = unit.view(images * tokens, dim)
    first_row = torch.arange(0, images * tokens, tokens, device=near.device)
    picks = first_row.new_empty(k, images)
    picks[0] = seed
    for i in range(1, k):
        newest = rows.index_select(0, picks[i - 1] + first_row)
        join(near, torch.bmm(unit, newest[:, :, None])[:, :, 0], out=near)
        near.scatter_(1, picks[i - 1, :, None], torch.inf)
        torch.argmin(near, dim=1, out=picks[i])
    return picks.t().contiguous()


@torch.no_grad()
def weighted_max_min(features: Tensor, k: int, seed: Tensor, weight: Tensor | None, bonus: Tensor | None) -> Tensor:
    """Greedy diversity of tokens that are worth more or less; arguments as `vtc.ops.weighted_max_min`."""
    images, tokens, _ = features.shape
    unit, _ = unit_rows(features)
    fits = images * tokens * tokens <= MATRIX_ENTRIES and 3 * k >= tokens / 4
    rows = (_gram(unit) if fits else unit).flatten(0, 1)
    weight, bonus = (None if value is None else as_float(value).to(unit.dtype) for value in (weight, bonus))
    first_row = torch.arange(0, images * tokens, tokens, device=unit.device)
    near = unit.new_full((images, tokens), -torch.inf)
    picks = first_row.new_empty(k, images)
    picks[0] = seed
    for i in range(1, k):
        newest = rows.index_select(0, picks[i - 1] + first_row)
        torch.maximum(near, newest if fits else torch.bmm(unit, newest[:, :, None])[:, :, 0], out=near)
        worth = 1 - near
        if weight is not None:
            worth *= weight
        if bonus is not None:
            worth += bonus
        torch.argmax(worth.scatter_(1, picks[:i].t(), -torch.inf), dim=1, out=picks[i])
    return picks.t().contiguous()


def facility_location(values: Tensor, k: int, weight: Tensor | None, combine: str, tolerance: float) -> Tensor:
    """Greedy cover of demands; arguments as `vtc.ops.facility_location`."""
    images, demands, tokens = values.shape
    if values.device.type == "cpu" and demands * tokens >= COVER_VALUES:
        weights = [None] * images if weight is None else as_float(weight)
        parts = [cover(as_float(one), k, w, combine, tolerance) for one, w in zip(values, weights, strict=True)]
        return torch.stack(parts)
    values = as_float(values)
    weight = values.new_ones(images, tokens) if weight is None else as_float(weight).to(values.dtype)
    covered = values.new_zeros(images, values.shape[1], 1)
    chosen = torch.zeros(images, tokens, dtype=torch.bool, device=values.device)
    picks = torch.empty(images, k, dtype=torch.int64, device=values.device)
    for i in range(k):
        gain = (values - covered).clamp_min_(0.0).sum(dim=1)
        gain = gain.masked_fill(gain <= tolerance, 0.0)
        worth = gain + weight if combine == "sum" else gain * weight
        pick = _first_that_tells(chosen, worth, gain, weight)
        chosen.scatter_(1, pick, True)
        picks[:, i : i + 1] = pick
        column = values.gather(2, pick[:, :, None].expand(-1, values.shape[1], 1))
        covered = torch.maximum(covered, column)
    return picks


@torch.autocast("cpu", enabled=False)  # what is said to be in float32 is
def coverage(features: Tensor, k: int, weight: Tensor | None, combine: str) -> Tensor:
    """Greedy cover of tokens by themselves; arguments as `vtc.ops.coverage`."""
    images, tokens, _ = features.shape
    unit, _ = unit_rows(features)
    tolerance = tokens * torch.finfo(unit.dtype).eps
    if unit.device.type == "cpu" and tokens >= COVER_TOKENS:
        weights = [None] * images if weight is None else as_float(weight)
        parts = [cover_themselves(one, k, w, combine, tolerance) for one, w in zip(unit, weights, strict=True)]
        return torch.stack(parts)
    size = max(1, MATRIX_ENTRIES // tokens**2)
    weights = [None] * -(-images // size) if weight is None else weight.split(size)
    pairs = zip(unit.split(size), weights, strict=True)
    return torch.cat([facility_location(_gram(some), k, w, combine, tolerance) for some, w in pairs])


@torch.autocast("cpu", enabled=False)  # what is said to be in float32 is
def dpp_map(features: Tensor, k: int, quality: Tensor | None, floor: float) -> Tensor:
    """Greedy MAP of a determinantal point process; arguments as `vtc.ops.dpp_map`."""
    images, tokens, _ = features.shape
    unit, lost = unit_rows(features)
    quality = unit.new_ones(images, tokens) if quality is None else as_float(quality).to(unit.dtype)
    rows = unit * quality[:, :, None]
    left = (quality * quality).masked_fill(lost, 0.0)  # what no pick explains of each token, squared
    if rows.device.type == "cpu" and tokens >= SPAN_TOKENS:
        return torch.stack([determinant_first(*one, k, floor) for one in zip(rows, left, quality, strict=True)])
    least = floor * left.amax(dim=1, keepdim=True)
    chosen = torch.zeros(images, tokens, dtype=torch.bool, device=rows.device)
    picks = torch.empty(images, k, dtype=torch.int64, device=rows.device)
    explained = rows.new_zeros(images, k, tokens)
    for i in range(k):
        left = left.masked_fill(left <= least, 0.0)
        pick = _first_that_tells(chosen, left, quality)
        own = left.gather(1, pick)
        chosen.scatter_(1, pick, True)
        picks[:, i : i + 1] = pick
        newest = rows.gather(1, pick[:, :, None].expand(-1, 1, rows.shape[2]))
        before = explained[:, :i].gather(2, pick[:, None].expand(-1, i, 1))
        new = (newest @ rows.mT - before.mT @ explained[:, :i])[:, 0] / own.sqrt().clamp_min(1e-30)
        new = new.masked_fill(own == 0, 0.0)
        explained[:, i] = new
        left = (left - new * new).clamp_min_(0.0)
    return picks


def _first_that_tells(chosen: Tensor, *scores: Tensor) -> Tensor:
    """The best token [G, 1] that is not `chosen`, by the first of the scores that is above 0 in any; lowest index."""
    best = scores[-1].masked_fill(chosen, -torch.inf)
    for score in reversed(scores[:-1]):
        score = score.masked_fill(chosen, -torch.inf)
        best = torch.where(score.amax(dim=1, keepdim=True) > 0, score, best)
    return best.argmax(dim=1, keepdim=True)


# ---------------------------------------------------------------- attention


def attention_rows(arguments: AttentionArguments) -> Tensor:
    """Rows of softmax(Q Kᵀ); see `vtc.ops.attention_rows`."""
    query, key, scaling, mask, begin, end, softcap = arguments
    batch, heads, rows, dim = query.shape
    groups, keys = key.shape[1:3]
    grouped = query.float().reshape(batch, groups, heads // groups * rows, dim)
    logits = (grouped @ key.float().transpose(-1, -2) * scaling).reshape(batch, heads, rows, keys)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if mask is not None and mask.dtype != torch.bool:
        logits, mask = logits + mask.float(), None
    place = torch.arange(keys, device=key.device)
    unseen = [] if mask is None else [~mask]
    if begin is not None:
        unseen.append((place < begin[:, :, None])[:, None])
    if end is not None:
        unseen.append((place >= end[:, :, None])[:, None])
    if unseen:
        logits = logits.masked_fill(functools.reduce(torch.logical_or, unseen), -torch.inf)
    return torch.softmax(logits, dim=-1).nan_to_num(0.0)


def attention_received(arguments: AttentionArguments, weights: Tensor | None) -> Tensor:
    """Weighted column sums of softmax(Q Kᵀ); see `vtc.ops.attention_received`."""
    query, key = arguments.query, arguments.key
    batch, heads, queries, _ = query.shape
    keys = key.shape[2]
    size = max(1, _ENTRIES // max(heads * min(queries, _QUERIES) * keys, 1))
    received = []
    for first in range(0, batch, size):
        some = slice(first, first + size)
        total = torch.zeros(len(query[some]), keys, device=key.device)
        for start in range(0, queries, _QUERIES):
            asking = slice(start, start + _QUERIES)
            rows = attention_rows(arguments.part(some, asking))
            if weights is None:
                total += rows.sum(dim=(1, 2))
            else:
                total += (weights[some, None, None, asking].float() @ rows).sum(dim=(1, 2))
        received.append(total / (heads if weights is not None else heads * max(queries, 1)))
    return torch.cat(received)


# ---------------------------------------------------------------- merge


def merge(x: Tensor, source: Tensor, target: Tensor, weight: Tensor, k: int) -> Tensor:
    """New tokens = W · old tokens; arguments as `vtc.ops.merge`, W by its entries."""
    images, tokens, dim = x.shape
    exact = torch.promote_types(x.dtype, torch.float32)
    image = torch.arange(images, device=x.device)[:, None]
    old, new = (source + image * tokens).flatten(), (target + image * k).flatten()
    rows, factor = x.flatten(0, 1), weight.flatten()[:, None].to(exact)
    merged = torch.zeros(images * k, dim, dtype=exact, device=x.device)
    size = max(1, _ADDED // max(dim, 1) if x.device.type == "cpu" else len(old))
    for start in range(0, len(old), size):
        some = slice(start, start + size)
        merged.index_add_(0, new[some], rows.index_select(0, old[some]).to(exact) * factor[some])
    return merged.view(images, k, dim).to(x.dtype)
