"""Density-peak clustering of tokens (DPC-KNN): centres are dense and far from anything denser."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vtc.ops import reference
from vtc.ops.checks import check_shape, shape_of
from vtc.ops.dispatch import operator_for, register


@dataclass(frozen=True)
class Clusters:
    """Clusters of M tokens in each of G groups.

    Attributes:
        score: Tensor [G, M]: density times distance, -inf where there is no token.
        centres: LongTensor [G, C]: the tokens with the highest scores, best first; the first of equal ones. Past a
            group's own number they mean nothing.
        member_of: LongTensor [G, M]: the number of the centre that each token joins; C where there is no token.
    """

    score: Tensor
    centres: Tensor
    member_of: Tensor


@torch.no_grad()
def density_peaks(
    x: Tensor,
    count: Tensor,
    most: int,
    neighbours: Tensor | None = None,
    valid: Tensor | None = None,
    ranked: bool = False,
) -> Clusters:
    """Cluster by density peaks, each group with its own number of clusters and neighbours.

    The distance of two tokens is Euclidean, divided by √D. A token's density is exp(-mean of the squared distances to
    its nearest tokens, itself among them), its own distance that to the nearest denser token (the largest of all where
    none is denser). Nothing is drawn at random: of equal scores the first token wins.

    Args:
        x: [G, M, D]; half precision is computed in float32; NaN and Inf count as 0.
        count: LongTensor [G]: clusters of each group, not above its tokens.
        most: C: no group has more clusters, nor more neighbours.
        neighbours: LongTensor [G]: how many nearest tokens make the density; None: as many as clusters.
        valid: BoolTensor [G, M]: tokens that are there; None: all.
        ranked: whether of equally dense tokens the first counts as the denser, as if noise had told them apart; else
            none of them does, and two that are each other's nearest are both far from anything denser.

    Raises:
        ValueError: shapes that do not fit.
    """
    groups, tokens, _ = shape_of("x", x, "G", "M", "D")
    for name, value in (("count", count), ("neighbours", neighbours)):
        if value is not None:
            check_shape(name, value, (groups,))
    if valid is not None:
        check_shape("valid", valid, (groups, tokens))
    made = (operator_for("density_peaks", x) or reference.density_peaks)(x, count, most, neighbours, valid, ranked)
    return Clusters(*made)


@torch.library.custom_op("vtc::density_peaks", mutates_args=())
def _density_peaks(
    x: Tensor, count: Tensor, most: int, neighbours: Tensor | None, valid: Tensor | None, ranked: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return reference.density_peaks(x, count, most, neighbours, valid, ranked)


@_density_peaks.register_fake
def _(
    x: Tensor, count: Tensor, most: int, neighbours: Tensor | None, valid: Tensor | None, ranked: bool
) -> tuple[Tensor, Tensor, Tensor]:
    groups, tokens, _ = x.shape
    score = x.new_empty(groups, tokens, dtype=x.dtype if x.dtype == torch.float64 else torch.float32)
    centres = x.new_empty(groups, min(most, tokens), dtype=torch.int64)
    return score, centres, x.new_empty(groups, tokens, dtype=torch.int64)


register("density_peaks", _density_peaks)
