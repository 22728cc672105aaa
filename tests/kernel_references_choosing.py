"""What the operations that cover, span or cluster have to give, in float64; see `kernel_references` for the others."""

import math

import torch
from kernel_references import UNIT, directions, rounding
from torch import Tensor

# ---------------------------------------------------------------- facility_location, coverage


def check_cover(
    values: Tensor,
    picks: Tensor,
    weight: Tensor | None,
    combine: str,
    tolerance: float,
    off: float = 0.0,
) -> None:
    """Assert that each of `picks` [k] added most to what those before cover, up to rounding, in one image [U, N].

    A gain in float32 is off by what its sum rounds, and by `off` where the values are; `tolerance` may fall within.
    """
    values = torch.where(values.isfinite() & (values > 0), values, 0.0).double()
    weight = torch.ones_like(values[0]) if weight is None else weight.double()
    order, covered = picks.tolist(), values.new_zeros(len(values))
    assert len(set(order)) == len(order) and all(0 <= pick < len(weight) for pick in order), order
    open_ = torch.ones_like(weight, dtype=torch.bool)
    for step, pick in enumerate(order):
        gain = torch.cat([(part - covered[:, None]).clamp_min(0).sum(dim=0) for part in values.split(1024, dim=1)])
        slack = off + rounding(len(values)) * gain
        bounds = [torch.where(edge > tolerance, edge, 0.0) for edge in (gain - slack, gain + slack)]
        joint = [edge + weight if combine == "sum" else edge * weight for edge in bounds]
        joint = [joint[0] * (1 - 4 * UNIT), joint[1] * (1 + 4 * UNIT)]
        assert open_[pick] and any(_may_be(*level, pick, open_) for level in _levels(joint, bounds, weight, open_)), (
            f"pick {step} is {pick}, which adds {float(gain[pick])!r}; the most is {float(gain[open_].max())!r}"
        )
        open_[pick] = False
        covered = torch.maximum(covered, values[:, pick])


def _levels(joint: list[Tensor], gain: list[Tensor], weight: Tensor, open_: Tensor) -> list[tuple[Tensor, Tensor]]:
    """What may decide, as bounds (low, high) [N]: the first that is above 0 anywhere, or that may be."""
    levels = []
    for low, high in (joint, gain):
        if float(high[open_].max()) > 0:
            levels.append((low, high))
        if float(low[open_].max()) > 0:
            return levels
    return [*levels, (weight, weight)]


def _may_be(low: Tensor, high: Tensor, pick: int, open_: Tensor) -> bool:
    """Whether a pick may have the most; what is exact has to come first."""
    if torch.equal(low, high):
        return pick == int(torch.where(open_, low, -1.0).argmax())
    return bool(high[pick] >= low[open_].max())


# ---------------------------------------------------------------- dpp_map


def check_span(features: Tensor, picks: Tensor, quality: Tensor | None, floor: float) -> None:
    """Assert that each of `picks` [k] pointed farthest out of the span of those before, up to rounding, in one image.

    What is explained of a token is off by what a product rounds, over the length of what was left of the pick, and all
    picks so far add to it.
    """
    unit, known = directions(features)
    quality = torch.ones_like(unit[:, 0]) if quality is None else quality.double()
    rows, order = unit * quality[:, None], picks.tolist()
    assert len(set(order)) == len(order) and all(0 <= pick < len(unit) for pick in order), order
    left, open_ = (quality * quality).masked_fill(~known, 0.0), torch.ones_like(known)
    most, slack, unexplained = float(left.max()), 0.0, rows.clone()
    for step, pick in enumerate(order):
        edges = [left * (1 - 4 * UNIT) - slack, left * (1 + 4 * UNIT) + slack]
        bounds = [torch.where(edge > floor * most, edge, 0.0).masked_fill(~known, 0.0) for edge in edges]
        assert open_[pick] and any(_may_be(*level, pick, open_) for level in _levels(bounds, bounds, quality, open_)), (
            f"pick {step} is {pick}, of which {float(left[pick])!r} is left; the most is {float(left[open_].max())!r}"
        )
        open_[pick] = False
        own = float(left[pick])
        if own > 1e-12 * most:
            slack += 4 * rounding(features.shape[1] + len(order)) * most * math.sqrt(most / own)
            direction = unexplained[pick] / unexplained[pick].norm()
            unexplained = unexplained - (unexplained @ direction)[:, None] * direction
            left = unexplained.square().sum(dim=1)


# ---------------------------------------------------------------- density_peaks


def check_peaks(
    made: tuple[Tensor, Tensor, Tensor],
    x: Tensor,
    count: int,
    most: int,
    neighbours: int,
    valid: Tensor,
    ranked: bool = False,
) -> None:
    """Assert that score [M], centres [C] and membership [M] of one group are right, up to rounding.

    A token may be taken for denser than another where their densities are as good as equal; the order of scores is
    held against the scores that were given. Where densities are `ranked`, of equal tokens all but one score 0.
    """
    score, centres, member_of = made
    x = torch.where(x.isfinite(), x, 0.0).double()
    apart = torch.cat([(part[:, None] - x).square().sum(dim=2) for part in x.split(max(1, 2**22 // x.numel()))])
    apart = (apart / x.shape[1]).sqrt().masked_fill(~(valid[:, None] & valid), torch.inf)
    sum_ = apart.square().sort(dim=1).values[:, : min(neighbours, most)].sum(dim=1) / max(neighbours, 1)
    density, off = torch.exp(-sum_), rounding(x.shape[1] + neighbours)
    slack = density * (sum_.nan_to_num(0.0, 0.0, 0.0) * off + 2.0**-20)
    difference = density - density[:, None]
    edge = slack + slack[:, None]
    largest = apart[apart.isfinite()].max() if bool(valid.any()) else density.new_zeros(())
    self_ = torch.eye(len(x), dtype=torch.bool, device=x.device)
    low, high = (
        apart.masked_fill(~denser | self_, torch.inf).amin(dim=1) for denser in (difference > -edge, difference > edge)
    )
    sure, low, high = high.isfinite(), low.where(low.isfinite(), largest), high.where(high.isfinite(), largest)
    least, most_ = (density - slack) * low * (1 - off), (density + slack) * torch.where(sure, high, largest) * (1 + off)
    inside = (score >= least - 1e-30) & (score <= most_ + 1e-30)
    assert bool(torch.where(valid, inside, score == -torch.inf).all())
    if ranked:
        one, other = ((apart == 0) & ~self_).nonzero().unbind(dim=1)
        assert not score[one].minimum(score[other]).any()
    assert torch.equal(centres, score.argsort(descending=True, stable=True)[: min(most, len(x))])
    used = centres[:count]
    assert member_of[used].tolist() == list(range(count)) and (member_of[~valid] == min(most, len(x))).all()
    if count:
        joined = apart[:, used]
        mine = joined.gather(1, member_of.clamp(max=count - 1)[:, None])[:, 0]
        fits = (member_of < count) & (mine <= joined.amin(dim=1) * (1 + 2 * off))
        assert bool((fits | ~valid | torch.isin(torch.arange(len(x), device=x.device), used)).all())
