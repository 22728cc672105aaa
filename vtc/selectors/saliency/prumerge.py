"""PruMerge and PruMerge+: outliers of CLS attention, each with its neighbours added (arXiv 2403.15388, ICCV 2025)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc.method import fields
from vtc.method.budget import Keep
from vtc.method.reduction import Reduction, top_k
from vtc.method.registry import register
from vtc.method.selector import Selector
from vtc.method.visual_tokens import Needs, VisualTokens
from vtc.model.parts import Parts
from vtc.ops.similarity import unit_rows
from vtc.selectors.merging import (
    Merged,
    attention_share,
    cls_full_width,
    complement,
    reduction_of,
    shares_of_crops,
)
from vtc.selectors.outliers import above_quartiles
from vtc.selectors.places import all_of

#: Tokens that are added to each kept one, and kept tokens whose neighbours are sought at once.
NEIGHBOURS, _CHUNK = 32, 512


def released_count(tokens: int, outliers: int) -> int:
    """`tokens` times the share of outliers, rounded down in floating point: one fewer than the outliers for some."""
    return int(tokens * (outliers / tokens))


def spatial_step(tokens: int, outliers: int) -> int:
    """Distance of PruMerge+'s spatial samples: a third of the distance at which as many as the outliers would lie."""
    return int(int(1 / (outliers / tokens)) / 3)


def spatial_samples(tokens: int, outliers: int) -> Tensor:
    """Places 0, step, 2 · step, … below the last one, LongTensor [m] on the CPU, at the distance `spatial_step`.

    Args:
        tokens: n.
        outliers: 1 <= outliers <= n.
    """
    return torch.arange(0, tokens - 1, max(spatial_step(tokens, outliers), 1))


def add_samples(kept: Tensor, samples: Tensor) -> Tensor:
    """`kept` [m] by attention, and those of the ascending `samples` that are not among them: LongTensor, no repeats."""
    return torch.cat([kept, samples[~torch.isin(samples, kept)]])


def evenly_among(kept: Tensor, tokens: int, count: int) -> Tensor:
    """`kept` [G, m] and, of the other of the n `tokens`, every so many-th from the first on: [G, m + count]."""
    rest = complement(tokens, kept)
    step = torch.arange(count, device=kept.device) * rest.shape[1] // max(count, 1)
    return torch.cat([kept, rest[:, step]], dim=1)


def merge_neighbours(score: Tensor, keys: Tensor, kept: Tensor, rest: Tensor) -> Merged:
    """Each kept token plus its neighbours, and one more token of all that is not kept.

    A kept token adds, weighted by their score, the 32 others (all, if they are fewer; kept ones too) with the most
    similar keys by cosine, the first of equal ones. The last token is the sum of all of the rest, weighted by score; it
    takes the place of that with the highest. No weights are normalised.

    Args:
        score: [G, n], attention probability from CLS.
        keys: [G, n, C], attention keys at full width.
        kept: LongTensor [G, m], in the order in which they come out; m may be 0.
        rest: LongTensor [G, r]; where r is 0 there is no last token.
    """
    tokens, unit = score.shape[1], unit_rows(keys)
    row = torch.arange(len(score), device=score.device)[:, None]
    found = [kept[:, :0, None].expand(-1, -1, min(NEIGHBOURS, tokens - 1))]
    for some in kept.split(_CHUNK, dim=1):
        near = (unit[row, some] @ unit.transpose(1, 2)).scatter(2, some[:, :, None], float("-inf"))
        found.append(top_k(near, min(NEIGHBOURS, tokens - 1)))
    nearest = torch.cat(found, dim=1)
    last = rest.gather(1, top_k(score.gather(1, rest), 1))
    source = torch.cat([kept, nearest.flatten(1), rest], dim=1)
    to_kept = kept[:, :, None].expand_as(nearest).flatten(1)
    centre = torch.cat([kept, to_kept, last[:, :1].expand(-1, rest.shape[1])], dim=1)
    weight = score.gather(1, source)
    weight[:, : kept.shape[1]] = 1
    return Merged(torch.cat([kept, last], dim=1), source, centre, weight)


