"""PyramidDrop: drop a part of the visual tokens after each stage of the decoder (arXiv 2410.17247, CVPR 2025)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vtc.method.base import resolve_layers
from vtc.method.budget import Keep
from vtc.method.prune import Memory, Prune, Rows, Watch
from vtc.method.registry import register
from vtc.prunes.attention.fastv import last_query_attention
from vtc.prunes.profile import check_keeps, check_layers, geometric, rounded_down

#: Published for LLaVA-1.5 and LLaVA-NeXT: stages of 8 layers, so prune after 8, 16 and 24 of 32.
_LAYERS, _DEPTH = (8, 16, 24), 32


@register("pyramiddrop")
@dataclass
class PyramidDrop(Prune):
    """Drop, at the end of each stage of the decoder, the visual tokens that the last token of the prompt ignores.

    A token's score is the attention probability from the last token, a softmax over all keys, mean over heads, with q
    and k of the layer about to run: what the code behind the paper's numbers does, where the paper names the last layer
    of the stage before. Survivors are numbered anew. https://arxiv.org/abs/2410.17247

    Budget: the paper's λ is the share that each stage leaves of what it finds, so `keep` is λ to the power of the
    number of layers: λ = 0.5 with three of them is keep=0.125. Counted over all layers that is far more than `keep`:
    270 of 576 tokens on average, as published.

    Attributes:
        keep: share in (0, 1] or count of the row's visual tokens that is left after the last of the layers; each layer
            leaves the same share of what it finds. Counts are of the tokens at the first layer, rounded down, and can
            be 0.
        layers: decoder layers, from 0, in front of which tokens go (n of them have run then). None: the published
            8, 16, 24 of 32, scaled to the model's depth.
        keeps: what is left after each of the layers, shares or counts of the tokens at the first; in place of `keep`.
    """

    signals: ClassVar[tuple[str, ...]] = ("attention",)
    keep: Keep = 0.125
    layers: tuple[int, ...] | None = None
    keeps: tuple[Keep, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.layers = check_layers(self.layers, _LAYERS)
        self.keeps = check_keeps(self.keeps, self.layers or _LAYERS, (0.5, 0.25, 0.125))

    def schedule(self, num_layers: int) -> tuple[int, ...]:
        return resolve_layers(self.layers, _LAYERS, _DEPTH, num_layers)

    def count(self, present: int) -> int:
        return self.count_at(len(self.layers or _LAYERS) - 1, present)

    def count_at(self, stage: int, present: int) -> int:
        if self.keeps is not None:
            return min(rounded_down(keep, present) for keep in self.keeps[: stage + 1])
        return geometric(self.keep, present, stage, len(self.layers or _LAYERS))

    def watch(self, num_layers: int) -> Watch:
        return Watch(probe=True)

    def score(self, rows: Rows, memory: Memory) -> Tensor:
        return last_query_attention(rows.probe())
