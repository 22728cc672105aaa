"""How selectors that merge crop by crop hand over what they decided."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vtc import ops
from vtc.attention.scores import Attention
from vtc.method.budget import share_out
from vtc.method.reduction import Reduction
from vtc.method.visual_tokens import VisualTokens
from vtc.ops.host import on
from vtc.ops.mixing import Mixing
from vtc.ops.similarity import as_float
from vtc.selectors.crops import crop_tokens


@dataclass(frozen=True)
class Merged:
    """What becomes of the n tokens of one crop, in each of G images.

    Attributes:
        sequence: LongTensor [G, m]: the places that the new tokens take, in the order in which they are made.
        source: LongTensor [G, M]: an old token.
        centre: LongTensor [G, M]: the one of `sequence` that it goes into.
        weight: Tensor [G, M]: with which weight.
    """

    sequence: Tensor
    source: Tensor
    centre: Tensor
    weight: Tensor

    @classmethod
    def untouched(cls, images: int, tokens: int, device: torch.device) -> "Merged":
        """All tokens as they are."""
        every = torch.arange(tokens, device=device).expand(images, -1)
        return cls(every, every, every, torch.ones(every.shape, device=device))

    def at(self, tokens: Tensor) -> "Merged":
        """The same, where token i is `tokens[i]`; LongTensor [n]."""
        return Merged(tokens[self.sequence], tokens[self.source], tokens[self.centre], self.weight)


def complement(tokens: int, chosen: Tensor) -> Tensor:
    """LongTensor [G, n - m], ascending: the tokens that are not `chosen` [G, m], each of which is another one."""
    taken = torch.zeros(len(chosen), tokens, dtype=torch.uint8, device=chosen.device).scatter_(1, chosen, 1)
    return taken.argsort(dim=1, stable=True)[:, : tokens - chosen.shape[1]]


def shares_of_crops(visual: VisualTokens, k: int | None) -> list[tuple[Tensor, int | None]]:
    """The tokens of each crop, LongTensor [n] on the device, and its part of `k` in proportion to them.

    Crops without tokens, or with a part of 0, are left out; without a `k` no part is said.
    """
    crops = [tokens for tokens in crop_tokens(visual) if len(tokens)]
    parts = [None] * len(crops) if k is None else share_out(k, [len(tokens) for tokens in crops])
    device = visual.features.device
    return [(on(device, tokens), part) for tokens, part in zip(crops, parts, strict=True) if part != 0]


def cls_full_width(attention: Attention) -> Tensor:
    """Attention probability [B, S] from row 0, the CLS token, over the full width: heads side by side, not split."""
    key = attention.key.float()
    query = attention.query[:, :, 0].float()
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    logits = torch.einsum("bhd,bhsd->bs", query, key)
    return (logits / (query.shape[1] * query.shape[2]) ** 0.5).softmax(dim=-1)


def attention_share(visual: VisualTokens, name: str, tokens: Tensor) -> Tensor:
    """Attention [G, n] of some tokens, to be a weight too: from CLS, or received as a share of theirs.

    What is received must not depend on what else the tower saw at once, as it does in towers that pack images.

    Args:
        visual: what `Needs.observe` calls `name`, or one block's attention received.
        name: of the attention from CLS.
        tokens: LongTensor [n], those of one crop.
    """
    if visual.observed:
        return as_float(visual.observed[name][:, tokens])
    (received,) = visual.received.values()
    score = as_float(received[:, tokens])
    return score / score.sum(dim=1, keepdim=True).clamp(min=torch.finfo(score.dtype).tiny)


def reduction_of(visual: VisualTokens, crops: list[Merged]) -> Reduction:
    """The decision about the image, crop behind crop.

    Where one patch makes one token, tokens are mixed in front of the projector and come in the order in which the crops
    have them; elsewhere the visual tokens themselves are, each at its own place.
    """
    sequence, source, centre, weight = (
        torch.cat([getattr(crop, name) for crop in crops], dim=1) for name in ("sequence", "source", "centre", "weight")
    )
    kept = sequence.sort(dim=1).values
    if visual.projection is None:
        sequence = kept
    k = sequence.shape[1]
    slot = torch.zeros(visual.features.shape[:2], dtype=torch.long, device=sequence.device)
    slot.scatter_(1, sequence, torch.arange(k, device=sequence.device).expand_as(sequence))
    mixing = Mixing(source, slot.gather(1, centre), weight)
    if visual.projection is None:
        return Reduction(kept, mixing)
    return Reduction(kept, mixing, visual.projection.apply(ops.merge(visual.projection.rows, mixing, k)))
