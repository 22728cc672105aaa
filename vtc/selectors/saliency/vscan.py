"""VScan: what each window and the whole picture show, and one cut in the decoder (arXiv 2505.22654, TMLR 2026)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc.method import budget, fields
from vtc.method.base import Method
from vtc.method.budget import Keep, share_out
from vtc.method.reduction import Reduction, top_k
from vtc.method.registry import register
from vtc.method.selector import Selector
from vtc.method.visual_tokens import Needs, VisualTokens
from vtc.model.parts import Parts
from vtc.ops.host import on
from vtc.ops.similarity import nearest, unit_rows
from vtc.prunes.attention.vscan_stage2 import VScanStage2
from vtc.selectors.crops import crop_tokens
from vtc.selectors.merging import Merged, complement, reduction_of
from vtc.selectors.places import all_of

#: Side of a window in tokens: of towers with CLS, where one patch makes one in the published model, and without.
CLS_SIDE, SIDE = 6, 4


def windows(grid: tuple[int, int], side: int) -> Tensor:
    """The window of each cell of an h × w grid, LongTensor [h·w] on the CPU.

    There are floor(h / side) × floor(w / side) windows, at least one each way; the last ones take what is left over.
    """
    h, w = grid
    down, across = max(h // side, 1), max(w // side, 1)
    row = (torch.arange(h) // side).clamp(max=down - 1)
    column = (torch.arange(w) // side).clamp(max=across - 1)
    return (row[:, None] * across + column).flatten()


def local_picks(score: Tensor, window: Tensor, count: int, quota: bool) -> Tensor:
    """The local half: the highest of each window, LongTensor [G, m].

    Args:
        score: [G, n], of the shallow block.
        window: LongTensor [n] on the CPU, the window of each token; windows without tokens count for nothing.
        count: how many are wanted.
        quota: as for Qwen2.5-VL: the highest of all, at most ceil(count / windows) of each window. Else as for LLaVA:
            the floor(count / windows) highest of each. A window that has fewer gives all: m may be below `count`.
    """
    sizes = [size for size in window.bincount().tolist() if size]
    limit = -(-count // len(sizes)) if quota else count // len(sizes)
    score = _finite(score)
    order = top_k(score, score.shape[1])
    by_window = order.gather(1, on(score.device, window)[order].argsort(dim=1, stable=True))
    place = on(score.device, torch.cat([torch.arange(size) for size in sizes]))
    rank = torch.empty_like(order).scatter_(1, by_window, place.expand_as(order))
    total = min(count, sum(min(limit, size) for size in sizes))
    return top_k(score.masked_fill(rank >= limit, float("-inf")), total)


def _finite(score: Tensor) -> Tensor:
    """`score` with a number for NaN that is below all others, so that -inf is lower still."""
    limits = torch.finfo(score.dtype)
    return score.nan_to_num(limits.min, limits.max, limits.min)


def scan(shallow: Tensor, deep: Tensor, window: Tensor, k: int, quota: bool, compat: bool = False) -> Tensor:
    """Which tokens survive: half of them by windows in a shallow block, the others by a deep one.

    Args:
        shallow: [G, n], what each token gets in a shallow block.
        deep: [G, n], the same in a deep block.
        window: LongTensor [n] on the CPU, the window of each token.
        k: tokens to keep, 1 <= k <= n.
        quota: see `local_picks`.
        compat: lose what the local half lacks, as released; else the global half takes it over.

    Returns:
        LongTensor [G, k], ascending; fewer with `compat`.
    """
    local = local_picks(shallow, window, k // 2, quota)
    left = _finite(deep).scatter(1, local, float("-inf"))
    others = top_k(left, k - k // 2 if compat else k - local.shape[1])
    return torch.cat([local, others], dim=1).sort(dim=1).values


def merge_nearest(features: Tensor, kept: Tensor) -> Merged:
    """Every other token goes to the kept one with the highest cosine similarity, which becomes their plain mean.

    Args:
        features: [G, n, D].
        kept: LongTensor [G, m], ascending; the first of equally similar ones takes a token.
    """
    unit, rest = unit_rows(features), complement(features.shape[1], kept)
    row = torch.arange(len(features), device=kept.device)[:, None]
    slot = nearest(unit[row, rest], unit[row, kept])[1]
    count = torch.ones(kept.shape, device=kept.device)
    count.scatter_add_(1, slot, torch.ones(slot.shape, device=count.device))
    weight = torch.cat([1 / count, (1 / count).gather(1, slot)], dim=1)
    return Merged(kept, torch.cat([kept, rest], dim=1), torch.cat([kept, kept.gather(1, slot)], dim=1), weight)


@register("vscan")
@dataclass
class VScan(Selector):
    """Keep tokens by window and by the whole picture, merge the others into them, and cut once more in the decoder.

    Both stages of the paper; the second one is `vscan_stage2`. In the first, half of the tokens are the highest of each
    window of 6 × 6 tokens in CLS attention of a shallow block, the others have the highest attention of the block that
    the projector reads; then every other visual token goes to the most similar kept one, a plain mean. Towers without
    CLS, as released for Qwen2.5-VL: attention received, in the last block for the whole picture; windows of 4 × 4
    tokens, of which none gives more than its quota to the highest local ones. The last row and column of windows take
    what is left over. Every crop (thumbnail, tile, frame) is treated by itself; separators are dropped (the released
    code keeps all of LLaVA-NeXT's newlines). https://arxiv.org/abs/2505.22654

    Budget: the paper's numbers are averages over the decoder's layers: its 64 are keep=96 and later_keep=32 from the
    middle on. Stage 1's counts hold per crop; here `keep` holds for the image and is shared out over its crops in
    proportion to their tokens (keep=1/6 is 96 of each 576). Equally many of each window leave a remainder, which the
    released code loses (98 of 100, 68 of 72); here the global half takes it. Shares are rounded half to even (released:
    down). keep=1.0 leaves everything as it is: for stage 2 alone take `vscan_stage2`.

    Attributes:
        keep: share in (0, 1] or count of the visual tokens of an image that stage 1 leaves. Default 1/6 (96 of
            LLaVA-1.5's 576).
        later_keep: share or count of a row's visual tokens, of those that reach stage 2, that it leaves. Default 1/3
            (32 of 96). 1.0 leaves stage 2 out.
        layer: decoder layer, from 0, in front of which stage 2 acts. None: the published 16 of 32, scaled.
        shallow: tower block whose attention the local half reads, from 0 or negative from the end. None: the published
            one, scaled to the tower's depth (index 5 of CLIP-L's 24; 7 of Qwen2.5-VL's 32).
        deep: the same of the global half. None: with CLS the block that the projector reads, else the last.
        compat: keep fewer tokens than asked for where the released code does.
    """

    signals: ClassVar[tuple[str, ...]] = ("saliency", "merging")
    keep: Keep = 1 / 6
    later_keep: Keep = 1 / 3
    layer: int | None = None
    shallow: int | None = None
    deep: int | None = None
    compat: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        budget.check_keep(self.later_keep, "later_keep")
        for name in ("shallow", "deep"):
            if getattr(self, name) is not None:
                fields.check_int(name, getattr(self, name), "give a block of the vision tower, or None for the default")
        fields.check_bool("compat", self.compat)
        self._second()

    def split(self) -> tuple[Method, ...]:
        whole, once = (isinstance(keep, float) and keep == 1 for keep in (self.keep, self.later_keep))
        return (self,) if whole or once else (self, self._second())

    def _second(self) -> VScanStage2:
        return VScanStage2(keep=self.later_keep, layer=self.layer)

    def needs(self, parts: Parts) -> Needs:
        depth = len(parts.blocks)
        published, last = (round(5 * depth / 24), parts.feature_layer) if parts.has_cls else (round(7 * depth / 32), -1)
        deep = parts.block(last if self.deep is None else self.deep, "vscan")
        shallow = min(published, deep) if self.shallow is None else parts.block(self.shallow, "vscan")
        if shallow > deep:
            raise ValueError(f"vscan: shallow is block {shallow}, behind deep, block {deep}; exchange them")
        blocks = tuple(sorted({shallow, deep}))
        return Needs(cls=blocks) if parts.has_cls else Needs(received=blocks)

    def select(self, visual: VisualTokens, k: int) -> Reduction:
        if (whole := all_of(visual, k)) is not None:
            return whole
        regions = _regions(visual, CLS_SIDE if visual.cls else SIDE)
        parts = share_out(k, [len(tokens) for tokens, _ in regions])
        crops = [self._crop(visual, *region, part) for region, part in zip(regions, parts, strict=True) if part]
        return reduction_of(visual, crops)

    def _crop(self, visual: VisualTokens, tokens: Tensor, window: Tensor, part: int) -> Merged:
        """What becomes of the `tokens` of one crop, `part` of which are kept."""
        scores = visual.cls or visual.received
        tokens = on(visual.features.device, tokens)
        shallow, deep = (scores[block][:, tokens] for block in (min(scores), max(scores)))
        kept = scan(shallow, deep, window, part, quota=not visual.cls, compat=self.compat)
        return merge_nearest(visual.features[:, tokens], kept).at(tokens)


def _regions(visual: VisualTokens, side: int) -> list[tuple[Tensor, Tensor]]:
    """For each crop with tokens, LongTensors [n] on the CPU: its tokens, and the window of each."""
    if visual.crops is None:  # a block of tokens is a crop
        return [(grid.tokens().flatten(), windows((grid.t * grid.h, grid.w), side)) for grid in visual.grids]
    window = windows(visual.crops.grid, side)
    return [(tokens, window[visual.crops.place[tokens]]) for tokens in crop_tokens(visual) if len(tokens)]
