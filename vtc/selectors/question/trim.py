"""TRIM: what the question asks for by the metric of CLIP, and the mean of the rest (arXiv 2409.10994, COLING 2025)."""

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
from vtc.ops.host import on
from vtc.ops.similarity import as_float, unit_rows
from vtc.selectors.merging import Merged, complement, reduction_of, shares_of_crops
from vtc.selectors.outliers import above_quartiles
from vtc.selectors.places import all_of
from vtc.selectors.question.clip_text import AsksClip, check_clip


def relevance(image: Tensor, text: Tensor, cosine: bool = False) -> Tensor:
    """How relevant tokens are to a text.

    Args:
        image: [n, P], embeddings of the tokens.
        text: [P], in the same space.
        cosine: the cosine similarity, as in the paper's text. Default: as released, minus the plain product, neither
            side normalised, so that long embeddings count more.

    Returns:
        Tensor [n]; NaN and Inf count as 0.
    """
    if cosine:
        unit = unit_rows(image)
        return unit @ unit_rows(text).to(unit.dtype)
    image = as_float(image)
    return -(image @ as_float(text).to(image.dtype))


def merge_rest(score: Tensor, count: int) -> Merged:
    """The `count` tokens with the highest `score` [G, n] in their order, and the mean of all others behind them.

    The mean takes the place of the other one with the highest score. 1 <= count < n.
    """
    kept = top_k(score, count).sort(dim=1).values
    rest = complement(score.shape[1], kept)
    last = rest.gather(1, top_k(score.gather(1, rest), 1))
    weight = torch.ones_like(score)
    weight[:, count:] = 1 / rest.shape[1]
    source, centre = torch.cat([kept, rest], dim=1), torch.cat([kept, last.expand_as(rest)], dim=1)
    return Merged(torch.cat([kept, last], dim=1), source, centre, weight)


@register("trim")
@dataclass
class Trim(AsksClip, Selector):
    """Keep the tokens that are relevant to the question by the metric of CLIP, and the mean of all others.

    With `clip`, as published: CLIP's embeddings of what the projector reads (norm and projection put behind it) and of
    the question, which is cut off at the text tower's 77 tokens. Relevance is a softmax over the picture of minus their
    plain product: the released code negates it, as CLIP's patches turn away from the text that describes them, and
    normalises neither side; `paper` is what the paper writes. Every crop (thumbnail, tile, frame) is treated by itself.
    Where one patch makes one token, the mean is taken in front of the projector, and each crop's comes behind its kept
    tokens, which stand in their order (in the trace at the place of the most relevant of those it is of). Elsewhere it
    is taken of the visual tokens and stands at that place. Separators are dropped. https://arxiv.org/abs/2409.10994

    Without `clip`, a variant of this package: the cosine similarity of the projected tokens to the mean of the
    question's embeddings in the language model, with a positive sign, as there is nothing of CLIP's in it. Where there
    is no text all tokens are equal, and the first ones stay.

    Budget: as with keep=None here, the paper's is adaptive: as many tokens as relevance has outliers (above Q3 + 1.5 ·
    (Q3 - Q1)) in the crop, at least one, plus the mean: about 21 % of LLaVA-1.5's 576. The released code takes the
    mean share of a batch, and one fewer for some counts. A `keep` counts all that come out, the mean too (others'
    tables count without it); it is shared out over crops in proportion to their tokens. A crop whose part is 1 keeps
    one token and no mean.

    Attributes:
        keep: share in (0, 1] or count of the visual tokens of an image. None: the picture decides.
        paper: relevance as in the paper's text: a softmax of the cosine similarity, not negated. Default False.
        clip: folder or hub id of the CLIP model that the vision tower comes from; give `tokenizer` with it.
        tokenizer: folder or hub id of the vision-language model's tokenizer, by which the question is read.
    """

    signals: ClassVar[tuple[str, ...]] = ("question", "merging")
    may_adapt = True

    keep: Keep | None = None
    paper: bool = False
    clip: str | None = None
    tokenizer: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        fields.check_bool("paper", self.paper)
        check_clip(self.clip, self.tokenizer)

    def needs(self, parts: Parts) -> Needs:
        block = parts.block(parts.feature_layer, "trim")
        if self.clip is not None:
            _ = self._clip_text  # so that what can't be loaded is told before anything is changed
        # the keys are not read: with them, a tower whose patches can't be followed is refused beforehand
        return Needs(hidden=() if self.clip is None else (block,), keys=(block,), projection=True, text=True)

    def select(self, visual: VisualTokens, k: int) -> Reduction:
        if not self.adaptive and (whole := all_of(visual, k)) is not None:
            return whole
        score = torch.stack([self._relevance(visual, image) for image in range(len(visual.features))])
        shares = shares_of_crops(visual, None if self.adaptive else k)
        return reduction_of(visual, [_crop(score[:, tokens], part).at(tokens) for tokens, part in shares])

    def _relevance(self, visual: VisualTokens, image: int) -> Tensor:
        """Relevance [N] of the tokens of an image, before the softmax; 0 where there is no text."""
        nothing = torch.zeros(visual.features.shape[1], device=visual.features.device)
        if self.clip is not None:
            question = self._clip_text.question(visual.question[image]) if visual.question else ""
            if not question:
                return nothing
            (hidden,) = visual.hidden.values()
            text = self._clip_text.text(question, hidden.device)[0]
            return relevance(self._clip_text.image(hidden[image]), text, self.paper)
        if not visual.text or not len(visual.text[image]):
            return nothing
        text = as_float(visual.text[image]).mean(dim=0)
        return relevance(visual.features[image], on(visual.features.device, text), cosine=True)


def _crop(score: Tensor, part: int | None) -> Merged:
    """What becomes of the n tokens of one crop by their scores [G, n]; `part` come out, None: the picture decides."""
    images, tokens = score.shape
    if part == tokens or tokens == 1:
        return Merged.untouched(images, tokens, score.device)
    count = max(int(above_quartiles(score[0].softmax(dim=0))), 1) if part is None else part - 1
    if count:
        return merge_rest(score, count)
    best = top_k(score, 1)
    return Merged(best, best, best, torch.ones_like(score[:, :1]))
