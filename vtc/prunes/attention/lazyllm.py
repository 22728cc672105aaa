"""LazyLLM: later layers see fewer and fewer tokens, and each new token chooses again which (arXiv 2407.14057)."""

import math
from dataclasses import dataclass
from fractions import Fraction
from numbers import Integral
from typing import ClassVar

from torch import Tensor

from vtc.attention.scores import Attention
from vtc.method import fields
from vtc.method.base import resolve_layers
from vtc.method.budget import Keep
from vtc.method.prune import Memory, Prune, Rows, Watch
from vtc.method.registry import register
from vtc.prunes.attention.fastv import last_query_attention, last_query_row
from vtc.prunes.profile import check_layers

#: After 9, 19 and 28 of 32 layers, where 3/7, 5/7 and all of what is to go has gone.
_LAYERS, _DEPTH, _GONE = (9, 19, 28), 32, (Fraction(3, 7), Fraction(5, 7), Fraction(1))


@register("lazyllm")
@dataclass
class LazyLLM(Prune):
    """Drop visual tokens step by step in prefill, by the last token's attention; each decode step chooses anew.

    In front of a few decoder layers the visual tokens are ranked by the attention that they got from the newest token
    in the layer before, mean over heads, and only the first go on. Every decode step does the same with its own token,
    from all visual tokens of the prompt. A token that is wanted where it was never computed is computed then, from the
    hidden state with which it was dropped, at its own position: each token at most once in each layer. It sees the
    tokens before it that are chosen in this step. The paper ranks all tokens of a text model; that only visual tokens
    compete, where the layers are, and how many stay, are choices made here. https://arxiv.org/abs/2407.14057

    Budget: `keep` is what the layers after the last prune point see, in prefill and in each decode step. Memory is not
    saved to that extent: keys of tokens that were chosen once stay, and so does the hidden state of those that were
    not.

    Attributes:
        keep: share in (0, 1] or count of the row's visual tokens that is left in the end. Of what is to go, 3/7, 5/7
            and all has gone after the three layers: 0.3 leaves 0.7, 0.5, 0.3. Rounded up.
        layers: decoder layers, from 0, in front of which tokens are left out (n of them have run then). None: 9, 19, 28
            of 32, scaled to the model's depth. With another number than three, equally many go at each.
        revive: False: tokens that were dropped in prefill stay away, their states are not kept, and decode steps choose
            nothing.
    """

    signals: ClassVar[tuple[str, ...]] = ("attention",)
    keep: Keep = 0.3
    layers: tuple[int, ...] | None = None
    revive: bool = True
    positions: ClassVar[str] = "original"

    def __post_init__(self) -> None:
        super().__post_init__()
        fields.check_bool("revive", self.revive)
        self.layers = check_layers(self.layers, _LAYERS)

    @property
    def revives(self) -> bool:  # type: ignore[override]
        """Whether decode steps choose anew."""
        return self.revive

    def schedule(self, num_layers: int) -> tuple[int, ...]:
        return resolve_layers(self.layers, _LAYERS, _DEPTH, num_layers)

    def count(self, present: int) -> int:
        return self.count_at(len(self.layers or _LAYERS) - 1, present)

    def count_at(self, stage: int, present: int) -> int:
        stages = len(self.layers or _LAYERS)
        gone = _GONE[stage] if stages == len(_GONE) else Fraction(stage + 1, stages)
        if isinstance(self.keep, Integral):
            return math.ceil(present - gone * (present - min(int(self.keep), present)))
        return math.ceil(present * (1 - gone * (1 - Fraction(str(float(self.keep))))))

    def watch(self, num_layers: int) -> Watch:
        return Watch(attention=tuple(layer - 1 for layer in self.schedule(num_layers)))

    def on_attention(self, rows: Rows, attention: Attention, memory: Memory) -> None:
        memory["attention"] = last_query_attention(attention)

    def score(self, rows: Rows, memory: Memory) -> Tensor:
        return memory["attention"]

    def recall(self, attention: Attention) -> Tensor:
        return last_query_row(attention)
