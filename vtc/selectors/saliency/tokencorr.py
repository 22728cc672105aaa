"""Token-level correlation-guided compression: how much a crop repeats decides how many tokens it keeps.

arXiv 2407.14439.
"""

import math
import zlib
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vtc.method import fields
from vtc.method.budget import Keep
from vtc.method.reduction import Reduction, top_k
from vtc.method.registry import register
from vtc.method.selector import Selector
from vtc.method.visual_tokens import Needs, VisualTokens
from vtc.model.parts import Parts
from vtc.ops.host import on
from vtc.ops.mixing import Mixing
from vtc.ops.similarity import as_float, nearest
from vtc.selectors.crops import crop_tokens, share_by
from vtc.selectors.places import candidates

_CHUNK = 1024


def neighbour_count(keys: Tensor, alpha: float) -> Tensor:
    """How many other tokens have a key whose cosine similarity is above `alpha`; [n, d] -> LongTensor [n]."""
    unit = normalize(as_float(keys), dim=-1)
    counts = []
    for start in range(0, len(unit), _CHUNK):
        similar = unit[start : start + _CHUNK] @ unit.T > alpha
        similar.diagonal(offset=start).fill_(False)
        counts.append(similar.sum(dim=1))
    return torch.cat(counts)


def information_density(count: Tensor, limit: float) -> float:
    """Share of the tokens [n] that have at most `limit` neighbours: those that don't repeat."""
    return 1.0 - float((count > limit).double().mean())


def local_count(density: float, tokens: int) -> int:
    """Tokens that a crop of a given density keeps for its details: density · tokens rounded up, at least 1."""
    return min(max(math.ceil(density * tokens - 1e-6), 1), tokens)


def global_tokens(attention: Tensor) -> Tensor:
    """Upper outliers of a deep layer's CLS attention: above Q3 + 1.5 · (Q3 - Q1); [n] -> BoolTensor [n]."""
    attention = as_float(attention)
    q1, q3 = attention.quantile(on(attention.device, torch.tensor([0.25, 0.75], dtype=attention.dtype)))
    return attention > q3 + 1.5 * (q3 - q1)


def informative_order(deep: Tensor, local: Tensor) -> Tensor:
    """Tokens [n], best first: the global ones by `deep` attention, then the others by their `local` score."""
    outlier = global_tokens(deep)
    order = top_k(torch.where(outlier, as_float(deep), as_float(local)), len(deep))
    return order[outlier[order].to(torch.uint8).argsort(descending=True, stable=True)]


def union_count(deep: Tensor, local: Tensor, n_local: int) -> int:
    """Tokens that are global or among the `n_local` with the highest `local` score."""
    chosen = global_tokens(deep)
    chosen[top_k(as_float(local), n_local)] = True
    return int(chosen.sum())


def nearest_kept(keys: Tensor, tokens: Tensor, kept: Tensor) -> Tensor:
    """For each of `tokens` [n], itself if it is among `kept` [m], else the kept token of the nearest key by cosine.

    Args:
        keys: [N, d].
        tokens: LongTensor [n], places in 0…N-1.
        kept: LongTensor [m], places in 0…N-1.

    Returns:
        LongTensor [n], of `kept`; of equal ones the first.
    """
    unit, centres = (normalize(as_float(keys[places]), dim=-1) for places in (tokens, kept))
    _, best = nearest(unit[None], centres[None])
    return torch.where(torch.isin(tokens, kept), tokens, kept[best[0]])


def aggregation_weights(attention: Tensor, target: Tensor, k: int) -> Tensor:
    """Weights [M] of a mean weighted by `attention` [M] over all tokens with one `target` [M], in 0…k-1.

    Where the attention of all of them is 0, they count equally.
    """
    attention = as_float(attention).clamp(min=0)
    total = attention.new_zeros(k).index_add(0, target, attention)[target]
    count = attention.new_zeros(k).index_add(0, target, torch.ones_like(attention))[target]
    return torch.where(total > 0, attention / total, 1 / count)


