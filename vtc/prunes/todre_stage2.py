"""ToDRE, stage 2: late in the decoder all visual tokens go, where text and picture attend little to each other.

arXiv 2505.18757.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import ClassVar

import torch
from torch import Tensor

from vtc.attention.scores import Attention
from vtc.method import fields
from vtc.method.prune import Decision, Memory, Prune, Rows, Watch
from vtc.method.registry import register


def text_after(visual: Tensor, valid: Tensor) -> Tensor:
    """Text that comes after the first visual token of its row: BoolTensor [B, n] of `visual` and `valid` [B, n]."""
    return valid & ~visual & (visual.cumsum(dim=1) > 0)


def cross_attention(attention: Attention, text: Tensor, visual: Tensor, chunk: int = 256) -> tuple[Tensor, Tensor]:
    """Mean attention of the text tokens to the visual ones, and of the visual tokens to the text (r_tv, r_vt).

    The rows of attention sum to 1, so that the share of a row's mass is the mass itself. Queries are worked through in
    chunks, once for both: memory stays O(chunk · S).

    Args:
        attention: q and k of a layer with n new tokens.
        text: BoolTensor [B, n].
        visual: BoolTensor [B, n].
        chunk: queries at a time.

    Returns:
        Two Tensors [B] in float32: r_tv, NaN where a row has no text; r_vt, NaN where it has no visual token.
    """
    length = visual.shape[1]
    keys = torch.stack([visual, text], dim=2).float()
    queries = torch.stack([text, visual], dim=1).float()
    mass = keys.new_zeros(len(keys), 2)
    for start in range(0, length, chunk):
        index = torch.arange(start, min(start + chunk, length), device=visual.device)
        given = attention.rows(index.expand(len(keys), -1))[:, :, -length:] @ keys
        mass += (queries[:, :, index].transpose(1, 2) * given).sum(dim=1)
    text_to_visual, visual_to_text = (mass / queries.sum(dim=2)).unbind(dim=1)
    return text_to_visual, visual_to_text


def check_threshold(threshold: object) -> None:
    """Check that `threshold` is a number from 0 on.

    Raises:
        TypeError: not a number (bool included).
        ValueError: negative or NaN.
    """
    way_out = "give a share of attention such as 0.1; 0 never drops, above 1 always"
    if isinstance(threshold, bool) or not isinstance(threshold, Real):
        raise TypeError(f"threshold={threshold!r} is a {type(threshold).__name__}, not a number; {way_out}")
    if not float(threshold) >= 0:
        raise ValueError(f"threshold={threshold!r} is not 0 or more; {way_out}")


@register("todre_stage2")
@dataclass
class TodreStage2(Prune):
    """Drop all visual tokens of a row behind one late decoder layer, if that layer hardly relates them to the text.

    Both must be below the threshold: the mean attention of the text to the visual tokens, and of the visual tokens to
    the text. The text is what follows the first visual token; under a causal mask the second is exactly 0 where all
    text follows all visual tokens. A row without such text keeps its tokens. Later layers, and later tokens in them,
    see text alone, at its old position ids; up to that layer the visual tokens stay in the cache. The paper gives no
    code: what is text, and which layer "7L/8" is, are our reading. https://arxiv.org/abs/2505.18757

    Budget: none; each row of the batch keeps all of its visual tokens or none, by what it shows. The fewer the first
    stage leaves, the more often they go.

    Attributes:
        threshold: tau, what both ratios must be below. 0 never drops, more than 1 always. Worth calibrating for a
            model: the published 0.1 belongs to another definition of the text.
        layers: decoder layers, from 0 and ascending, in whose attention it is decided; the first at which the ratios
            are low enough drops, in front of the next layer. None: 7/8 of the depth, rounded down, and at most the
            last but one.
    """

    signals: ClassVar[tuple[str, ...]] = ("attention",)
    threshold: float = 0.1
    layers: tuple[int, ...] | None = None
    positions: ClassVar[str] = "original"
    may_adapt: ClassVar[bool] = True
    keep = None

    def __post_init__(self) -> None:
        check_threshold(self.threshold)
        if self.layers is not None:
            way_out = "give decoder layers, ascending, such as (28,), or None for 7/8 of the depth"
            self.layers = fields.as_tuple("layers", self.layers, way_out)
            for index, layer in enumerate(self.layers):
                fields.check_int(f"layers[{index}]", layer, way_out, 0)
            if list(self.layers) != sorted(set(self.layers)):
                raise ValueError(f"layers={self.layers!r} is not ascending; {way_out}")

    @property
    def adaptive(self) -> bool:
        """Whether the content decides: a threshold of 0 leaves everything as it is."""
        return self.threshold > 0

    def schedule(self, num_layers: int) -> tuple[int, ...]:
        """Layers (index from 0, ascending) in front of which tokens are removed: those behind the deciding ones.

        Raises:
            ValueError: a deciding layer has none behind it.
        """
        layers = (min(7 * num_layers // 8, num_layers - 2),) if self.layers is None else self.layers
        for layer in layers:
            if not 0 <= layer < num_layers - 1:
                raise ValueError(
                    f"{self.name}: there is no layer behind layer {layer} of {num_layers}, so nothing could be dropped "
                    f"there; give layers from 0 to {num_layers - 2}"
                )
        return tuple(layer + 1 for layer in layers)

    def watch(self, num_layers: int) -> Watch:
        return Watch(attention=tuple(layer - 1 for layer in self.schedule(num_layers)) if self.adaptive else ())

    def on_attention(self, rows: Rows, attention: Attention, memory: Memory) -> None:
        if memory and not rows.visual.any():
            return  # an earlier layer has dropped them all
        text = text_after(rows.visual, rows.valid)
        memory["text_to_visual"], memory["visual_to_text"] = cross_attention(attention, text, rows.visual)

    def decide(self, rows: Rows, counts: Sequence[int], memory: Memory) -> Decision:
        unrelated = (memory["text_to_visual"] < self.threshold) & (memory["visual_to_text"] < self.threshold)
        return Decision(rows.visual & ~unrelated[:, None])
