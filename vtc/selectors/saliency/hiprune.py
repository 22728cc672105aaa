"""HiPrune: what a middle layer of the vision tower attends to, its surroundings, and the rest by a deep layer.

arXiv 2508.00553.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc.method import fields
from vtc.method.budget import Keep, share_out
from vtc.method.reduction import Reduction, top_k
from vtc.method.registry import register
from vtc.method.selector import Selector
from vtc.method.visual_tokens import Needs, VisualTokens
from vtc.model.parts import Parts
from vtc.ops.host import on
from vtc.selectors.crops import crop_tokens, share_by
from vtc.selectors.places import all_of


def anchor_count(k: int, alpha: float) -> int:
    """Anchors that a budget of `k` tokens has: alpha·k/5, since each brings four buffers; rounded half to even."""
    return round(alpha * k / 5)


def hiprune(
    object_score: Tensor,
    deep_score: Tensor,
    k: int,
    grid: tuple[int, int],
    alpha: float = 0.1,
    compat: bool = False,
    visible: Tensor | None = None,
) -> Tensor:
    """Which tokens survive.

    Anchors are the tokens with the highest object score, buffers their four neighbours, registers the tokens with the
    highest deep score among the rest (Sec. 3.3).

    Args:
        object_score: [G, T·h·w], attention received in a middle layer of the tower, in raster order.
        deep_score: [G, T·h·w], the same in a deep layer.
        k: tokens to keep, 1 <= k <= T·h·w.
        grid: (h, w) of a frame.
        alpha: share of the budget for anchors and buffers.
        compat: exclude chosen tokens by subtracting 1 from their deep score, as the released Qwen code does to scores
            whose mean is 1, so that some are chosen twice and fewer than k survive. Give scores of that scale.
        visible: BoolTensor [T·h·w], places that hold a token, at least k; None: all. The rest can't be chosen.

    Returns:
        BoolTensor [G, T·h·w]; k True in each row, or fewer with `compat`. Where anchors and buffers are more than k
        (the released code fails there), anchors go first, then buffers, each by object score.
    """
    if visible is not None:
        object_score, deep_score = (_only(score, visible) for score in (object_score, deep_score))
    anchors = top_k(object_score, anchor_count(k, alpha))
    tier = torch.zeros_like(object_score, dtype=torch.int8)
    tier.scatter_(1, _neighbours(anchors, *grid), 1)
    tier.scatter_(1, anchors, 2)
    if visible is not None:
        tier.masked_fill_(~visible, 0)
    chosen = tier > 0
    if compat:
        rank = top_k(deep_score - chosen.float(), deep_score.shape[1]).argsort(dim=1)
        return chosen | (rank < k - chosen.sum(dim=1, keepdim=True))
    order = top_k(torch.where(chosen, object_score, deep_score), deep_score.shape[1])
    by_tier = tier.gather(1, order).argsort(dim=1, descending=True, stable=True)
    return torch.zeros_like(chosen).scatter_(1, order.gather(1, by_tier)[:, :k], True)


def _only(score: Tensor, visible: Tensor) -> Tensor:
    """`score` with -inf where nothing is visible and finite numbers elsewhere, so that NaN there ranks above it."""
    return score.nan_to_num(nan=torch.finfo(score.dtype).min).masked_fill(~visible, float("-inf"))


def _neighbours(anchors: Tensor, h: int, w: int) -> Tensor:
    """Raster indices [G, 4·a] left, right, above and below `anchors` [G, a], clamped to the frame.

    As in the paper's pseudocode and the released code: left and right run on into the next row, and a neighbour outside
    the frame is its first or last token.
    """
    frame, inside = anchors // (h * w) * (h * w), anchors % (h * w)
    return torch.cat([frame + (inside + step).clamp(0, h * w - 1) for step in (-1, 1, -w, w)], dim=1)


@register("hiprune")
@dataclass
class HiPrune(Selector):
    """Keep anchors and buffers from a middle layer of the vision tower, and registers from a deep one.

    Middle layers attend to objects, deep ones to tokens that hold the whole. Reads the attention that each token
    receives; no text. With tiles, thumbnail and joined tiles are selected each by itself, with a part of the budget in
    proportion to their tokens; frames of a video share one ranking, and buffers stay in their anchor's frame.
    Separators are dropped. https://arxiv.org/abs/2508.00553

    Budget: the paper's, tokens in all: 192, 128 or 64 of LLaVA-1.5's 576, 640, 320 or 160 for all crops of LLaVA-NeXT,
    a share for Qwen2.5-VL. The released code gives each crop int(budget / crops) and loses the remainder; `per_crop`
    gives the remainder to the first crops, one token each, and what is more than a crop has to the others.

    Attributes:
        keep: share in (0, 1] or count of the visual tokens of an image. Default 1/3 (192 of LLaVA-1.5's 576).
        alpha: share of the budget that goes to anchors and buffers, in [0, 1].
        object_layer: middle block of the tower, from 0 or negative from the end. None: the published one, scaled to the
            tower's depth (index 8 of CLIP-L's 24; 15 of Qwen2.5-VL's 32).
        deep_layer: deep block. None: the published one (with CLS the one that the projector reads, else the last).
        compat: keep fewer tokens than asked for, like the released Qwen code, behind whose published numbers this is.
            One image at a time; only for towers without CLS.
        per_crop: select in each crop (thumbnail and every single tile) by itself, all with the same budget, buffers in
            the crop's own grid, as the released code does. Default False: see above.
    """

    signals: ClassVar[tuple[str, ...]] = ("saliency",)
    keep: Keep = 1 / 3
    alpha: float = 0.1
    object_layer: int | None = None
    deep_layer: int | None = None
    compat: bool = False
    per_crop: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        fields.check_share("alpha", self.alpha, "give the share of the budget for anchors and buffers, e.g. 0.1")
        for name in ("object_layer", "deep_layer"):
            if getattr(self, name) is not None:
                fields.check_int(name, getattr(self, name), "give a block of the vision tower, or None for the default")
        fields.check_bool("compat", self.compat)
        fields.check_bool("per_crop", self.per_crop)
        if self.compat and self.per_crop:
            raise ValueError(
                "compat=True is what the released code does on Qwen2.5-VL, which has no tiles; with it, "
                "use per_crop=False"
            )

    def needs(self, parts: Parts) -> Needs:
        depth = len(parts.blocks)
        middle = round(depth * 3 / 8) - 1 if parts.has_cls else depth // 2 - 1
        last = parts.feature_layer if parts.has_cls else depth - 1
        middle = parts.block(max(middle, 0) if self.object_layer is None else self.object_layer, "hiprune")
        deep = parts.block(last if self.deep_layer is None else self.deep_layer, "hiprune")
        if middle > deep:
            raise ValueError(f"hiprune: object_layer is block {middle}, behind deep_layer, block {deep}; exchange them")
        if self.compat and parts.has_cls:
            raise ValueError(
                f"hiprune: compat=True is what the released code does on Qwen2.5-VL; {parts.family} has a CLS token, "
                "where that code keeps the budget, so use compat=False"
            )
        return Needs(received=(middle, deep))

    def select(self, visual: VisualTokens, k: int) -> Reduction:
        object_score, deep_score = visual.received[min(visual.received)], visual.received[max(visual.received)]
        if self.compat:
            deep_score = deep_score / deep_score.nanmean(dim=1, keepdim=True)
        if (whole := all_of(visual, k)) is not None:
            return whole
        if self.per_crop and visual.crops is not None:
            return Reduction(top_k(self._crop_by_crop(visual, k).float(), k).sort(dim=1).values)
        kept = torch.zeros_like(object_score, dtype=torch.bool)
        sizes = [grid.t * grid.h * grid.w for grid in visual.grids]
        for grid, part in zip(visual.grids, share_out(k, sizes), strict=True):
            if part:
                inside = on(kept.device, grid.tokens().flatten())
                kept[:, inside] = hiprune(
                    object_score[:, inside], deep_score[:, inside], part, (grid.h, grid.w), self.alpha, self.compat
                )
        return self._reduction(kept, k)

    def _crop_by_crop(self, visual: VisualTokens, k: int) -> Tensor:
        """BoolTensor [G, N]: the `k` survivors, each crop with the same number where it has as many tokens."""
        assert visual.crops is not None
        scores = visual.received[min(visual.received)], visual.received[max(visual.received)]
        kept = torch.zeros_like(scores[0], dtype=torch.bool)
        crops = crop_tokens(visual)
        height, width = visual.crops.grid
        for tokens, part in zip(crops, share_by(k, [1] * len(crops), [len(tokens) for tokens in crops]), strict=True):
            if part:
                place, tokens = on(kept.device, visual.crops.place[tokens]), on(kept.device, tokens)
                visible = torch.zeros(height * width, dtype=torch.bool, device=kept.device)
                visible[place] = True
                whole = (score.new_zeros(len(score), height * width) for score in scores)
                first, deep = (w.index_copy_(1, place, s[:, tokens]) for w, s in zip(whole, scores, strict=True))
                chosen = hiprune(first, deep, part, (height, width), self.alpha, visible=visible)
                kept[:, tokens] = chosen[:, place]
        return kept

    def _reduction(self, kept: Tensor, k: int) -> Reduction:
        if self.compat:
            counts = kept.sum(dim=1)
            k = int(counts[0])
            if (counts != k).any():
                raise ValueError(
                    f"hiprune: compat=True leaves {counts.tolist()} tokens in images of one size; give them one at a "
                    "time, or use compat=False"
                )
        return Reduction(top_k(kept.float(), k).sort(dim=1).values)
