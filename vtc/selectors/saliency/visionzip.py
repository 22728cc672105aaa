"""VisionZip: the tokens that CLS attends to, and the rest merged into a few (arXiv 2412.04467, CVPR 2025)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vtc import ops
from vtc.method import fields
from vtc.method.budget import Keep, share_out
from vtc.method.reduction import Reduction, top_k
from vtc.method.registry import register
from vtc.method.selector import Selector
from vtc.method.visual_tokens import Needs, Projection, VisualTokens
from vtc.model.parts import Parts
from vtc.ops.host import on
from vtc.ops.mixing import Mixing
from vtc.ops.similarity import as_float, nearest
from vtc.selectors.crops import crop_tokens
from vtc.selectors.places import all_of


@dataclass(frozen=True)
class Zip:
    """What becomes of the n tokens of one crop.

    Attributes:
        dominant: LongTensor [G, D], kept as they are, ascending.
        target: LongTensor [G, C], kept and merged into, ascending: the contextual tokens.
        others: LongTensor [G, R], the tokens that are merged, ascending; none where C is 0.
        assigned: LongTensor [G, R], which target each of them goes to, in 0…C-1.
    """

    dominant: Tensor
    target: Tensor
    others: Tensor
    assigned: Tensor


def visionzip(score: Tensor, keys: Tensor, dominant: int, contextual: int) -> Zip:
    """Choose the dominant tokens, and the targets that the rest is merged into by similarity (Sec. 3.2).

    Targets are spread evenly over the tokens that are not dominant: every step-th of them from the first on, with
    step = max(1, floor(rest / contextual)). Every other token goes to the target whose key is nearest by cosine
    similarity; the first of equal ones.

    Args:
        score: [G, n], attention from CLS, or attention received.
        keys: [G, n, d], attention keys, mean over heads.
        dominant: tokens to keep, CLS not counted, 0 <= dominant <= n.
        contextual: tokens to merge the rest into, 0 <= contextual <= n - dominant; 0: the rest is dropped.
    """
    images, tokens = score.shape
    chosen = torch.zeros_like(score, dtype=torch.bool).scatter_(1, top_k(score, dominant), True)
    order = chosen.to(torch.uint8).argsort(dim=1, stable=True)  # the rest ascending, then the dominant ones ascending
    rest, kept = order[:, : tokens - dominant], order[:, tokens - dominant :]
    if not contextual:
        none = order[:, :0]
        return Zip(kept, none, none, none)
    step = max(1, rest.shape[1] // contextual)
    is_target = torch.zeros(rest.shape[1], dtype=torch.bool)
    is_target[torch.arange(contextual) * step] = True
    target, others = (rest[:, on(rest.device, which.nonzero()[:, 0])] for which in (is_target, ~is_target))
    unit = normalize(as_float(keys), dim=-1)
    row = torch.arange(images, device=rest.device)[:, None]
    return Zip(kept, target, others, nearest(unit[row, others], unit[row, target])[1])


def merge_weights(zipped: Zip, average: bool) -> tuple[Tensor, Tensor]:
    """Weight of each target [G, C] and of each merged token [G, R].

    As released, a contextual token is its target plus the mean of the tokens merged into it; the paper's text has
    the mean of them all (`average`).
    """
    count = torch.zeros(zipped.target.shape, device=zipped.target.device)
    count.scatter_add_(1, zipped.assigned, torch.ones(zipped.assigned.shape, device=count.device))
    share = 1 / (count + 1) if average else 1 / count.clamp(min=1)
    return share if average else torch.ones_like(count), share.gather(1, zipped.assigned)


@dataclass(frozen=True)
class _Crop:
    """One crop's tokens as places within the image, and how they mix.

    Attributes:
        crop: its number.
        cls: LongTensor [G, 0 or 1]: the place that the CLS token takes.
        dominant, target: LongTensor [G, …].
        source, centre, weight: [G, M]: a token, the kept token that it goes into, and its weight there.
    """

    crop: int
    cls: Tensor
    dominant: Tensor
    target: Tensor
    source: Tensor
    centre: Tensor
    weight: Tensor


@register("visionzip")
@dataclass
class VisionZip(Selector):
    """Keep the tokens that CLS attends to, and merge the rest into a few contextual ones by their attention keys.

    Every crop (thumbnail, tile, frame) is treated by itself. Where one patch makes one token, merging is done on what
    the projector reads, and CLS itself is handed to the language model as one of the dominant tokens; each crop's order
    is CLS, dominant, contextual, and joined tiles come as all dominant tokens in raster order, each tile's CLS, each
    tile's contextual tokens. In the trace a CLS token stands at the place of the token next in attention that has none.
    Where several patches make a token there is no CLS row; the visual tokens themselves are merged, at the place of
    their target. Newline tokens are dropped, and patches that were cut off as padding stay out (the released code keeps
    them). Towers without CLS: attention received, mean over heads and queries. https://arxiv.org/abs/2412.04467

    Its limit is not the identity, as published: CLS takes a token's place, the order of the tokens is another one, and
    a contextual token is a sum. With one token fewer than all, 92.6 % of the bundled benchmark's 270 answers are right,
    where the untouched model has 94.8 %.

    Budget: the paper's totals (192, 128 or 64 for LLaVA-1.5's 576) are dominant, CLS included, plus contextual; with
    tiles they hold per crop (128, 64 or 32 of 576) whatever the number of crops. Here `keep` holds for the image and is
    shared out over its crops in proportion to their tokens: keep=1/9 is 64 of each 576. A crop whose part is 1 keeps
    CLS alone, and one whose part is 0 nothing.

    Attributes:
        keep: share in (0, 1] or count of the visual tokens of an image. Default 1/3 (192 of LLaVA-1.5's 576).
        dominant: share of the kept tokens that are dominant, in [0, 1], at least one token. Default 27/32 (162 of 192,
            108 of 128, 54 of 64, 27 of 32).
        layer: tower block whose attention and keys are read, from 0 or negative from the end. None: the one whose
            output the projector reads.
        average: a contextual token is the mean of target and merged tokens, as in the paper's text. Default False:
            target plus the mean of the others, as in the released code, whose published numbers these are.
    """

    signals: ClassVar[tuple[str, ...]] = ("saliency", "merging")
    keep: Keep = 1 / 3
    dominant: float = 27 / 32
    layer: int | None = None
    average: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        fields.check_share("dominant", self.dominant, "give the share of dominant tokens, e.g. 0.84375")
        if self.layer is not None:
            fields.check_int("layer", self.layer, "give a block of the vision tower, or None for the default")
        fields.check_bool("average", self.average)

    def needs(self, parts: Parts) -> Needs:
        block = parts.block(parts.feature_layer if self.layer is None else self.layer, "visionzip")
        if parts.has_cls:
            return Needs(cls=(block,), keys=(block,), projection=True)
        return Needs(received=(block,), keys=(block,), projection=True)

    def select(self, visual: VisualTokens, k: int) -> Reduction:
        if (whole := all_of(visual, k)) is not None:
            return whole
        tokens = crop_tokens(visual)
        parts = share_out(k, [len(inside) for inside in tokens])
        crops = [self._zip(visual, crop, tokens[crop], part) for crop, part in enumerate(parts) if part]
        if visual.projection is None:
            sequence = torch.cat([place for crop in crops for place in (crop.dominant, crop.target)], dim=1)
            sequence = sequence.sort(dim=1).values
        else:
            sequence = _sequence(visual, tokens, crops)
        slot = torch.zeros(visual.features.shape[:2], dtype=torch.long, device=sequence.device)
        slot.scatter_(1, sequence, torch.arange(k, device=sequence.device).expand_as(sequence))
        source, centre, weight = (
            torch.cat([getattr(crop, name) for crop in crops], dim=1) for name in ("source", "centre", "weight")
        )
        mixing = Mixing(source, slot.gather(1, centre), weight)
        features = None if visual.projection is None else _project(visual.projection, mixing, crops, slot, k)
        return Reduction(sequence.sort(dim=1).values, mixing, features)

    def _zip(self, visual: VisualTokens, crop: int, tokens: Tensor, part: int) -> _Crop:
        """`visionzip` in one crop, which gets `part` tokens."""
        (keys,) = visual.keys.values()
        (score,) = (visual.cls or visual.received).values()
        tokens = on(score.device, tokens)
        score = score[:, tokens]
        with_cls = visual.projection is not None and visual.projection.cls is not None
        dominant = min(max(round(self.dominant * part), 1), part)
        keys = as_float(keys[:, tokens]).mean(dim=2)
        zipped = visionzip(score, keys, dominant - with_cls, part - dominant)
        by_target, by_other = merge_weights(zipped, self.average)
        alone = torch.ones_like(zipped.dominant, dtype=by_target.dtype)
        kept = torch.cat([zipped.dominant, zipped.target], dim=1)
        return _Crop(
            crop=crop,
            cls=tokens[_best_left(score, kept)] if with_cls else tokens[kept[:, :0]],
            dominant=tokens[zipped.dominant],
            target=tokens[zipped.target],
            source=tokens[torch.cat([kept, zipped.others], dim=1)],
            centre=tokens[torch.cat([kept, zipped.target.gather(1, zipped.assigned)], dim=1)],
            weight=torch.cat([alone, by_target, by_other], dim=1),
        )


def _best_left(score: Tensor, kept: Tensor) -> Tensor:
    """LongTensor [G, 1]: the token with the highest of `score` [G, n] that is not in `kept` [G, m], m < n."""
    order = top_k(score, score.shape[1])
    taken = torch.zeros_like(score, dtype=torch.uint8).scatter_(1, kept, 1).gather(1, order)
    return order.gather(1, taken.argsort(dim=1, stable=True)[:, :1])


def _sequence(visual: VisualTokens, tokens: list[Tensor], crops: list[_Crop]) -> Tensor:
    """LongTensor [G, k]: the kept tokens in the order of the released code, CLS by the place that it takes."""
    pieces = []
    for grid in visual.grids:
        inside = range(grid.start, grid.start + len(grid))
        own = [crop for crop in crops if int(tokens[crop.crop][0]) in inside]
        if grid.kind == "tiles" and own:
            pieces.append(torch.cat([crop.dominant for crop in own], dim=1).sort(dim=1).values)
            pieces += [crop.cls for crop in own] + [crop.target for crop in own]
        else:
            pieces += [place for crop in own for place in (crop.cls, crop.dominant, crop.target)]
    return torch.cat(pieces, dim=1)


def _project(projection: Projection, mixing: Mixing, crops: list[_Crop], slot: Tensor, k: int) -> Tensor:
    """The new tokens [G, k, D]: mixed in front of the projector, CLS rows put in, projected."""
    rows = ops.merge(projection.rows, mixing, k)
    if projection.cls is not None:
        places = slot.gather(1, torch.cat([crop.cls for crop in crops], dim=1))
        cls = projection.cls.index_select(1, on(places.device, [crop.crop for crop in crops]))
        rows.scatter_(1, places[:, :, None].expand_as(cls), cls.to(rows.dtype))
    return projection.apply(rows)
