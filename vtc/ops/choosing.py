"""The operations that choose tokens: greedy, each pick the best one given those before.

Each is a custom operator of torch (`torch.ops.vtc.*`), so that torch.compile traces through it. On a GPU it runs the
kernels of `vtc.cuda` where these can be had, anywhere else the torch references of `vtc.ops.reference`. Equal tokens:
lowest index. A smaller k gives a prefix.
"""

import torch
from torch import Tensor

from vtc.ops import reference
from vtc.ops.checks import INDEX, check_dtype, check_shape, shape_of
from vtc.ops.dispatch import operator_for, register

_RULES = ("max-min", "max-sum")
_COMBINATIONS = ("product", "sum")


# ---------------------------------------------------------------- greedy diversity


@torch.no_grad()
def max_min(
    features: Tensor, k: int, seed: Tensor | None = None, rule: str = "max-min", counts: Tensor | None = None
) -> Tensor:
    """Greedy diversity order under cosine distance, for G images at once.

    Each step picks the token that lies farthest from those picked before. How far a token is: "max-min" (greedy
    k-center): the distance to its nearest pick; "max-sum": the sum of its distances to all picks. Equal distances:
    lowest index. A smaller k gives a prefix. Rows that have no direction (zero, NaN, Inf) come last.

    Args:
        features: [G, N, D]; half precision is computed in float32.
        k: picks per image, 1 <= k <= N.
        seed: LongTensor or IntTensor [G], the first picks, in 0…N-1; None: the token whose nearest other token is
            farthest away.
        rule: "max-min" or "max-sum".
        counts: LongTensor or IntTensor [G], each at least 1: an image's tokens, where those behind are padding; None:
            all are tokens.

    Returns:
        LongTensor [G, k] in pick order, no duplicates; -1 where an image has no more tokens.

    Raises:
        ValueError: k or rule out of range, shapes that do not fit.
        TypeError: seed or counts of another dtype.
    """
    images, tokens, _ = shape_of("features", features, "G", "N", "D")
    _check_picks(k, tokens)
    if rule not in _RULES:
        raise ValueError(f"rule={rule!r} is not one of 'max-min', 'max-sum'")
    for name, value in (("seed", seed), ("counts", counts)):
        if value is not None:
            check_shape(name, value, (images,))
            check_dtype(name, value, INDEX)
    return (operator_for("max_min", features) or reference.max_min)(features, k, seed, rule, counts)


@torch.library.custom_op("vtc::max_min", mutates_args=())
def _max_min(features: Tensor, k: int, seed: Tensor | None, rule: str, counts: Tensor | None) -> Tensor:
    return reference.max_min(features, k, seed, rule, counts)


@_max_min.register_fake
def _(features: Tensor, k: int, seed: Tensor | None, rule: str, counts: Tensor | None) -> Tensor:
    return features.new_empty(features.shape[0], k, dtype=torch.int64)


@torch.no_grad()
def weighted_max_min(
    features: Tensor, k: int, seed: Tensor, weight: Tensor | None = None, bonus: Tensor | None = None
) -> Tensor:
    """`max_min` from a first pick on, where a token's distance to its nearest pick is not all that it is worth.

    Each step picks the token with the largest weight · (1 - similarity to the nearest pick) + bonus, similarity being
    cosine: with a bonus this is maximal marginal relevance (Carbonell and Goldstein, 1998). Rows that have no direction
    are like nothing.

    Args:
        features: [G, N, D]; half precision is computed in float32.
        k: picks per image, 1 <= k <= N.
        seed: LongTensor or IntTensor [G], the first picks, in 0…N-1.
        weight: [G, N]; None: 1.
        bonus: [G, N]; None: 0.

    Returns:
        LongTensor [G, k] in pick order, no duplicates.

    Raises:
        ValueError: k out of range, shapes that do not fit.
        TypeError: seed of another dtype.
    """
    images, tokens, _ = shape_of("features", features, "G", "N", "D")
    _check_picks(k, tokens)
    check_shape("seed", seed, (images,))
    check_dtype("seed", seed, INDEX)
    for name, value in (("weight", weight), ("bonus", bonus)):
        if value is not None:
            check_shape(name, value, (images, tokens))
    operation = operator_for("weighted_max_min", features) or reference.weighted_max_min
    return operation(features, k, seed, weight, bonus)


@torch.library.custom_op("vtc::weighted_max_min", mutates_args=())
def _weighted_max_min(features: Tensor, k: int, seed: Tensor, weight: Tensor | None, bonus: Tensor | None) -> Tensor:
    return reference.weighted_max_min(features, k, seed, weight, bonus)


@_weighted_max_min.register_fake
def _(features: Tensor, k: int, seed: Tensor, weight: Tensor | None, bonus: Tensor | None) -> Tensor:
    return features.new_empty(features.shape[0], k, dtype=torch.int64)


# ---------------------------------------------------------------- greedy cover


