"""MMTok: cover the question's words and the picture at once (arXiv 2508.18264, ICLR 2026)."""

from dataclasses import dataclass
from functools import cached_property
from numbers import Real
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
from vtc.selectors.crops import OfCrops, pick_in_crops
from vtc.selectors.question.reading import Reader

#: Shorter rows are not stretched to length 1.
_SHORTEST = 1e-8


def demands(
    text: Tensor,
    features: Tensor,
    tower: Tensor,
    text_temperature: float = 0.02,
    vision_temperature: float = 0.2,
    alpha: float = 0.5,
) -> Tensor:
    """How well each visual token serves each word and each visual token: what is to be covered (eq. 4 to 8).

    A softmax over the visual tokens of cosine similarities, divided by the number of words, or of tokens; the part of
    the visual tokens times alpha.

    Args:
        text: [G, m, D], embeddings of the words; rows of NaN stand for no word.
        features: [G, N, D], the visual tokens as the language model sees them.
        tower: [G, N, C], the same in front of the projector.
        text_temperature: what similarities of words are divided by.
        vision_temperature: what similarities of visual tokens are divided by.
        alpha: weight of the visual tokens' demands.

    Returns:
        Tensor [G, m + N, N] in float32.
    """
    there = ~text.isnan().any(dim=2, keepdim=True)
    words, seen, inner = (normalize(as_float(rows).float(), dim=-1, eps=_SHORTEST) for rows in (text, features, tower))
    of_words = (words @ seen.mT / text_temperature).softmax(dim=-1) / there.sum(dim=1, keepdim=True).clamp_min(1)
    of_tokens = (inner @ inner.mT / vision_temperature).softmax(dim=-1) * (alpha / features.shape[1])
    return torch.cat([of_words.masked_fill_(~there, 0.0), of_tokens], dim=1)


def padded_patches(width: int, height: int, side: int) -> Tensor:
    """Patches that lie wholly in the border which makes a picture square: BoolTensor [side · side].

    As released: the short side is scaled to side · 14 pixels over the long one, the border is split evenly, the smaller
    half first.

    Args:
        width: of the picture, in pixels.
        height: of it.
        side: patches of 14 pixels on each side of the square.
    """
    pixels = side * 14
    short = round(min(width, height) * pixels / max(width, height))
    first = (pixels - short) // 2
    before, behind = first // 14, (pixels - short - first) // 14
    line = torch.zeros(side, dtype=torch.bool)
    line[:before] = True
    line[side - behind :] = True
    padding = line[:, None] if width >= height else line[None]
    return padding.expand(side, side).flatten()


def choose(values: Tensor, k: int, padding: Tensor | None = None) -> Tensor:
    """The greedy cover of demands; padding comes last, in order.

    Args:
        values: [G, U, N], from `demands`.
        k: tokens to choose, 1 <= k <= N.
        padding: BoolTensor [N] on the CPU: tokens that are no candidates; None: all are.

    Returns:
        LongTensor [G, k] in the order of choice.
    """
    if padding is None or not padding.any():
        return ops.facility_location(values, k)
    allowed, last = (on(values.device, which.nonzero()[:, 0]) for which in (~padding, padding))
    picks = ops.facility_location(values[:, :, allowed], min(k, len(allowed)))
    rest = last[: k - picks.shape[1]].expand(len(values), -1)
    return torch.cat([allowed[picks], rest], dim=1)


