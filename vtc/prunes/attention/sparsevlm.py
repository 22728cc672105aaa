"""SparseVLM: keep what chosen words of the instruction look at, and merge the best of the rest.

arXiv 2410.04417, ICML 2025.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vtc.attention.scores import Attention
from vtc.method import fields
from vtc.method.base import resolve_layers
from vtc.method.budget import Keep
from vtc.method.prune import Decision, Memory, Prune, Rows, Watch
from vtc.method.registry import register
from vtc.ops.host import on
from vtc.prunes.attention.raters import choose_raters, corrected_attention, rank_of, relevance, strongest_heads
from vtc.prunes.attention.recycling import clusters, laid_out, most_kept, recycle
from vtc.prunes.profile import check_keeps, check_layers, geometric, rounded_down

#: Published for LLaVA-1.5: prune at the output of layers 2, 6 and 15 of 32 (from 0), in front of those that follow.
_LAYERS, _DEPTH = (3, 7, 16), 32


@register("sparsevlm")
@dataclass
class SparseVLM(Prune):
    """Keep, at three decoder layers, the visual tokens that the raters look at, and merge the best of the others.

    Raters are the words after the last image whose embeddings the image's embeddings ask for more than the mean. A
    token's score is the attention probability from them in the layer before, mean over raters and heads. Of what is not
    kept, the best three tenths are clustered by density peaks and each cluster becomes its mean; merged tokens stand
    behind the kept ones of their image, and all are numbered anew (on models with several position axes they stand at
    their cluster's centre). As released in v1.5, without its random noise of 1e-6: ties go to the first token. The
    paper has raters at the mean too, clusters by cosine, and sums. https://arxiv.org/abs/2410.04417

    Budget: the released lists say how many tokens are kept at each layer; merged ones (1 to 16) come on top: `keeps`.
    `keep` counts both. Counted over all layers that is far more than `keep`.

    Attributes:
        keep: share in (0, 1] or count of the row's visual tokens, merged ones included, that is left after the last of
            the layers; each layer leaves the same share of what it finds, rounded down.
        layers: decoder layers, from 0, in front of which tokens go, by the attention of the layer before. None: the
            published 3, 7, 16 of 32, scaled to the model's depth.
        keeps: tokens kept at each of the layers without merged ones, shares or counts of the tokens at the first; in
            place of `keep`. One token at least is not kept; where it would only be merged with itself, nothing changes.
        recycle: whether to merge; False drops what is not kept.
        version: "1.5", or "plus" (SparseVLM+, released as v2.0): attention divided by what rotary positions alone give,
            of those half of the heads that then look at the image most; no merging; tokens keep their position ids.
        rank: (scale, bias) of v1.0, in place of `keep` and `keeps`: the picture decides. Kept are rank · scale + bias
            tokens, rank being that of the raters' attention to the image; all where the rank is full.
    """

    signals: ClassVar[tuple[str, ...]] = ("attention", "merging")
    keep: Keep = 0.25
    layers: tuple[int, ...] | None = None
    keeps: tuple[Keep, ...] | None = None
    recycle: bool = True
    version: Literal["1.5", "plus"] = "1.5"
    rank: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        self.version = str(self.version)  # type: ignore[assignment]  # in a spec string, 1.5 is a number
        super().__post_init__()
        self.layers = check_layers(self.layers, _LAYERS)
        self.keeps = check_keeps(self.keeps, self.layers or _LAYERS, (300, 200, 110))
        fields.check_bool("recycle", self.recycle)
        if self.rank is not None:
            self.rank = _check_rank(self.rank)
            if self.keeps is not None:
                raise ValueError(f"keeps={self.keeps!r} beside rank={self.rank!r}: the rank decides; give one of them")

    @property
    def positions(self) -> str:  # type: ignore[override]
        """Survivors are numbered anew, but in SparseVLM+."""
        return "original" if self.version == "plus" else "packed"

    @property
    def adaptive(self) -> bool:
        """Whether the rank decides how many tokens stay."""
        return self.rank is not None

    @property
    def merges(self) -> bool:
        """Whether tokens that are not kept are merged."""
        return self.recycle and self.version == "1.5"

    def schedule(self, num_layers: int) -> tuple[int, ...]:
        return resolve_layers(self.layers, _LAYERS, _DEPTH, num_layers)

    def count(self, present: int) -> int:
        return self.count_at(len(self.layers or _LAYERS) - 1, present)

    def count_at(self, stage: int, present: int) -> int:
        if self.adaptive:
            return present
        if self.keeps is None:
            return geometric(self.keep, present, stage, len(self.layers or _LAYERS))
        left = present
        for keep in self.keeps[: stage + 1]:
            kept = min(rounded_down(keep, present), max(left - 1, 0))
            left = kept + (clusters(left - kept) if self.merges else 0)
        return left

    def watch(self, num_layers: int) -> Watch:
        return Watch(attention=tuple(layer - 1 for layer in self.schedule(num_layers)), entry=True)

    def on_entry(self, rows: Rows, memory: Memory) -> None:
        text = rows.instruction[:, -rows.tail :]
        raters = choose_raters(relevance(rows.hidden, rows.visual, text), text)
        memory["raters"] = torch.nn.functional.pad(raters, (rows.visual.shape[1] - rows.tail, 0))

    def on_attention(self, rows: Rows, attention: Attention, memory: Memory) -> None:
        raters = (memory["raters"] & rows.valid)[:, -rows.tail :]
        weights = raters / raters.sum(dim=1, keepdim=True).clamp_min(1)
        if self.version == "plus":
            memory["score"] = self._corrected(rows, attention, weights)
        else:
            memory["score"] = attention.received(weights)[:, -rows.visual.shape[1] :]
        if rows.stage == 0:
            memory["reached"] = rows.visual.sum(dim=1)
        if self.adaptive:
            memory["rank"] = rank_of(attention, raters, rows.visual)

    def decide(self, rows: Rows, counts: Sequence[int], memory: Memory) -> Decision:
        score, present = memory["score"], rows.visual.sum(dim=1)
        limits = torch.finfo(score.dtype)
        score = score.nan_to_num(limits.min, limits.max, limits.min).masked_fill(~rows.visual, -torch.inf)
        order = score.argsort(dim=1, descending=True, stable=True)
        limit = _most_present(rows)
        kept, merged = self._shares(rows, counts, memory, present, limit)
        alive = rows.visual & (order.argsort(dim=1) < kept[:, None])
        if not self.merges:
            return Decision(alive)
        again = recycle(rows.hidden, order, kept, present - kept, merged, limit)
        return laid_out(rows.hidden, rows.visual, alive, again, rows.packed)

    def _shares(
        self, rows: Rows, counts: Sequence[int], memory: Memory, present: Tensor, limit: int
    ) -> tuple[Tensor, Tensor]:
        """How many tokens of each row are kept, and how many clusters follow: LongTensors [B]."""
        if self.rank is not None:
            scale, bias = self.rank
            kept = torch.minimum((memory["rank"].double() * scale + bias).long(), present - 1).clamp_min(0)
            merged = clusters(present - kept) if self.merges else torch.zeros_like(kept)
            whole = (memory["rank"] >= present) | (kept + merged == present)  # one would be merged with itself
            return torch.where(whole, present, kept), merged.masked_fill(whole, 0)
        total = on(present.device, counts)
        if not self.merges:
            return total, torch.zeros_like(total)
        kept = most_kept(present, total, limit)
        if self.keeps is not None:
            keep = self.keeps[rows.stage]
            wanted = torch.full_like(present, int(keep))
            if not isinstance(keep, Integral):
                wanted = (memory["reached"].double() * keep).floor().long()
            wanted = torch.minimum(wanted, present - 1)
            fits = (total < present) & (wanted + clusters(present - wanted) == total)
            kept = torch.where(fits, wanted, kept)
        return kept, total - kept

    def _corrected(self, rows: Rows, attention: Attention, weights: Tensor) -> Tensor:
        """Scores [B, n] of SparseVLM+.

        Raises:
            ValueError: the layer is called without rotary tables.
        """
        if rows.rotary is None:
            raise ValueError(
                f"sparsevlm: version='plus' needs the rotary tables of layer {rows.layer}, a row for each token, and "
                "this model gives it none or others; use version='1.5'"
            )
        received = corrected_attention(attention, weights, rows.rotary)
        heads = strongest_heads(received, rows.visual, max(received.shape[1] // 2, 1))
        return received.gather(1, heads[:, :, None].expand(-1, -1, received.shape[2])).mean(dim=1)


def _most_present(rows: Rows) -> int:
    """No row has more visual tokens (known without asking the device)."""
    given = [0] * rows.visual.shape[0]
    for image in rows.images:
        given[image.row] += len(image)
    return min(max(given), rows.visual.shape[1]) if any(given) else rows.visual.shape[1]


def _check_rank(rank: object) -> tuple[float, float]:
    way_out = "give (scale, bias): as many tokens are kept as rank · scale + bias says"
    checked = fields.as_tuple("rank", rank, way_out)
    if len(checked) != 2:
        raise ValueError(f"rank={checked!r} has {len(checked)} entries; {way_out}")
    for value in checked:
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"rank={checked!r} holds a {type(value).__name__}; {way_out}")
        if not math.isfinite(value):
            raise ValueError(f"rank={checked!r} is not finite; {way_out}")
    return checked[0], checked[1]