@register("prumerge")
@dataclass
class PruMerge(Selector):
    """Keep the tokens that CLS attends to exceptionally, add to each those with similar keys, and sum up the rest.

    Read in the tower's last block: CLS attention at full width (heads not split) and keys. Where one patch makes one
    token, merging is done on what the projector reads, and the tokens come in the released code's order: kept ones by
    falling attention, added samples, last the one that holds the rest (in the trace at the place of that of the rest
    with the highest attention). Elsewhere the visual tokens themselves are merged, each at its own place. Every crop
    (thumbnail, tile, frame) is treated by itself; the released code leaves pictures with tiles uncompressed.
    Separators are dropped. Towers without CLS: attention received, as a share of the crop's. As released, sums are not
    normalised, where the paper's text has averages. https://arxiv.org/abs/2403.15388

    Budget: as with keep=None here, the paper's is adaptive: as many tokens as CLS attention has outliers (above Q3 +
    1.5 · (Q3 - Q1)) in the crop, at least one, plus the last one: 32 of LLaVA-1.5's 576 on average. With `plus` there
    are three times as many evenly spread samples beside them, about 25 % in all. A `keep` counts all that come out, the
    last one too: one fewer is kept (keep=73 is the released code's fixed eighth). With `plus` a quarter of these have
    the highest attention and the others are spread evenly over the rest, so that exactly `keep` come out; how others'
    tables fix the budget of PruMerge+ is not written down. It is shared out over crops in proportion to their tokens; a
    crop whose part is 1 keeps one token and no last one.

    Attributes:
        keep: share in (0, 1] or count of the visual tokens of an image. None: the picture decides.
        plus: PruMerge+: also keep tokens that are spread evenly over the picture.
        compat: with keep=None, round the number of outliers as the released code does, which loses one for some counts
            of tokens.
    """

    signals: ClassVar[tuple[str, ...]] = ("saliency", "merging")
    may_adapt = True

    keep: Keep | None = None
    plus: bool = False
    compat: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        fields.check_bool("plus", self.plus)
        fields.check_bool("compat", self.compat)

    def needs(self, parts: Parts) -> Needs:
        last = parts.block(-1, "prumerge")
        return Needs(
            received=() if parts.has_cls else (last,),
            observe={"cls": (last, cls_full_width)} if parts.has_cls else {},
            keys=(last,),
            projection=True,
        )

    def select(self, visual: VisualTokens, k: int) -> Reduction:
        if not self.adaptive and (whole := all_of(visual, k)) is not None:
            return whole
        shares = shares_of_crops(visual, None if self.adaptive else k)
        return reduction_of(visual, [self._crop(visual, tokens, part) for tokens, part in shares])

    def _crop(self, visual: VisualTokens, tokens: Tensor, part: int | None) -> Merged:
        """What becomes of the `tokens` of one crop, of which `part` come out; None: the picture decides."""
        (keys,) = visual.keys.values()
        score = attention_share(visual, "cls", tokens)
        if part == len(tokens) or len(tokens) == 1:
            return Merged.untouched(len(score), len(tokens), score.device).at(tokens)
        kept = self._kept_by_picture(score) if part is None else self._kept(score, max(part - 1, 1))
        rest = complement(len(tokens), kept)
        merged = merge_neighbours(score, keys[:, tokens].flatten(2), kept, rest[:, :0] if part == 1 else rest)
        return merged.at(tokens)

    def _kept(self, score: Tensor, count: int) -> Tensor:
        """LongTensor [G, count]: a fixed number of kept tokens."""
        if not self.plus:
            return top_k(score, count)
        by_score = max(round(count / 4), 1)
        return evenly_among(top_k(score, by_score), score.shape[1], count - by_score)

    def _kept_by_picture(self, score: Tensor) -> Tensor:
        """LongTensor [1, m]: as many as there are outliers, at least one."""
        tokens, outliers = score.shape[1], max(int(above_quartiles(score[0])), 1)
        kept = top_k(score, max(released_count(tokens, outliers), 1) if self.compat else outliers)
        return add_samples(kept[0], spatial_samples(tokens, outliers).to(kept.device))[None] if self.plus else kept
