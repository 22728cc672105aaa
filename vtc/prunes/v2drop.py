"""V2Drop: drop the visual tokens that layers hardly change any more (arXiv 2509.01552, CVPR 2026)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from vtc.method import fields
from vtc.method.base import resolve_layers
from vtc.method.budget import Keep
from vtc.method.prune import Memory, Prune, Rows, Watch
from vtc.method.registry import register
from vtc.prunes.profile import check_layers, geometric, rounded_down

#: Published for LLaVA-1.5: prune in front of layers 3, 17 and 22 of 32.
_LAYERS, _DEPTH = (3, 17, 22), 32


def variation(before: Tensor, after: Tensor) -> Tensor:
    """How much one decoder layer changed each token: the length of what it added, not divided by the state's.

    Args:
        before: Tensor [..., D], the layer's input.
        after: Tensor [..., D], its output, which is the input of the next.

    Returns:
        Tensor [...] in float32 (float64 stays).
    """
    before, after = (x if x.element_size() == 8 else x.float() for x in (before, after))
    return (after - before).norm(dim=-1)


@register("v2drop")
@dataclass
class V2Drop(Prune):
    """Drop, in front of three decoder layers, the visual tokens that the layer before them changed least.

    The change is the L2 norm of the difference between a token's hidden state in front of the layer and in front of the
    one before it. Reads no attention map and no text. Survivors keep their position ids; several images of a row are
    one set. As released, where all shall go one token stays. https://arxiv.org/abs/2509.01552

    Budget: the paper's percentages are what goes of what is still there, at each of the layers: drops of 50, 70 and
    100 % are keeps=(0.5,0.3,0), 193.8 of 576 tokens on average over all layers. `keep` is what is left behind the
    layers before the last, equal shares at each: the released 50, 50 and 100 % are keep=0.25. At keep=1.0, or where no
    more tokens than such a count are there, nothing goes; just below it the last layer drops all but one: the limit is
    not the identity.

    Attributes:
        keep: share in (0, 1] or count of the row's visual tokens that is left in front of the last of the layers, where
            all of them go; each layer before it leaves the same share of what it finds. Rounded down.
        layers: decoder layers, from 0, in front of which tokens go (n of them have run then). None: the published
            3, 17, 22 of 32, scaled to the model's depth.
        keeps: shares in [0, 1] that the layers, the last one too, leave of what each finds, rounded down; in place of
            `keep`.
        last: what a layer leaves where that rounds down to nothing: "one" token, as released, or "none".
    """

    signals: ClassVar[tuple[str, ...]] = ("change",)
    keep: Keep = 0.25
    layers: tuple[int, ...] | None = None
    keeps: tuple[float, ...] | None = None
    last: Literal["one", "none"] = "one"
    positions: ClassVar[str] = "original"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.layers = check_layers(self.layers, _LAYERS)
        if self.keeps is None:
            if len(self.layers or _LAYERS) == 1:
                raise ValueError(
                    f"layers={self.layers!r} leaves keep={self.keep!r} no layer, as all tokens go in front of the last "
                    "one; give keeps, such as (0.25,)"
                )
            return
        way_out = "give the share that each layer leaves of what it finds, e.g. (0.5, 0.3, 0)"
        self.keeps = fields.as_tuple("keeps", self.keeps, way_out)
        for index, share in enumerate(self.keeps):
            fields.check_share(f"keeps[{index}]", share, way_out)
        wanted = len(self.layers or _LAYERS)
        if len(self.keeps) != wanted:
            raise ValueError(
                f"keeps={self.keeps!r} does not fit layers={self.layers or _LAYERS!r}; give keeps with {wanted} "
                f"{'entry' if wanted == 1 else 'entries'}"
            )

    def schedule(self, num_layers: int) -> tuple[int, ...]:
        return resolve_layers(self.layers, _LAYERS, _DEPTH, num_layers)

    def count(self, present: int) -> int:
        return self.count_at(len(self.layers or _LAYERS) - 1, present)

    def count_at(self, stage: int, present: int) -> int:
        least = min(present, int(self.last == "one"))
        if self.keeps is not None:
            left = present
            for share in self.keeps[: stage + 1]:
                left = max(rounded_down(float(share), left), least)
            return left
        if rounded_down(self.keep, present) == present:
            return present
        before = len(self.layers or _LAYERS) - 1
        return max(geometric(self.keep, present, stage, before), least) if stage < before else least

    def watch(self, num_layers: int) -> Watch:
        return Watch(modules=tuple(layer - 1 for layer in self.schedule(num_layers)))

    def on_modules(self, rows: Rows, module: str, before: Tensor, after: Tensor, memory: Memory) -> None:
        memory["entered"] = rows.hidden.detach()  # the layer's own input: the same for all of its modules

    def score(self, rows: Rows, memory: Memory) -> Tensor:
        return variation(memory.pop("entered"), rows.hidden.detach())