def exponential_noise(tokens: int, seed: int, crop: int) -> Tensor:
    """Exp(1) numbers [tokens], a function of the arguments alone, not of the batch, device or global generator."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed},{tokens},0,{crop}".encode()))
    return torch.empty(tokens).exponential_(generator=generator)


@register("tokencorr")
@dataclass
class TokenCorr(Selector):
    """Keep as many tokens of each crop as don't repeat, where CLS looks, and fold the others into the nearest kept one.

    A crop is a thumbnail, a tile, or a frame. A token whose key is similar to too many others of its crop is redundant;
    the share of the others is the crop's information density. Kept are the outliers of a deep layer's CLS attention
    (global information) and the tokens with the highest CLS attention of a shallow layer, as many as the density says
    (local information). Every other token is folded into the kept token of its crop with the most similar key, weighted
    by deep CLS attention (a crop that keeps none: into the image's). No code was released, and what could be read
    leaves thresholds, layers and weights open: they are this package's choice. Keys are taken with all heads side by
    side. Separators are dropped. Towers without CLS: attention received instead, a deviation.
    https://arxiv.org/abs/2407.14439

    Budget: the paper has none; the density decides, as with keep=None here, at least one token per crop. With a `keep`,
    densities are scaled so that the crops' counts add up to exactly that, in the same ratio to each other (each crop at
    least one token where there are enough); within a crop global tokens go first.

    Attributes:
        keep: share in (0, 1] or count of the visual tokens of an image. None: the picture decides.
        alpha: cosine similarity of two keys, in [0, 1], above which tokens are neighbours.
        beta: share of a crop's tokens, in [0, 1]; a token with more neighbours is redundant.
        deep: tower block of the global attention and of the keys, from 0 or negative from the end. None: the last.
        shallow: tower block of the local attention. None: the last of the first third.
        sample: draw local tokens with their attention as probability (by an exponential race, without replacement), as
            in the paper. Default False: take the highest, so that nothing depends on chance.
        seed: of the draw, any int.
    """

    signals: ClassVar[tuple[str, ...]] = ("saliency", "diversity")
    may_adapt = True

    keep: Keep | None = None
    alpha: float = 0.7
    beta: float = 0.1
    deep: int | None = None
    shallow: int | None = None
    sample: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        fields.check_share("alpha", self.alpha, "give a cosine similarity such as 0.7")
        fields.check_share("beta", self.beta, "give a share of a crop's tokens such as 0.1")
        for name in ("deep", "shallow"):
            if getattr(self, name) is not None:
                fields.check_int(name, getattr(self, name), "give a block of the vision tower, or None for the default")
        fields.check_bool("sample", self.sample)
        fields.check_int("seed", self.seed, "give an int such as 0")

    def needs(self, parts: Parts) -> Needs:
        depth = len(parts.blocks)
        shallow = parts.block(max(round(depth / 3) - 1, 0) if self.shallow is None else self.shallow, "tokencorr")
        deep = parts.block(-1 if self.deep is None else self.deep, "tokencorr")
        if shallow > deep:
            raise ValueError(f"tokencorr: shallow is block {shallow}, behind deep, block {deep}; exchange them")
        blocks = (shallow, deep)
        return Needs(cls=blocks, keys=(deep,)) if parts.has_cls else Needs(received=blocks, keys=(deep,))

    def select(self, visual: VisualTokens, k: int) -> Reduction:
        images = len(visual.features)
        if not self.adaptive:
            places = candidates(visual, k)
            if len(places) == k:
                return Reduction.of(on(visual.features.device, places).expand(images, -1))
        crops = [on(visual.features.device, tokens) for tokens in crop_tokens(visual)]
        crops = [tokens for tokens in crops if len(tokens)]
        decided = [self._decide(visual, image, crops, k) for image in range(images)]
        kept, source, target, weight = (torch.stack(parts) for parts in zip(*decided, strict=True))
        return Reduction(kept, Mixing(source, target, weight))

    def _decide(self, visual: VisualTokens, image: int, crops: list[Tensor], k: int) -> tuple[Tensor, ...]:
        """For one image: LongTensor [k], the kept tokens, and [M] each of source, target and weight of its mixing."""
        scores = visual.cls or visual.received
        shallow, deep = scores[min(scores)][image], scores[max(scores)][image]
        (keys,) = (key[image].flatten(1) for key in visual.keys.values())
        local = [self._local(shallow[tokens], crop) for crop, tokens in enumerate(crops)]
        wanted = [self._wanted(keys[tokens]) for tokens in crops]
        if self.adaptive:
            counts = [union_count(deep[t], score, n) for t, score, n in zip(crops, local, wanted, strict=True)]
        else:
            counts = _one_each(share_by(k, wanted, [len(tokens) for tokens in crops]))
        picks = [
            tokens[informative_order(deep[tokens], score)[:count]]
            for tokens, score, count in zip(crops, local, counts, strict=True)
        ]
        kept = torch.cat(picks).sort().values
        source = torch.cat(crops)
        own = [pick if len(pick) else kept for pick in picks]
        centre = torch.cat(
            [nearest_kept(keys, t, centres.sort().values) for t, centres in zip(crops, own, strict=True)]
        )
        target = torch.searchsorted(kept, centre)
        return kept, source, target, aggregation_weights(deep[source], target, len(kept))

    def _local(self, shallow: Tensor, crop: int) -> Tensor:
        if not self.sample:
            return shallow
        noise = on(shallow.device, exponential_noise(len(shallow), self.seed, crop))
        return as_float(shallow) / noise

    def _wanted(self, keys: Tensor) -> int:
        density = information_density(neighbour_count(keys, self.alpha), self.beta * len(keys))
        return local_count(density, len(keys))


def _one_each(counts: list[int]) -> list[int]:
    """`counts` with one for each part that has none, taken from the largest, as long as there are enough."""
    if sum(counts) < len(counts):
        return counts
    counts = list(counts)
    for i, count in enumerate(counts):
        if not count:
            counts[counts.index(max(counts))] -= 1
            counts[i] = 1
    return counts