@torch.no_grad()
def facility_location(
    values: Tensor, k: int, weight: Tensor | None = None, combine: str = "product", tolerance: float = 0.0
) -> Tensor:
    """Greedy cover of demands (facility location; Nemhauser et al., 1978), for G images at once.

    How well a demand is covered is the largest value that it has with a pick, and 0 at first. Each step picks the token
    that adds most: its gain is the sum over all demands of what it would cover beyond that, times its weight or plus
    it. Where no product is above 0, gains alone decide, and where none is, weights alone.

    Args:
        values: [G, U, N], of each demand with each token; half precision is computed in float32; what is below 0, NaN
            or Inf counts as 0.
        k: picks per image, 1 <= k <= N.
        weight: [G, N], at least 0; None: 1.
        combine: "product" or "sum" of gain and weight.
        tolerance: gains up to that count as 0: what rounding leaves where all is covered.

    Returns:
        LongTensor [G, k] in pick order, no duplicates.

    Raises:
        ValueError: k or combine out of range, shapes that do not fit.
    """
    images, _, tokens = shape_of("values", values, "G", "U", "N")
    _check_picks(k, tokens)
    _check_combination(combine)
    if weight is not None:
        check_shape("weight", weight, (images, tokens))
    return (operator_for("facility_location", values) or reference.facility_location)(
        values, k, weight, combine, float(tolerance)
    )


@torch.library.custom_op("vtc::facility_location", mutates_args=())
def _facility_location(values: Tensor, k: int, weight: Tensor | None, combine: str, tolerance: float) -> Tensor:
    return reference.facility_location(values, k, weight, combine, tolerance)


@_facility_location.register_fake
def _(values: Tensor, k: int, weight: Tensor | None, combine: str, tolerance: float) -> Tensor:
    return values.new_empty(values.shape[0], k, dtype=torch.int64)


@torch.no_grad()
def coverage(features: Tensor, k: int, weight: Tensor | None = None, combine: str = "product") -> Tensor:
    """Greedy cover of an image by its own tokens: `facility_location` of their cosine similarities.

    Args:
        features: [G, N, D]; half precision is computed in float32. Rows that have no direction are like nothing.
        k: picks per image, 1 <= k <= N.
        weight: [G, N], at least 0; None: 1.
        combine: "product" or "sum" of gain and weight.

    Returns:
        LongTensor [G, k] in pick order, no duplicates.

    Raises:
        ValueError: k or combine out of range, shapes that do not fit.
    """
    images, tokens, _ = shape_of("features", features, "G", "N", "D")
    _check_picks(k, tokens)
    _check_combination(combine)
    if weight is not None:
        check_shape("weight", weight, (images, tokens))
    return (operator_for("coverage", features) or reference.coverage)(features, k, weight, combine)


@torch.library.custom_op("vtc::coverage", mutates_args=())
def _coverage(features: Tensor, k: int, weight: Tensor | None, combine: str) -> Tensor:
    return reference.coverage(features, k, weight, combine)


@_coverage.register_fake
def _(features: Tensor, k: int, weight: Tensor | None, combine: str) -> Tensor:
    return features.new_empty(features.shape[0], k, dtype=torch.int64)


# ---------------------------------------------------------------- greedy determinant


@torch.no_grad()
def dpp_map(features: Tensor, k: int, quality: Tensor | None = None, floor: float = 1e-6) -> Tensor:
    """Greedy maximum of det L over k tokens, for G images at once, with L = diag(q) S diag(q), S cosine similarities.

    The most probable set of a determinantal point process (Chen et al., 2018): each step picks the token whose row of
    length q points farthest out of the span of those picked before. Where that is no more than `floor` of the largest
    at the start, squared, quality alone decides.

    Args:
        features: [G, N, D]; half precision is computed in float32. Rows that have no direction are in every span.
        k: picks per image, 1 <= k <= N.
        quality: q [G, N], at least 0; None: 1.
        floor: share of the largest squared quality, up to which nothing counts as left.

    Returns:
        LongTensor [G, k] in pick order, no duplicates.

    Raises:
        ValueError: k out of range, shapes that do not fit.
    """
    images, tokens, _ = shape_of("features", features, "G", "N", "D")
    _check_picks(k, tokens)
    if quality is not None:
        check_shape("quality", quality, (images, tokens))
    return (operator_for("dpp_map", features) or reference.dpp_map)(features, k, quality, float(floor))


@torch.library.custom_op("vtc::dpp_map", mutates_args=())
def _dpp_map(features: Tensor, k: int, quality: Tensor | None, floor: float) -> Tensor:
    return reference.dpp_map(features, k, quality, floor)


@_dpp_map.register_fake
def _(features: Tensor, k: int, quality: Tensor | None, floor: float) -> Tensor:
    return features.new_empty(features.shape[0], k, dtype=torch.int64)


def _check_picks(k: int, tokens: int) -> None:
    if not 1 <= k <= tokens:
        raise ValueError(f"k={k} is not in 1…{tokens}, the tokens present")


def _check_combination(combine: str) -> None:
    if combine not in _COMBINATIONS:
        raise ValueError(f"combine={combine!r} is not one of 'product', 'sum'")


register("max_min", _max_min)
register("weighted_max_min", _weighted_max_min)
register("facility_location", _facility_location)
register("coverage", _coverage)
register("dpp_map", _dpp_map)
