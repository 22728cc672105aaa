"""Recoverable Compression: what CLS attends to, what the question asks for, and the rest merged (arXiv 2409.01179)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from vtc import ops
from vtc.method import fields
from vtc.method.budget import Keep, share_out
from vtc.method.reduction import Reduction, top_k
from vtc.method.registry import register
from vtc.method.selector import Selector
from vtc.method.visual_tokens import Needs, VisualTokens
from vtc.model.parts import Parts
from vtc.ops.host import on
from vtc.ops.mixing import Mixing
from vtc.ops.similarity import as_float
from vtc.selectors.merging import cls_full_width
from vtc.selectors.outliers import outlier_count
from vtc.selectors.places import all_of
from vtc.selectors.question.clip_text import AsksClip, check_clip, text_score

#: Neighbours of the Local Outlier Factor: among all tokens, and among those that are left for merging.
LOF_ALL, LOF_REST = 20, 10
#: Weight of the text score beside the keys' similarity, and tokens merged into each centre.
TEXT_WEIGHT, NEIGHBOURS = 50.0, 32
#: Centres whose neighbours are sought at once: so many, or as many as have so many similarities (of float32: 4 MiB).
_CHUNK, _NUMBERS = 512, 2**20


@dataclass(frozen=True)
class Counts:
    """How many tokens survive for which reason.

    Attributes:
        visual: by the visual score.
        text: recovered by the text score.
        centres: merged into. Where there are any, one more token holds all that is left.
    """

    visual: int
    text: int
    centres: int

    @property
    def total(self) -> int:
        """Tokens in all."""
        return self.visual + self.text + self.centres + (self.centres > 0)

    def scaled(self, k: int) -> "Counts":
        """Counts in the same proportions, the last token counted with the centres, that add up to `k`.

        A lone token of the centres' part is kept by its visual score: a centre comes with the last token or not at all.
        """
        if not self.total:
            return Counts(k, 0, 0)
        visual, text, merged = share_out(k, [self.visual, self.text, self.centres + (self.centres > 0)])
        return Counts(visual + 1, text, 0) if merged == 1 else Counts(visual, text, max(merged - 1, 0))


@dataclass(frozen=True)
class Recovered:
    """What becomes of the n tokens of one image.

    Attributes:
        kept: LongTensor [v + t], kept as they are, ascending.
        centres: LongTensor [c], by visual score.
        last: LongTensor [0 or 1]: the place that the token takes that holds all that is left.
        source, centre, weight: [M]: a token, the survivor that it goes into, and its weight there.
    """

    kept: Tensor
    centres: Tensor
    last: Tensor
    source: Tensor
    centre: Tensor
    weight: Tensor

    def at(self, tokens: Tensor) -> "Recovered":
        """The same, where token i is `tokens[i]`; LongTensor [n]."""
        kept, centres, last = tokens[self.kept], tokens[self.centres], tokens[self.last]
        return Recovered(kept, centres, last, tokens[self.source], tokens[self.centre], self.weight)


def tokens_by_reason(visual: Tensor, text: Tensor | None, n_visual: int, n_text: int) -> tuple[Tensor, Tensor]:
    """The highest of `visual` [n], and of what is left the highest of `text` [n]: LongTensors, best first."""
    by_visual = top_k(visual, n_visual)
    if text is None:
        return by_visual, by_visual[:0]
    left = torch.ones_like(visual, dtype=torch.bool)
    left[by_visual] = False
    order = top_k(text, len(text))
    return by_visual, order[left[order]][:n_text]


def outlier_counts(visual: Tensor, text: Tensor | None) -> Counts:
    """How many tokens each part gets: its share of outliers (Local Outlier Factor) of the tokens that it may take.

    Only counts come from the outliers; which tokens survive goes by the scores. Before text outliers are counted, the
    text scores of tokens that the visual score keeps are set to the smallest.

    Args:
        visual: [n], visual score.
        text: [n], text score; None: none is recovered.
    """
    tokens = len(visual)
    n_visual = _part(tokens, int(outlier_count(visual, LOF_ALL)), tokens)
    by_visual = top_k(visual, n_visual)
    n_text = 0
    if text is not None:
        hidden = text.clone()
        hidden[by_visual] = text.min()
        n_text = _part(tokens - n_visual, int(outlier_count(hidden, LOF_ALL)), tokens)
    rest = remaining(tokens, torch.cat(tokens_by_reason(visual, text, n_visual, n_text)))
    centres = _part(len(rest), int(outlier_count(visual[rest], LOF_REST)), len(rest)) if len(rest) else 0
    return Counts(n_visual, n_text, min(centres, max(len(rest) - 1, 0)))


def _part(tokens: int, outliers: int, of: int) -> int:
    """`tokens` times the share of outliers, rounded down in floating point as the released code does it."""
    return int(tokens * (outliers / of))


def remaining(tokens: int, chosen: Tensor) -> Tensor:
    """Ascending LongTensor of the tokens that are not `chosen`."""
    left = torch.ones(tokens, dtype=torch.bool, device=chosen.device)
    left[chosen] = False
    return left.nonzero()[:, 0]


def recover(visual: Tensor, text: Tensor | None, keys: Tensor, counts: Counts) -> Recovered:
    """Choose the tokens, and merge what is left into the centres and one last token (Sec. 3).

    A centre adds, weighted by their visual score, the 32 others of the rest (all, if they are fewer) with the highest
    cosine similarity of keys plus 50 times the text score; these may belong to several centres, and be centres. The
    last token is the sum of all of the rest that are no centres, weighted by visual score.

    Args:
        visual: [n], visual score.
        text: [n], text score, or None.
        keys: [n, C], attention keys at full width.
        counts: counts.total <= n.
    """
    by_reason = tokens_by_reason(visual, text, counts.visual, counts.text)
    kept = torch.cat(by_reason).sort().values
    ones = visual.new_ones(len(kept) + counts.centres)
    if not counts.centres:
        return Recovered(kept, kept[:0], kept[:0], kept, kept, ones)
    rest = remaining(len(visual), kept)
    order = top_k(visual[rest], len(rest))  # places in `rest`, as `near` has them
    centres, others = order[: counts.centres], order[counts.centres :]
    unit = normalize(as_float(keys[rest]), dim=-1)
    bonus = 0.0 if text is None else TEXT_WEIGHT * text[rest]
    found = []
    for some in centres.split(max(1, min(_CHUNK, _NUMBERS // len(rest)))):
        near = (unit[some] @ unit.T + bonus).scatter_(1, some[:, None], float("-inf"))
        found.append(top_k(near, min(NEIGHBOURS, len(rest) - 1)).clone())  # a view holds all places
    nearest = torch.cat(found)
    centres, others, last, nearest = rest[centres], rest[others], rest[others[:1]], rest[nearest]
    source = torch.cat([kept, centres, nearest.flatten(), others])
    centre = torch.cat([kept, centres, centres.repeat_interleave(nearest.shape[1]), last.expand(len(others))])
    weight = torch.cat([ones, visual[nearest.flatten()], visual[others]])
    return Recovered(kept, centres, last, source, centre, weight)


@register("recoverable")
@dataclass
class Recoverable(AsksClip, Selector):
    """Keep what CLS attends to and what the question asks for, and merge the rest into centres and one last token.

    Read in the tower's last block: CLS attention at full width (heads not split), keys, and, with `clip`, the outputs.
    Where one patch makes one token, merging is done on what the projector reads, in the released code's order (kept
    tokens, centres by visual score, last token); elsewhere on the visual tokens, each at its own place. The last token
    stands at the place of the merged token with the highest visual score. Tiles are treated as one set of tokens, and
    so are the frames of a video; separators are dropped. Towers without CLS: attention received, as a share of the
    image's. https://arxiv.org/abs/2409.01179

    Three errors of the released code are mended: neighbours are sought by the keys of the tokens in question (there:
    of others), the number of centres comes from the number of remaining tokens (there: from the channels), and the text
    is the one after the picture, its end-of-text vector (there: what stands in front of it, at the padding). Flat
    scores leave `floor` tokens (there: none).

    Without `clip`, a variant of this package: the text score is the similarity of the projected tokens to the mean of
    the question's embeddings in the language model. Where there is no text, visual scores decide alone.

    Budget: the paper has none; outliers among the scores say how many tokens stay, as with keep=None here, about a
    tenth. With a `keep`, the numbers of visually chosen, recovered and centre tokens (the last one counted with the
    centres) keep their proportions and add up to exactly that.

    Attributes:
        keep: share in (0, 1] or count of the visual tokens of an image. None: the picture decides.
        floor: fewest tokens that keep=None leaves. Default 1.
        clip: folder or hub id of the CLIP model that the vision tower comes from; give `tokenizer` with it.
        tokenizer: folder or hub id of the vision-language model's tokenizer, by which the question is read.
    """

    signals: ClassVar[tuple[str, ...]] = ("saliency", "question", "merging")
    may_adapt = True

    keep: Keep | None = None
    floor: int = 1
    clip: str | None = None
    tokenizer: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        fields.check_int("floor", self.floor, "give the fewest tokens that may stay, such as 1", minimum=1)
        check_clip(self.clip, self.tokenizer)

    def needs(self, parts: Parts) -> Needs:
        last = parts.block(-1, "recoverable")
        if self.clip is not None:
            _ = self._clip_text  # so that what can't be loaded is told before anything is changed
        return Needs(
            received=() if parts.has_cls else (last,),
            observe={"cls": (last, cls_full_width)} if parts.has_cls else {},
            keys=(last,),
            hidden=() if self.clip is None else (last,),
            projection=True,
            text=True,
        )

    def select(self, visual: VisualTokens, k: int) -> Reduction:
        images, device = len(visual.features), visual.features.device
        if not self.adaptive and (whole := all_of(visual, k)) is not None:
            return whole
        tokens = on(device, (~visual.separators).nonzero()[:, 0])
        decided = [self._decide(visual, image, tokens, k) for image in range(images)]
        sequence = torch.stack([torch.cat([part.kept, part.centres, part.last]) for part in decided])
        kept = sequence.sort(dim=1).values
        if visual.projection is None:
            sequence = kept
        slot = torch.zeros(visual.features.shape[:2], dtype=torch.long, device=device)
        slot.scatter_(1, sequence, torch.arange(sequence.shape[1], device=device).expand_as(sequence))
        source, centre, weight = _stack(decided)
        mixing = Mixing(source, slot.gather(1, centre), weight)
        if visual.projection is None:
            return Reduction(kept, mixing)
        rows = ops.merge(visual.projection.rows, mixing, kept.shape[1])
        return Reduction(kept, mixing, visual.projection.apply(rows))

    def _decide(self, visual: VisualTokens, image: int, tokens: Tensor, k: int) -> Recovered:
        """What becomes of `tokens`, by their places within the image."""
        (keys,) = visual.keys.values()
        if visual.observed:
            score = as_float(visual.observed["cls"][image, tokens])
        else:  # a weight of what is merged, so that it must not depend on what else the tower saw at once
            (received,) = visual.received.values()
            score = as_float(received[image, tokens])
            score = score / score.sum().clamp(min=torch.finfo(score.dtype).tiny)
        text = self._text_score(visual, image, tokens)
        counts = outlier_counts(score, text)
        if not self.adaptive:
            counts = counts.scaled(k)
        elif counts.total < min(self.floor, len(tokens)):
            counts = counts.scaled(min(self.floor, len(tokens)))
        part = recover(score, text, keys[image, tokens].flatten(1), counts)
        return part.at(tokens)

    def _text_score(self, visual: VisualTokens, image: int, tokens: Tensor) -> Tensor | None:
        """Text score of the image's `tokens` [n]; None where there is no text."""
        if self.clip is not None:
            question = self._clip_text.question(visual.question[image]) if visual.question else ""
            (hidden,) = visual.hidden.values()
            return self._clip_text.score(hidden[image, tokens], question) if question else None
        if not visual.text or not len(visual.text[image]):
            return None
        text = as_float(visual.text[image]).mean(dim=0)
        return text_score(visual.features[image, tokens], on(visual.features.device, text))


def _stack(parts: list[Recovered]) -> tuple[Tensor, Tensor, Tensor]:
    """Source, centre and weight [G, M] of several images; shorter ones repeat their first entry with weight 0."""
    longest = max(len(part.source) for part in parts)
    short = [longest - len(part.source) for part in parts]
    source, centre = (
        torch.stack([torch.cat([part[name], part[name][:1].expand(n)]) for part, n in zip(map(vars, parts), short)])
        for name in ("source", "centre")
    )
    return source, centre, torch.stack([pad(part.weight, (0, n)) for part, n in zip(parts, short, strict=True)])
