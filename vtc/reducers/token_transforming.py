"""Token Transforming, our reading: patches spread over several new ones, many to many (arXiv 2506.05709)."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc.method import fields
from vtc.method.budget import Keep
from vtc.method.patches import Patches, take
from vtc.method.reducer import Reducer
from vtc.method.reduction import Reduction, top_k
from vtc.method.registry import register
from vtc.model.parts import Parts
from vtc.ops.mixing import Mixing
from vtc.ops.similarity import unit_rows
from vtc.reducers.stages import check_layers, geometric, within_tower

_CHUNK = 1024


def spread(keys: Tensor, anchors: Tensor, tau: float, per_token: int) -> tuple[Tensor, Tensor]:
    """How each token spreads over the anchors: softmax over its most similar ones of cosine / tau.

    An anchor stays with itself, so that none is left empty, and where every token is one nothing changes.

    Args:
        keys: [G, N, d].
        anchors: LongTensor [G, M], distinct.
        tau: temperature, above 0.
        per_token: anchors that a token is spread over; all where there are fewer.

    Returns:
        LongTensor [G, N, k] of places among the anchors, and Tensor [G, N, k] of shares that sum to 1 over k.
    """
    unit, per_token = unit_rows(keys), min(per_token, anchors.shape[1])
    centres = take(unit, anchors)
    targets: list[Tensor] = []
    shares: list[Tensor] = []
    for start in range(0, unit.shape[1], _CHUNK):
        similarity = unit[:, start : start + _CHUNK] @ centres.transpose(1, 2)
        own = anchors[:, None] == torch.arange(start, start + similarity.shape[1], device=anchors.device)[:, None]
        similarity = similarity.clamp(-1.0, 1.0).masked_fill(own, 2.0)
        targets.append(top_k(similarity, per_token))
        nearest = similarity.gather(2, targets[-1])
        share = torch.softmax(nearest / tau, dim=-1)
        alone = torch.nn.functional.one_hot(torch.zeros_like(targets[-1][..., 0]), per_token)
        shares.append(torch.where(nearest[..., :1] > 1, alone.to(share.dtype), share))
    return torch.cat(targets, dim=1), torch.cat(shares, dim=1)


def transform(target: Tensor, share: Tensor, sizes: Tensor, rows: int) -> tuple[Mixing, Tensor]:
    """The matrix W [rows, N] of a token reduction from how each token's mass is shared out.

    W[i, j] = share of j that goes to i · size of j, divided by the row's sum. Pruning is the case of tokens whose share
    is 0, merging that of one target per token.

    Args:
        target: LongTensor [G, N, k], new tokens.
        share: Tensor [G, N, k], shares of the token's mass.
        sizes: [G, N].
        rows: new tokens; each gets some mass.

    Returns:
        W, whose rows sum to 1, and the new sizes [G, rows]: their sum is the mass that was shared out.
    """
    images, tokens, per_token = target.shape
    mass = (share * sizes.float()[:, :, None]).flatten(1)
    target = target.flatten(1)
    total = torch.zeros(images, rows, device=mass.device).scatter_add_(1, target, mass)
    source = torch.arange(tokens, device=target.device).repeat_interleave(per_token).expand(images, -1)
    return Mixing(source, target, mass / total.gather(1, target)), total


@register("token_transforming")
@dataclass
class TokenTransforming(Reducer):
    """Our reading of Token Transforming: each patch is spread over the few new ones that are most like it.

    The paper's frame is certain: any reduction is a matrix W, pruning and merging are special cases of it, and a
    many-to-many W keeps more without training. Its own rule for W was not released, and this one is ours, so results
    are not the paper's. The patches attended to most are anchors, which stay with themselves. Each other patch spreads
    over its most similar anchors, by softmax over them of the cosine of keys (mean over heads) / tau; an anchor becomes
    the mean of what reaches it, weighted by size, and mass is conserved. Later attention is proportional to size. Acts
    between a block's attention and its MLP. https://arxiv.org/abs/2506.05709

    Budget: `keep` is what is left after the last of the blocks at which it acts; each leaves about the same share.

    Attributes:
        keep: share in (0, 1] or count of the visual tokens of an image. Default 1/3.
        tau: temperature of the softmax over cosines, above 0. Default 0.1 (ours).
        anchors_per_token: anchors that a patch is spread over. Default 4 (ours); 1 merges into the nearest.
        layers: tower blocks, from 0, ascending. Default None: three, at a quarter, half and three quarters of those
            that the language model sees.
    """

    keep: Keep = 1 / 3
    tau: float = 0.1
    anchors_per_token: int = 4
    layers: tuple[int, ...] | None = None
    acts = "attention"
    proportional: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        way_out = "give a temperature above 0 such as 0.1"
        if isinstance(self.tau, bool) or not isinstance(self.tau, int | float):
            raise TypeError(f"tau={self.tau!r} is not a number; {way_out}")
        if not 0 < self.tau < math.inf:
            raise ValueError(f"tau={self.tau!r} is not above 0 and finite; {way_out}")
        fields.check_int("anchors_per_token", self.anchors_per_token, "give 1 or more, such as 4", 1)
        if self.layers is not None:
            self.layers = check_layers(self.layers)

    def blocks(self, parts: Parts) -> tuple[int, ...]:
        seen = parts.block(parts.feature_layer, "token_transforming") + 1
        if self.layers is not None:
            return within_tower(self.layers, parts, "token_transforming")
        count = min(3, seen)
        return tuple((i + 1) * seen // (count + 1) for i in range(count))

    def reduce(self, patches: Patches) -> Reduction | None:
        left = geometric(patches.stage, patches.stages, patches.start, patches.target, patches.units)
        if left >= patches.units:
            return None
        anchors = top_k(patches.importance(), left).sort(dim=1).values
        target, share = spread(patches.keys.mean(dim=2), anchors, self.tau, self.anchors_per_token)
        mixing, sizes = transform(target, share, patches.sizes, left)
        return Reduction(anchors, mixing, sizes=sizes)
