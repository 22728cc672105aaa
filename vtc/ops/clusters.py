"""Density-peak clustering of tokens (DPC-KNN): centres are dense and far from anything denser."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vtc.ops.similarity import as_float


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


def density_peaks(
    x: Tensor, count: Tensor, most: int, neighbours: Tensor | None = None, valid: Tensor | None = None
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
    """
    groups, tokens, dim = x.shape
    most = min(most, tokens)
    valid = torch.ones(groups, tokens, dtype=torch.bool, device=x.device) if valid is None else valid
    neighbours = (count if neighbours is None else neighbours)[:, None, None]
    x = as_float(x)
    # Without matrix products: a token's distance to itself is 0, and two equal tokens have equal distances.
    apart = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist") / dim**0.5
    pairs = valid[:, :, None] & valid[:, None, :]
    apart = apart.masked_fill(~pairs, torch.inf)

    rank = torch.arange(most, device=x.device)
    nearest = apart.topk(most, dim=2, largest=False).values.square().where(rank < neighbours, 0.0)
    density = torch.exp(-nearest.sum(dim=2) / neighbours[:, :, 0].clamp_min(1))
    denser = pairs & (density[:, None, :] > density[:, :, None])
    largest = apart.masked_fill(~pairs, 0.0).amax(dim=(1, 2))[:, None]
    distance = apart.masked_fill(~denser, torch.inf).amin(dim=2)
    distance = torch.where(denser.any(dim=2), distance, largest)
    score = (density * distance).masked_fill(~valid, -torch.inf)

    centres = score.argsort(dim=1, descending=True, stable=True)[:, :most]
    unused = rank >= count[:, None]
    to_centre = apart.gather(2, centres[:, None, :].expand(-1, tokens, -1)).masked_fill(unused[:, None, :], torch.inf)
    member_of = to_centre.argmin(dim=2).masked_fill(~valid, most)
    # A centre joins itself, also where another centre lies at the same point; `tokens` is a column for those unused.
    member_of = torch.nn.functional.pad(member_of, (0, 1))
    member_of = member_of.scatter(1, centres.masked_fill(unused, tokens), rank.expand(groups, -1))[:, :tokens]
    return Clusters(score, centres, member_of)
