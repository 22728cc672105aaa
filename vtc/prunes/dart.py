"""DART: keep what is least like a few pivots, without attention maps (arXiv 2502.11494, EMNLP 2025)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vtc.attention.scores import Attention
from vtc.method import fields
from vtc.method.budget import Keep
from vtc.method.prune import Decision, Memory, Prune, Rows, Watch
from vtc.method.registry import register
from vtc.ops.host import on, without_autocast
from vtc.ops.similarity import as_float, unit_rows


def key_norms(key: Tensor) -> Tensor:
    """L1 norm of each token's keys, all heads side by side: Tensor [B, S] in float32, of keys [B, H_kv, S, d]."""
    return key.float().abs().sum(dim=(1, 3))


def largest(norms: Tensor, among: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The tokens of the largest norms, largest first; the first of equal ones, NaN counts least.

    Args:
        norms: Tensor [B, n], not negative.
        among: BoolTensor [B, n]: tokens that may be chosen.
        most: how many of each row; fewer where there are fewer.

    Returns:
        LongTensor [B, p] of places, p at most `most`; BoolTensor [B, p]: False behind the last one of a row.
    """
    limit = torch.finfo(norms.dtype).max
    norms = norms.nan_to_num(0.0, limit, 0.0).masked_fill(~among, -1.0)
    order = norms.argsort(dim=1, descending=True, stable=True)[:, :most]
    return order, among.gather(1, order)


def least_similar(
    hidden: Tensor, candidates: Tensor, pivots: Tensor, there: Tensor, each: Tensor, budget: Tensor
) -> Tensor:
    """What the pivots choose in turn: each takes the candidates of the smallest cosine to it that are left.

    All cosines are computed at once; the rounds that follow depend on each other, and move no numbers to the host.

    Args:
        hidden: Tensor [B, n, D], of which cosines are taken; a zero row has 0 to all.
        candidates: BoolTensor [B, n].
        pivots: LongTensor [B, P], places, in the order of their turns.
        there: BoolTensor [B, P]: pivots that take part.
        each: LongTensor [B], what one of them takes at most.
        budget: LongTensor [B], what all of them take at most.

    Returns:
        BoolTensor [B, n]: chosen. Equally similar: lowest place first.
    """
    unit = unit_rows(hidden)
    cosine = unit.gather(1, pivots[:, :, None].expand(-1, -1, unit.shape[2])) @ unit.transpose(1, 2)
    left, chosen = budget[:, None], torch.zeros_like(candidates)
    for similarity, turn in zip(cosine.unbind(dim=1), there.unbind(dim=1), strict=True):
        rest = candidates & ~chosen
        rank = similarity.masked_fill(~rest, torch.inf).argsort(dim=1, stable=True).argsort(dim=1)
        taken = rest & (rank < torch.minimum(each[:, None], left)) & turn[:, None]
        chosen, left = chosen | taken, left - taken.sum(dim=1, keepdim=True)
    return chosen


def retained(
    hidden: Tensor, norms: Tensor, visual: Tensor, text: Tensor, count: Tensor, image_pivots: int, text_pivots: int
) -> Tensor:
    """The visual tokens that stay: pivots, and what is least like them, `count` in all.

    Args:
        hidden: Tensor [B, n, D], of which cosines are taken.
        norms: Tensor [B, n], by which pivots are chosen.
        visual: BoolTensor [B, n].
        text: BoolTensor [B, n]: tokens that text pivots are chosen from.
        count: LongTensor [B], at most the visual tokens of the row.
        image_pivots: how many visual tokens are pivots; they stay, and are among the `count`.
        text_pivots: how many tokens of the text steer only.

    Returns:
        BoolTensor [B, n].
    """
    images, first = largest(norms, visual, image_pivots)
    first = first & (torch.arange(images.shape[1], device=count.device) < count[:, None])
    texts, second = largest(norms, text, text_pivots)
    pivots, there = torch.cat([images, texts], dim=1), torch.cat([first, second], dim=1)
    kept = torch.zeros_like(visual).scatter(1, images, first)
    left, turns = count - first.sum(dim=1), there.sum(dim=1).clamp_min(1)
    each = torch.div(left + turns - 1, turns, rounding_mode="floor")
    return kept | least_similar(hidden, visual & ~kept, pivots, there, each, left)


@register("dart")
@dataclass
class DART(Prune):
    """Drop, in front of one decoder layer, the visual tokens that are most like a few pivots, and so like each other.

    Pivots are the visual tokens and the text tokens whose keys in the layer before have the largest L1 norm (after
    rotary embedding, all heads together). Image pivots and then text pivots, by falling norm, each take an equal part
    of the budget: the tokens of the smallest cosine to them, on the layer's input, that are left. Reads no attention
    map. Survivors keep their position ids; several images of a row are one set. The L1 norm of a key changes as rotary
    embedding turns it, so a padded row chooses as it would alone only where it is numbered from its own first token:
    `generate` does, a plain call of some models counts the padding unless it is given position ids. The released code
    visits pivots in the order of a Python set, and takes the cosine behind the model's last norm, whose weights scale
    the channels: a prune is not shown these, so here it is that of the input as it is. https://arxiv.org/abs/2502.11494

    Budget: the paper's 192, 128 and 64 of 576 are nominal: its code gives each of 8 pivots an eighth, rounded down, and
    keeps the 4 image pivots beside that, so that 188, 124 and 60 were run. Here exactly `keep` stay, pivots among them:
    keep=0.2222 is 128 of 576. Counted over all layers that is more than `keep`: the layers before see every token.

    Attributes:
        layer: decoder layer, from 0, that is the first to see fewer tokens.
        keep: share in (0, 1] or count of the row's visual tokens; a share is rounded half to even, to 1 at least.
        image_pivots: visual tokens that are pivots; they stay. Where `keep` is fewer, only those of the largest norms.
        text_pivots: text tokens that are pivots; fewer where there are fewer.
        text: where these are chosen: "after" the last visual token, as released, or from "all" text of the row.
    """

    signals: ClassVar[tuple[str, ...]] = ("diversity",)
    layer: int = 2
    keep: Keep = 0.2222
    image_pivots: int = 4
    text_pivots: int = 4
    text: Literal["after", "all"] = "after"
    positions: ClassVar[str] = "original"
    min_tokens: ClassVar[int] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        fields.check_int("layer", self.layer, "DART reads the keys of the layer before, so give 1 or more", 1)
        fields.check_int("image_pivots", self.image_pivots, "give how many visual tokens are pivots, such as 4", 1)
        fields.check_int("text_pivots", self.text_pivots, "give how many text tokens are pivots, such as 4, or 0", 0)

    def schedule(self, num_layers: int) -> tuple[int, ...]:
        return (self.layer,)

    def watch(self, num_layers: int) -> Watch:
        return Watch(attention=(self.layer - 1,))

    def on_attention(self, rows: Rows, attention: Attention, memory: Memory) -> None:
        memory["norms"] = key_norms(attention.key)[:, -attention.query.shape[2] :]

    def decide(self, rows: Rows, counts: Sequence[int], memory: Memory) -> Decision:
        text = (rows.instruction if self.text == "after" else rows.valid) & ~rows.visual
        hidden, count = as_float(rows.hidden.detach()), on(rows.visual.device, counts)
        with without_autocast(hidden.device):
            kept = retained(hidden, memory["norms"], rows.visual, text, count, self.image_pivots, self.text_pivots)
        return Decision(kept)
