"""HoliTom: what stands still in a video is merged, of the rest stays what is attended to (arXiv 2505.21334)."""

from dataclasses import dataclass
from numbers import Integral
from typing import ClassVar

import torch
from torch import Tensor

from vtc.method import budget, fields
from vtc.method.base import Method
from vtc.method.budget import Keep
from vtc.method.reduction import Reduction
from vtc.method.registry import register
from vtc.method.selector import Selector
from vtc.method.visual_tokens import Needs, VisualTokens
from vtc.model.parts import Parts
from vtc.ops.host import on
from vtc.ops.mixing import Mixing
from vtc.prunes.holitom_inner import HoliTomInner
from vtc.selectors.video.holitom_segments import merge_frames
from vtc.selectors.video.videos import separators_beside


@register("holitom")
@dataclass
class HoliTom(Selector):
    """Merge what repeats from frame to frame of a video, keep what moves where it is attended to, merge again inside.

    In front of the decoder: the video is cut into segments in which as many positions as possible are static (cosine
    with the next frame above tau). Static positions of a segment are averaged over its frames, then clustered by
    density peaks; of the other tokens each frame keeps those that receive most attention in the vision tower. An image
    is a single frame. Inside the decoder follows `holitom_inner`. https://arxiv.org/abs/2505.21334

    Newlines behind rows stay where their row has tokens left, those behind the video always, and a frame's CLS token
    where the frame has tokens left. A static token stands at its place in the segment's first frame. Where tokens are
    numbered anew and rows have no newlines, a segment's static tokens come before all others of it, as released. No
    noise is added to densities: of equal tokens the first wins.

    Budget: the paper's retention ratio is `keep`, of the tokens in front of the decoder. How many are left depends on
    the video: counts are rounded in each frame and segment (161 of 1568 at 0.10 in one of the released code's runs).
    keep=1.0 leaves everything as it is: for the inner stage alone take `holitom_inner`.

    Attributes:
        keep: rho, share in (0, 1] or count of the visual tokens of a video; met roughly.
        tau: similarity above which a position is static. Published: 0.8, and 0.65 for keep=0.1.
        beta: weight of a cluster's centre beside the mean of its members; None: the plain mean of all.
        neighbours: nearest tokens that make up a token's density.
        inner: whether the inner stage follows.
        inner_keep: `keep` of the inner stage (1 - R of the paper).
        layer: `layer` of the inner stage; None: 18 of 28, scaled to the depth.
        causal: `causal` of the inner stage; False: as released.
    """

    signals: ClassVar[tuple[str, ...]] = ("saliency", "time", "merging")
    keep: Keep = 0.25
    tau: float = 0.8
    beta: float | None = 0.6
    neighbours: int = 7
    inner: bool = True
    inner_keep: Keep = 0.5
    layer: int | None = None
    causal: bool = True

    def __post_init__(self) -> None:
        budget.check_keep(self.keep)
        super().__post_init__()
        fields.check_share("tau", self.tau, "give a cosine such as 0.8")
        if self.beta is not None:
            fields.check_share("beta", self.beta, "give a weight such as 0.6, or None for the plain mean")
        fields.check_int("neighbours", self.neighbours, "give the published 7", 1)
        fields.check_bool("inner", self.inner)
        budget.check_keep(self.inner_keep, "inner_keep")
        self._second()

    @property
    def adaptive(self) -> bool:
        """The video decides how many tokens stay, unless all do."""
        return not (isinstance(self.keep, float) and self.keep == 1)

    def split(self) -> tuple[Method, ...]:
        return (self, self._second()) if self.inner and self.adaptive else (self,)

    def _second(self) -> HoliTomInner:
        return HoliTomInner(keep=self.inner_keep, layer=self.layer, causal=self.causal)

    def needs(self, parts: Parts) -> Needs:
        return Needs(received=(parts.block(parts.feature_layer, self.name),))

    def select(self, visual: VisualTokens, k: int) -> Reduction:
        (attention,) = visual.received.values()
        tokens, features = visual.features.shape[1], visual.features[0]
        if self.count(tokens) == tokens:
            return Reduction.of(torch.arange(tokens, device=features.device)[None])
        rho = self.keep / tokens if isinstance(self.keep, Integral) else self.keep
        alive = torch.zeros(tokens, dtype=torch.bool, device=features.device)
        static = torch.zeros_like(alive)
        parts = []
        for grid in visual.grids:
            cells = on(features.device, grid.tokens().flatten(1))
            merged = merge_frames(features[cells], attention[0, cells], rho, self.tau, self.beta, self.neighbours)
            flat, own = cells.flatten(), separators_beside(grid, merged.kept)
            alive[flat], alive[own] = merged.kept.flatten(), True
            static[flat] = merged.static.flatten()
            parts.append((flat[merged.source], flat[merged.target], merged.weight))
            parts.append((own, own, torch.ones(len(own), device=features.device)))
        kept = alive.nonzero()[:, 0]
        number = alive.cumsum(0) - 1
        source, target, weight = (torch.cat(part) for part in zip(*parts, strict=True))
        mixing = Mixing(source[None], number[target][None], weight[None])
        return Reduction(kept[None], mixing, order=_order(visual, kept, static, merged.segments))


def _order(visual: VisualTokens, kept: Tensor, static: Tensor, segments: list[tuple[int, int]]) -> Tensor | None:
    """Static tokens in front of their segment's others, where tokens are numbered anew and rows have no newlines.

    Args:
        visual: what was shown.
        kept: LongTensor [k], ascending.
        static: BoolTensor [N]: merged static tokens.
        segments: (first, last) frame of each.

    Returns:
        LongTensor [1, k]; None: every token stands at its place.
    """
    grid = visual.grids[0]
    if len(visual.grids) > 1 or grid.t == 1 or grid.row_end or not visual.packed:
        return None
    lengths = torch.tensor([last - first + 1 for first, last in segments] + [1])  # what is behind the last frame
    segment = torch.arange(len(lengths)).repeat_interleave(lengths).to(kept.device)
    rank = 2 * segment[(kept // grid.frame).clamp(max=grid.t)] + ~static[kept]
    return rank.argsort(stable=True)[None]
