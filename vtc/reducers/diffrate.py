"""DiffRate: prune and merge patches in every block of the vision tower, at learned rates.

arXiv 2305.17997, ICCV 2023.
"""

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
from vtc.ops.similarity import nearest, unit_rows
from vtc.reducers.diffrate_rates import published_shares


def match_unimportant(metric: Tensor, kept: int, cls: bool = False) -> tuple[Tensor, Tensor]:
    """Which important token each unimportant one is merged into: the one with the most similar features (Sec. 3.2).

    Args:
        metric: [G, N, D], the features themselves, the most important token first.
        kept: how many count as important.
        cls: whether row 0 is the class token, which absorbs nothing.

    Returns:
        Cosine similarity Tensor [G, N - kept] and LongTensor [G, N - kept] of indices into the important rows.

    Raises:
        ValueError: nothing is left to merge into.
    """
    if kept - cls < 1:
        raise ValueError(f"kept={kept} leaves no token to merge into; keep {1 + cls} or more")
    unit = unit_rows(metric)
    similarity, target = nearest(unit[:, kept:], unit[:, int(cls) : kept])
    return similarity, target + int(cls)


def mean_of_merged(target: Tensor, kept: int) -> tuple[Tensor, Tensor]:
    """New row and weight of each of N old ones: a plain mean over a token and all that it absorbs.

    Args:
        target: LongTensor [G, N - kept], as from `match_unimportant`.
        kept: important rows.

    Returns:
        LongTensor [G, N] and Tensor [G, N].
    """
    own = torch.arange(kept, device=target.device).expand(len(target), -1)
    row = torch.cat([own, target], dim=1)
    count = torch.zeros(len(row), kept, device=row.device).scatter_add_(1, row, torch.ones_like(row).float())
    return row, 1 / count.gather(1, row)


def grown_sizes(sizes: Tensor, similarity: Tensor, target: Tensor) -> Tensor:
    """Sizes after merging: a token's own, and what it absorbs weighted by similarity.

    Args:
        sizes: [G, N], the most important token first.
        similarity: [G, N - kept].
        target: LongTensor [G, N - kept].

    Returns:
        Tensor [G, kept]; its own size where unlike tokens would make it zero or less, whose logarithm the released code
        would take.
    """
    own = sizes.float()[:, : sizes.shape[1] - target.shape[1]]
    total = own.scatter_add(1, target, sizes.float()[:, own.shape[1] :] * similarity.float())
    return torch.where(total > 0, total, own)


def prune_and_merge(patches: Patches, pruned: int, merged: int) -> Reduction | None:
    """Keep the `pruned` most important units, and merge the least important of them until `merged` are left.

    Importance is attention from CLS. Without CLS it is attention received, nothing is pruned, and sizes add up.
    """
    merged = min(merged, patches.units)
    pruned = max(min(pruned, patches.units), merged) if patches.has_cls else patches.units
    if merged == patches.units:
        return None
    order = top_k(patches.importance(), pruned)
    if pruned == merged:
        return Reduction(order)
    similarity, target = match_unimportant(take(patches.hidden, order).flatten(2), merged)
    mixing = Mixing(order, *mean_of_merged(target, merged))
    sizes = grown_sizes(take(patches.sizes, order), similarity, target) if patches.has_cls else None
    return Reduction(order[:, :merged], mixing, sizes=sizes)


@register("diffrate")
@dataclass
class DiffRate(Reducer):
    """Prune, then merge, the patches that CLS attends to least, in every block of the vision tower, at learned rates.

    In each block patches are ordered by the attention they get from CLS; the last ones are dropped, the next are merged
    into the most similar important one (plain mean of features; attention proportional to sizes, which grow by
    similarity). Rates are the published ones, or those that `vtc train-diffrate` learns for a model. Acts between a
    block's attention and its MLP. Towers without CLS order by attention received, merge only, and add sizes up.
    https://arxiv.org/abs/2305.17997

    Budget: the paper learns, for a FLOPs target, two counts per block. Here `keep` is what is left after the last block
    that the language model sees. The published curves (DeiT-S for towers of fewer than 18 such blocks, else ViT-L) are
    laid over the tower's relative depth, and what has gone at each place is scaled so that they end at `keep`. DeiT-S's
    last entry is left out: there only CLS mattered.

    Attributes:
        keep: share in (0, 1] or count of the visual tokens of an image. Default 1/3.
        prune: for each block from the first, the share in [0, 1] of the patches that the tower started with that
            pruning leaves; the tuple's length says how many blocks compress. Default None: published, or as `merge`
            leaves them where that is given.
        merge: the same for merging, so at most `prune`; in the last of the blocks `keep` is left whatever it says, and
            before it no block leaves less. Default None: published, or nothing is merged where `prune` is given.
    """

    keep: Keep = 1 / 3
    prune: tuple[float, ...] | None = None
    merge: tuple[float, ...] | None = None
    acts = "attention"
    proportional: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        way_out = "give for each block the share of all patches that is left, e.g. (1.0, 0.8, 0.5), or None"
        for name in ("prune", "merge"):
            shares = getattr(self, name)
            if shares is not None:
                setattr(self, name, fields.as_tuple(name, shares, way_out))
                for index, share in enumerate(shares):
                    fields.check_share(f"{name}[{index}]", share, way_out)
        if self.prune is not None and self.merge is not None and len(self.prune) != len(self.merge):
            raise ValueError(f"prune={self.prune!r} and merge={self.merge!r} differ in length; {way_out}")

    def blocks(self, parts: Parts) -> tuple[int, ...]:
        possible = parts.block(parts.feature_layer, "diffrate") + 1
        wanted = len(self.prune or self.merge or ()) or possible
        if wanted > possible:
            raise ValueError(
                f"diffrate: prune={self.prune!r}, merge={self.merge!r} have {wanted} entries, but {parts.family} "
                f"projects the output of tower block {possible - 1}; give {possible} at most"
            )
        return tuple(range(wanted))

    def counts(self, stage: int, stages: int, start: int, target: int) -> tuple[int, int]:
        """Units after pruning and after merging in one of the blocks; none leaves less than `target`."""
        if self.prune is None and self.merge is None:
            pruned, merged = (round(target + (start - target) * curve[stage]) for curve in published_shares(stages))
        else:
            shares = ((given or (1.0,) * stages)[stage] for given in (self.prune, self.merge or self.prune))
            pruned, merged = (max(round(start * share), target) for share in shares)
        merged = min(pruned, merged)
        return pruned, target if stage == stages - 1 else merged

    def reduce(self, patches: Patches) -> Reduction | None:
        counts = self.counts(patches.stage, patches.stages, patches.start, patches.target)
        return prune_and_merge(patches, *counts)
