"""Zero-TPrune: PageRank on the attention graph of the vision tower, and no near-duplicates.

arXiv 2305.17328, CVPR 2024.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vtc.method import fields
from vtc.method.budget import Keep
from vtc.method.patches import Patches, take
from vtc.method.reducer import Reducer
from vtc.method.reduction import Reduction, top_k
from vtc.method.registry import register
from vtc.model.parts import Parts
from vtc.ops.similarity import as_float, nearest, unit_rows
from vtc.reducers.stages import check_layers, geometric, within_tower

#: Range of a head's variance over tokens within which it counts (Sec. 3.2).
_VARIANCE = (0.01, 0.7)
#: Votes in the first three blocks (30 to 50 published), in the middle (5 to 10), and in the last.
_EARLY, _MIDDLE, _LATE = 30, 5, 1


def page_rank(patches: Patches, iterations: int, uniform: bool = False) -> Tensor:
    """Weighted PageRank: s ← Aᵀ s for each head, where every row votes with the attention that it pays (eq. 2).

    Args:
        patches: one block; the attention matrix is never kept.
        iterations: votes, at least 1.
        uniform: start from equal signals; else CLS, where there is one, starts with sqrt(N) times those of the others.

    Returns:
        Tensor [G, H, P], mean 1 over the P rows.
    """
    images, heads, rows, _ = patches.query.shape
    signal = torch.ones(images, heads, rows, device=patches.query.device)
    if patches.has_cls and not uniform:
        signal[:, :, 0] = rows**0.5
    for _ in range(iterations):
        signal = patches.vote(_mean_one(signal))
    return _mean_one(signal)


def importance(signal: Tensor, variance: tuple[float, float] = _VARIANCE) -> Tensor:
    """One number per row from those of its heads: root of the mean square over heads whose variance lies in range.

    Heads whose signal is flat or has a few peaks are filtered out; where none is left, all count (Sec. 3.2). The
    published range [0.01, 0.7] can't be for signals that sum to 1: over N rows their variance is below 1 / N, so every
    head would go. It is applied to signals of mean 1, where the variance is relative and does not depend on N.

    Args:
        signal: [G, H, P], mean 1 over P.
        variance: least and largest variance of a head that counts.

    Returns:
        Tensor [G, P].
    """
    spread = signal.var(dim=2, correction=0)
    counts = (spread >= variance[0]) & (spread <= variance[1])
    counts = (counts | ~counts.any(dim=1, keepdim=True)).to(signal.dtype)[:, :, None]
    return ((signal.square() * counts).sum(dim=1) / counts.sum(dim=1)).sqrt()


def near_duplicates(keys: Tensor, rank: Tensor, remove: int) -> Tensor:
    """Which tokens go because an important one is much like them: "Sequential-U" (Sec. 3.3).

    The less important half looks for its most similar token in the more important half; of the `remove` most similar
    pairs the less important token is deleted.

    Args:
        keys: [G, N, d].
        rank: [G, N], importance; equal: the lower index counts as more important.
        remove: tokens to delete, 0 <= remove <= N // 2.

    Returns:
        LongTensor [G, N - remove] of those that stay, ascending.
    """
    tokens = keys.shape[1]
    order = top_k(rank, tokens)
    unit = unit_rows(keys)
    important, rest = order[:, : tokens - tokens // 2], order[:, tokens - tokens // 2 :]
    similarity, _ = nearest(take(unit, rest), take(unit, important))
    twin = torch.full(rank.shape, -torch.inf, device=rank.device).scatter_(1, rest, similarity)
    gone = torch.zeros(rank.shape, device=rank.device).scatter_(1, top_k(twin, remove), -1.0)
    return top_k(gone, tokens - remove).sort(dim=1).values


def published_iterations(block: int, depth: int) -> int:
    """Votes at a block of a tower of `depth`: 1 in its last three, 30 in its first three, else 5."""
    if block >= depth - 3:
        return _LATE
    return _EARLY if block < 3 else _MIDDLE


def _mean_one(signal: Tensor) -> Tensor:
    signal = as_float(signal)
    mean = signal.mean(dim=2, keepdim=True)
    return torch.where(mean > 0, signal / mean, torch.ones_like(signal))


@register("zero_tprune")
@dataclass
class ZeroTPrune(Reducer):
    """Drop patches that others attend to least, by PageRank on the attention graph, and near-duplicates of kept ones.

    One vote ranks the patches; of the less important half those most like an important one are deleted; then PageRank
    among the rest, on attention normalised anew, says which of them stay. Duplicates go first because else a large
    group of alike patches votes itself up. No training, no CLS token needed. No code was released: this follows the
    paper, with variances taken of signals of mean 1 (see `importance`). https://arxiv.org/abs/2305.17328

    Budget: the paper sets what each of its pruning layers retains, found by search. Here `keep` is what is left after
    the last layer, and with several layers each leaves about the same share of what it finds.

    Attributes:
        keep: share in (0, 1] or count of the visual tokens of an image. Default 1/3.
        layers: tower blocks, from 0, ascending, after which patches go. None (default): once, after the block that the
            projector reads, so that the whole tower sees all patches.
        similar: share, in [0, 1], of the patches that go which are near-duplicates; half of those present at most.
            Default 0.1 (ours).
        uniform: whether all signals start equal; default False: CLS, where there is one, starts with sqrt(N) times as
            much.
    """

    keep: Keep = 1 / 3
    layers: tuple[int, ...] | None = None
    similar: float = 0.1
    uniform: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers is not None:
            self.layers = check_layers(self.layers)
        fields.check_share("similar", self.similar, "give the share of near-duplicates in what goes, e.g. 0.1")
        fields.check_bool("uniform", self.uniform)

    def blocks(self, parts: Parts) -> tuple[int, ...]:
        feature = parts.block(parts.feature_layer, "zero_tprune")
        return (feature,) if self.layers is None else within_tower(self.layers, parts, "zero_tprune")

    def reduce(self, patches: Patches) -> Reduction | None:
        left = geometric(patches.stage, patches.stages, patches.start, patches.target, patches.units)
        gone = patches.units - left
        if gone <= 0:
            return None
        alive = torch.arange(patches.units, device=patches.hidden.device).expand(len(patches.hidden), -1)
        if duplicates := min(round(self.similar * gone), patches.units // 2):
            rank = patches.of_units(importance(page_rank(patches, 1, self.uniform)))
            alive = near_duplicates(patches.keys.flatten(2), rank, duplicates)
            patches = patches.only(alive)
        iterations = published_iterations(patches.block, patches.depth)
        score = patches.of_units(importance(page_rank(patches, iterations, self.uniform)))
        return Reduction(alive.gather(1, top_k(score, left).sort(dim=1).values))
