"""ToMe: in every block of the vision tower, merge the patches whose keys are most alike.

arXiv 2210.09461, ICLR 2023.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vtc.method import fields
from vtc.method.budget import Keep
from vtc.method.patches import Patches
from vtc.method.reducer import Reducer
from vtc.method.reduction import Reduction
from vtc.method.registry import register
from vtc.model.parts import Parts
from vtc.ops.mixing import Mixing
from vtc.ops.similarity import nearest, unit_rows


@dataclass(frozen=True)
class Matching:
    """Which rows of a sequence of N merge into which.

    Attributes:
        kept: LongTensor [G, N - r], old index of each row of the new sequence, in its order.
        source: LongTensor [G, r], old index of the rows that are merged away, the most similar pair first.
        target: LongTensor [G, r], old index of the row that each merges into.
    """

    kept: Tensor
    source: Tensor
    target: Tensor

    def group(self) -> Tensor:
        """LongTensor [G, N]: the new row that each old row ends in."""
        place = torch.arange(self.kept.shape[1], device=self.kept.device).expand_as(self.kept)
        group = place.new_zeros(len(place), self.kept.shape[1] + self.source.shape[1]).scatter_(1, self.kept, place)
        return group.scatter_(1, self.source, group.gather(1, self.target))


def bipartite_merge(metric: Tensor, r: int, protected: int = 0) -> Matching:
    """Bipartite soft matching (Sec. 3.2): rows at even indices pick their best one at an odd; the r best pairs merge.

    Equal similarities: lowest index first. A row without direction (zero, NaN) is similar to none; the released code,
    which divides by zero there, merges it first.

    Args:
        metric: [G, N, d], what similarity is taken of: the keys, mean over heads.
        r: rows to merge away; at most floor((N - protected) / 2) are.
        protected: rows at the start that merge with none: 1 (class token), 2 (and distillation token).

    Returns:
        The matching. New order: even rows that stay (ascending with a class token, else the most similar first), then
        all odd ones; the distillation token stays second.

    Raises:
        ValueError: `protected` is not 0, 1 or 2.
    """
    if protected not in (0, 1, 2):
        raise ValueError(f"protected={protected!r} is not 0, 1 or 2; those are class and distillation token")
    images, length, _ = metric.shape
    r = max(min(r, (length - protected) // 2), 0)
    rows = torch.arange(length, device=metric.device).expand(images, -1)
    even, odd = rows[:, ::2], rows[:, 1::2]
    if r == 0:
        return Matching(rows, rows[:, :0], rows[:, :0])
    unit = unit_rows(metric)
    skipped = protected // 2  # the distillation token is the first of the odd rows
    best, partner = nearest(unit[:, ::2], unit[:, 1::2][:, skipped:])
    if protected:
        best[:, 0] = -torch.inf
    order = best.argsort(dim=1, descending=True, stable=True)
    merged, stays = order[:, :r], order[:, r:]
    if protected:
        stays = stays.sort(dim=1).values
    kept = torch.cat([even.gather(1, stays), odd], dim=1)
    if skipped:
        kept = torch.cat([kept[:, :1], odd[:, :1], kept[:, 1 : stays.shape[1]], odd[:, 1:]], dim=1)
    return Matching(kept, even.gather(1, merged), odd.gather(1, partner.gather(1, merged) + skipped))


def merge_schedule(layers: int, r: int | Sequence[int], inflection: float = 0.0) -> list[int]:
    """Rows that each of `layers` blocks merges away, as published.

    Args:
        layers: number of blocks.
        r: rows per block; or a list, filled up with 0 and cut to `layers`.
        inflection: in [-1, 1]: -1 falls from 2r to 0, 0 is constant, 1 rises from 0 to 2r.
    """
    if not isinstance(r, int):
        return [*r, *[0] * (layers - len(r))][:layers]
    first = int(r * (1 - inflection))
    step = (2 * r - 2 * first) / max(layers - 1, 1)
    return [int(first + step * layer) for layer in range(layers)]


def units_left(stage: int, stages: int, start: int, target: int, present: int, inflection: float = 0.0) -> int:
    """Units that block `stage` of `stages` leaves of `present`, so that `start` units become exactly `target`.

    What is to go is spread along a line as in `merge_schedule`. A block can at most halve: what it can't take, later
    ones take, and it takes more where they could not reach the target (m blocks reach it from target · 2^m at most).

    Raises:
        ValueError: not reachable, since each block can at most halve.
    """
    left = stages - 1 - stage
    most, least = target << left, (present + 1) // 2
    if least > most:
        lowest = -(-start >> stages)
        raise ValueError(
            f"tome: {stages} blocks of the vision tower can't merge {start} patches into {target}, since each halves "
            f"them at most; give a keep that leaves {lowest} of them or more"
        )
    gone = start - target
    if left:
        weights = [1 - inflection + 2 * inflection * i / (stages - 1) for i in range(stages)]
        gone = round(gone * math.fsum(weights[: stage + 1]) / math.fsum(weights))
    return max(min(start - gone, most, present), least, target)


def mean_by_size(group: Tensor, sizes: Tensor, rows: int) -> Mixing:
    """Each new row as the mean of the old ones in its group, weighted by their sizes.

    Args:
        group: LongTensor [G, N], new row of each old one.
        sizes: [G, N], above 0.
        rows: number of new ones.
    """
    sizes = sizes.float()
    total = torch.zeros(len(sizes), rows, device=sizes.device).scatter_add_(1, group, sizes)
    source = torch.arange(group.shape[1], device=group.device).expand_as(group)
    return Mixing(source, group, sizes / total.gather(1, group))


def merge_patches(patches: Patches, r: int) -> Reduction | None:
    """Merge `r` units away (half of them at most), by the keys; weighted by size. None where nothing merges."""
    metric = patches.keys.mean(dim=2)
    prefix = int(patches.has_cls)  # CLS counts in what is even, and is never merged
    matching = bipartite_merge(torch.nn.functional.pad(metric, (0, 0, prefix, 0)), r, prefix)
    if not matching.source.shape[1]:
        return None
    kept, group = matching.kept[:, prefix:] - prefix, matching.group()[:, prefix:] - prefix
    return Reduction(kept, mean_by_size(group, patches.sizes, kept.shape[1]))


@register("tome")
@dataclass
class ToMe(Reducer):
    """Merge, in every block of the vision tower, the patches whose attention keys are most alike.

    Patches at even places of the sequence pick their most similar partner at an odd one; the best pairs become one
    patch each, their mean by size. Attention is proportional to size, and no training is needed. Acts between a block's
    attention and its MLP. https://arxiv.org/abs/2210.09461

    Budget: the paper gives r, patches that each block merges away. Here `keep` is what is left after the last block
    that the language model sees: 576 patches, 23 blocks and keep=208 are r=16. What does not divide is spread evenly.
    A block can at most halve, so b blocks reach 1/2^b of the patches; less is refused.

    Attributes:
        keep: share in (0, 1] or count of the visual tokens of an image. Default 1/3.
        inflection: in [-1, 1], unit 1: how the merges are spread over the blocks, from falling to zero (-1) over
            constant (0, default) to rising from zero (1).
        proportional: whether later blocks add log(size) to the logits of a key. Default True, as for supervised towers;
            the paper turns it off for MAE ones.
    """

    keep: Keep = 1 / 3
    inflection: float = 0.0
    proportional: bool = True  # type: ignore[misc]
    acts = "attention"

    def __post_init__(self) -> None:
        super().__post_init__()
        way_out = "give -1 (merge early) to 1 (merge late)"
        if isinstance(self.inflection, bool) or not isinstance(self.inflection, int | float):
            raise TypeError(f"inflection={self.inflection!r} is not a number; {way_out}")
        if not -1 <= self.inflection <= 1:
            raise ValueError(f"inflection={self.inflection!r} is not in [-1, 1]; {way_out}")
        fields.check_bool("proportional", self.proportional)

    def blocks(self, parts: Parts) -> tuple[int, ...]:
        return tuple(range(parts.block(parts.feature_layer, "tome") + 1))

    def reduce(self, patches: Patches) -> Reduction | None:
        left = units_left(patches.stage, patches.stages, patches.start, patches.target, patches.units, self.inflection)
        return merge_patches(patches, patches.units - left) if left < patches.units else None