@register("mmtok")
@dataclass
class MMTok(Selector):
    """Keep the tokens that cover both the words of the question and the picture.

    Words are compared with the projected tokens by their embeddings in the language model, tokens among themselves by
    what the tower gives the projector. Each crop (thumbnail, tile, frame) is chosen in alone, for the same words. The
    question is the text behind the picture, of which every token counts; with a `tokenizer` the words that a picture
    may show, as released for LLaVA: no stop words, no stock sentences, no template. Without any text the picture alone
    is covered. https://arxiv.org/abs/2508.18264

    Budget: the paper's, tokens in all: 192, 128 or 64 of LLaVA-1.5's 576, 640, 320 or 160 for all crops of LLaVA-NeXT,
    a share for Qwen2.5-VL, which the released code rounds down.

    Attributes:
        keep: share in (0, 1] or count of the visual tokens of an image. Default 1/9 (64 of LLaVA-1.5's 576).
        text_temperature: what similarities of words are divided by. Default 0.02 (LLaVA); for Qwen2.5-VL 0.01.
        vision_temperature: what similarities of visual tokens are divided by.
        alpha: weight of the picture beside the words.
        tokenizer: folder or hub id of the vision-language model's tokenizer, by which the question is read.
        picture: (width, height) in pixels of a picture that was padded to a square: patches that are nothing but
            padding are kept last, as released for LLaVA-1.5. None: nothing was padded.
    """

    signals: ClassVar[tuple[str, ...]] = ("question", "coverage")
    keep: Keep = 1 / 9
    text_temperature: float = 0.02
    vision_temperature: float = 0.2
    alpha: float = 0.5
    tokenizer: str | None = None
    picture: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("text_temperature", "above 0"), ("vision_temperature", "above 0"), ("alpha", "0 or more")):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Real):
                raise TypeError(f"{name}={value!r} is a {type(value).__name__}; give a number such as 0.2")
            if not 0 <= float(value) < float("inf") or (least == "above 0" and not value):
                raise ValueError(f"{name}={value!r} is not {least} and finite; give a number such as 0.2")
        if self.tokenizer is not None and not isinstance(self.tokenizer, str):
            raise TypeError(
                f"tokenizer={self.tokenizer!r} is a {type(self.tokenizer).__name__}; give a folder or hub id"
            )
        if self.picture is not None:
            way_out = "give (width, height) in pixels, such as (640, 480), or None"
            self.picture = fields.as_tuple("picture", self.picture, way_out)
            if len(self.picture) != 2:
                raise ValueError(f"picture={self.picture!r} is not of two numbers; {way_out}")
            for index, value in enumerate(self.picture):
                fields.check_int(f"picture[{index}]", value, way_out, 1)

    @cached_property
    def _reader(self) -> Reader:
        assert self.tokenizer is not None
        return Reader(self.tokenizer)

    def needs(self, parts: Parts) -> Needs:
        if self.tokenizer is not None:
            _ = self._reader  # so that what can't be loaded is told before anything is changed
        block = parts.feature_layer if parts.has_cls else -1
        return Needs(hidden=(parts.block(block, "mmtok"),), text=True)

    def select(self, visual: VisualTokens, k: int) -> Reduction:
        words = self._words(visual)
        (tower,) = visual.hidden.values()
        temperatures = self.text_temperature, self.vision_temperature, self.alpha

        def pick(of: OfCrops, part: int) -> Tensor:
            features = of(visual.features)
            text = words.repeat_interleave(len(features) // len(words), dim=0)
            return choose(demands(text, features, of(tower), *temperatures), part, self._padding(features.shape[1]))

        return pick_in_crops(visual, k, pick)

    def _padding(self, tokens: int) -> Tensor | None:
        """Which tokens of a crop are padding."""
        side = round(tokens**0.5)
        return None if self.picture is None or side * side != tokens else padded_patches(*self.picture, side)

    def _words(self, visual: VisualTokens) -> Tensor:
        """Embeddings [G, m, D] of the words of each image's question; rows of NaN where another has more."""
        texts = list(visual.text) or [visual.features.new_zeros(0, visual.features.shape[2])] * len(visual.features)
        if self.tokenizer is not None:
            texts = [
                text[on(text.device, torch.tensor(self._reader.tokens_of(ids), dtype=torch.long))]
                for text, ids in zip(texts, visual.question, strict=True)
            ]
        rows = torch.nn.utils.rnn.pad_sequence(list(texts), batch_first=True, padding_value=float("nan"))
        return on(visual.features.device, rows)
