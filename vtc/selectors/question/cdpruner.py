"""CDPruner: tokens that are diverse given the question (arXiv 2506.10967, NeurIPS 2025)."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vtc import ops
from vtc.method import fields
from vtc.method.budget import Keep
from vtc.method.reduction import Reduction
from vtc.method.registry import register
from vtc.method.selector import Selector
from vtc.method.visual_tokens import Needs, VisualTokens
from vtc.model.parts import Parts
from vtc.ops.host import on
from vtc.ops.similarity import as_float
from vtc.selectors.centering import blocks_to_centre, centred_tokens
from vtc.selectors.crops import pick_in_crops
from vtc.selectors.question.clip_text import AsksClip, check_clip

#: Added to the least relevant token's 0, so that none has a quality of 0.
_LEAST = 1e-6


def relevance(image: Tensor, text: Tensor) -> Tensor:
    """Mean cosine similarity of each visual token [n, P] to the texts [m, P], in one space: Tensor [n]."""
    return normalize(as_float(image), dim=-1) @ normalize(as_float(text), dim=-1).to(as_float(image).dtype).mean(dim=0)


def scaled(relevance: Tensor, weight: float = 1.0) -> Tensor:
    """Relevance [..., n] between the least and the most relevant token of an image, as a quality above 0.

    (r - min + 1e-6) / (max - min), and 1 where all are equal; with a weight θ below 1 exp(θ / (2 (1 - θ)) r), over the
    largest of these.
    """
    least, most = relevance.amin(dim=-1, keepdim=True), relevance.amax(dim=-1, keepdim=True)
    quality = (relevance - least + _LEAST) / torch.where(most > least, most - least, 1.0)
    quality = quality.masked_fill(most == least, 1.0)
    if weight == 1:
        return quality
    most = quality.amax(dim=-1, keepdim=True)  # a factor for all changes no choice, and keeps the numbers finite
    return torch.exp(weight / (2 * (1 - weight)) * (quality - most))


def conditional_order(features: Tensor, quality: Tensor, k: int) -> Tensor:
    """The greedy MAP of the process with the kernel diag(q) S diag(q), S cosine similarities (Algorithm 1).

    The first is the most relevant. Where no token adds anything any more (all lie in the span of those chosen),
    relevance decides. Ties: lowest index. A smaller k gives a prefix.

    Args:
        features: [G, N, D], the visual tokens as the language model sees them.
        quality: [G, N].
        k: tokens to choose, 1 <= k <= N.

    Returns:
        LongTensor [G, k] in the order of choice.
    """
    return ops.dpp_map(features, k, quality)


@register("cdpruner")
@dataclass
class CDPruner(AsksClip, Selector):
    """Keep tokens that are unlike each other and that the question asks for: the greedy maximum of a determinant.

    With `clip`, as published: relevance is minus the cosine similarity of CLIP's embeddings of token and question (the
    released code's sign: patches of CLIP are least like the text that describes them), read in the block that the
    projector reads, and scaled to 0…1 over all crops of an image; then each crop (thumbnail, tile, frame) is chosen in
    alone. Without it, as OpenVINO has it for other models: plus the mean similarity of the projected tokens to the
    embeddings of the question's tokens in the language model, at half weight; an image, or a video, is chosen in as a
    whole. Where there is no text, diversity decides alone. https://arxiv.org/abs/2506.10967

    Budget: the paper's, tokens in all: 192, 128 or 64 of LLaVA-1.5's 576, 640, 320 or 160 for all crops of LLaVA-NeXT.
    OpenVINO's pruning ratio in % is what goes: 100 · (1 - keep).

    Attributes:
        keep: share in (0, 1] or count of the visual tokens of an image. Default 1/9 (64 of LLaVA-1.5's 576).
        relevance_weight: θ of the relevance r: 1 takes r as it is, less exp(θ / (2 (1 - θ)) r), 0 diversity alone.
            None: 1 with `clip`, 0.5 without.
        clip: folder or hub id of the CLIP model that the vision tower comes from; give `tokenizer` with it.
        tokenizer: folder or hub id of the vision-language model's tokenizer, by which the question is read.
        centering: compare tokens without what all of them share, and weigh them by how far they stand from the others
            (Cen-Prune, arXiv 2608.30263). Default False: the published numbers of CDPruner are without.
    """

    signals: ClassVar[tuple[str, ...]] = ("question", "diversity")
    keep: Keep = 1 / 9
    relevance_weight: float | None = None
    clip: str | None = None
    tokenizer: str | None = None
    centering: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.relevance_weight is not None:
            way_out = "give a weight such as 0.5; 1 takes relevance as it is, 0 leaves it out"
            fields.check_share("relevance_weight", self.relevance_weight, way_out)
        fields.check_bool("centering", self.centering)
        check_clip(self.clip, self.tokenizer)

    def needs(self, parts: Parts) -> Needs:
        hidden = blocks_to_centre(parts, "cdpruner:centering=True") if self.centering else ()
        if self.clip is not None:
            _ = self._clip_text  # so that what can't be loaded is told before anything is changed
            if hidden:
                raise ValueError(
                    f"cdpruner: clip={self.clip!r} is for towers that come from CLIP, and that of {parts.family} does "
                    "not; leave clip and tokenizer out"
                )
            hidden = (parts.block(parts.feature_layer, "cdpruner:clip"),)
        return Needs(hidden=hidden, text=True)

    def select(self, visual: VisualTokens, k: int) -> Reduction:
        features, quality = visual.features, self._quality(visual)
        if self.centering:
            tokens = centred_tokens(visual if self.clip is None else replace(visual, hidden={}))
            features, quality = tokens.rows, quality * tokens.weight
        if self.clip is None:
            visual = replace(visual, crops=None)
        return pick_in_crops(visual, k, lambda of, part: conditional_order(of(features), of(quality), part))

    def _quality(self, visual: VisualTokens) -> Tensor:
        """Quality [G, N] of each token by the question; 0 at separators, 1 where there is no text."""
        device = visual.features.device
        tokens = on(device, (~visual.separators).nonzero()[:, 0])
        quality = torch.zeros(visual.features.shape[:2], device=device)
        weight = self.relevance_weight
        weight = (1.0 if self.clip is not None else 0.5) if weight is None else float(weight)
        for image in range(len(visual.features)):
            told = self._relevance(visual, image, tokens)
            quality[image, tokens] = 1.0 if told is None else scaled(told, weight).float()
        return quality

    def _relevance(self, visual: VisualTokens, image: int, tokens: Tensor) -> Tensor | None:
        """Relevance [n] of the image's `tokens`; None where there is no text."""
        if self.clip is not None:
            question = self._clip_text.question(visual.question[image]) if visual.question else ""
            if not question:
                return None
            (hidden,) = visual.hidden.values()
            text = self._clip_text.text(question, hidden.device, windows=True)
            return -relevance(self._clip_text.image(hidden[image, tokens]), text)
        if not visual.text or not len(visual.text[image]):
            return None
        return relevance(visual.features[image, tokens], on(visual.features.device, visual.text[image]))
