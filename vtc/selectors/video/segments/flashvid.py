"""FlashVID: tokens that are attended to and differ stay, the others are merged over time (arXiv 2602.08024)."""

import math
from dataclasses import dataclass
from numbers import Real
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vtc.method import budget, fields
from vtc.method.base import Method
from vtc.method.budget import Keep
from vtc.method.reduction import Reduction
from vtc.method.registry import register
from vtc.method.visual_tokens import Needs
from vtc.model.parts import Parts
from vtc.ops.mixing import Mixing
from vtc.ops.similarity import as_float
from vtc.prunes.flashvid_inner import FlashVIDInner
from vtc.selectors.video.segments.cutting import cut, frame_means, frame_similarity
from vtc.selectors.video.segments.trees import attended_and_diverse, clusters, links, means, relevance, roots
from vtc.selectors.video.videos import Video, VideoSelector

#: How each version weighs distances, and the least segments that it cuts a video into.
VERSIONS = {"attn_div": 4, "attn_div_v2": 8}
_FAMILIES = {"qwen": "attn_div"}
#: Of the outer stage, which the inner one takes back.
_EXPANSION = 1.25


@register("flashvid")
@dataclass
class FlashVID(VideoSelector):
    """Keep what is attended to and differs, merge the rest of a video over time and in space, then prune it inside.

    In front of the decoder: the video is cut where the mean tokens of consecutive frames are unlike each other. Of each
    frame tokens are selected greedily, far from each other by distances that are weighted by the attention which they
    receive in the last vision block (attn_div), and by how much they resemble their segment (attn_div_v2). The others
    are tied to the most similar one of the frame before, and become the mean of their tree; what is then left of a
    frame is clustered by density peaks. A merged token stands at its centre's place. Inside the decoder follows
    `flashvid_inner`. Images stay as they are until there, where they count as the video does. https://arxiv.org/abs/2602.08024

    Newlines behind rows, and CLS tokens of frames, stay where tokens of theirs do, those behind the video always; the
    released code runs LLaVA-Video with one newline per frame instead. In a segment of one frame the released code also
    clusters the selected tokens, so that some stand twice at one place: here each token is used once. Its trees are
    divided by too little where they have three levels or more, so that norms grow: `tree_mean` says whether here too.
    Of equally dense tokens the first counts as denser, where released code draws noise, and no token is selected twice.
    On Qwen3-VL the released code also removes the marks around frames; here they stay.

    Budget: `keep` is the paper's retention ratio, an average over the decoder's layers: in front of it 1.25 · keep are
    left, of which 0.3 pass layer 20 of 28. The video decides in part how many: ceil(N · keep · 1.25) of a frame's N
    tokens, and by rounding up to one more. keep=1.0 leaves everything as it
    is, and for the inner stage alone take `flashvid_inner`.

    Attributes:
        keep: share in (0, 1] or count of the tokens of a video, separators left out; met roughly.
        expansion: how many times `keep` the outer stage leaves. None: the published 1.25, or 1 without the inner stage.
        alpha: share of what is left of a frame that is selected; the rest is merged into.
        link: cosine above which tokens of consecutive frames are tied. Where too few would be left, it is higher.
        tau: cosine of consecutive frames below which the video is cut.
        segments: least number of segments. None: 8 with attn_div_v2, 4 with attn_div.
        selection: "attn_div_v2" or "attn_div". None: as released, attn_div for families whose name begins with qwen.
        tree_mean: "size", the mean of a tree's tokens, or "released", their sum over 1 + the children of its root.
        inner: whether the inner stage follows.
        inner_keep: `keep` of the inner stage.
        layer: `layer` of the inner stage; None: 20 of 28, scaled to the depth.
    """

    signals: ClassVar[tuple[str, ...]] = ("saliency", "diversity", "time", "merging")
    varies: ClassVar[bool] = True
    bare_rows: ClassVar[bool] = False
    keep: Keep = 0.25
    expansion: float | None = None
    alpha: float = 0.7
    link: float = 0.8
    tau: float = 0.9
    segments: int | None = None
    selection: Literal["attn_div", "attn_div_v2"] | None = None
    tree_mean: Literal["size", "released"] = "size"
    inner: bool = True
    inner_keep: Keep = 0.3
    layer: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.expansion is not None:
            way_out = "give how many times keep the outer stage leaves, such as 1.25, or None"
            if isinstance(self.expansion, bool) or not isinstance(self.expansion, Real):
                raise TypeError(f"expansion={self.expansion!r} is a {type(self.expansion).__name__}; {way_out}")
            if not 0 < self.expansion < math.inf:
                raise ValueError(f"expansion={self.expansion!r} is not above 0; {way_out}")
        fields.check_share("alpha", self.alpha, "give a share of a frame's budget such as 0.7")
        fields.check_share("link", self.link, "give a cosine such as 0.8")
        fields.check_share("tau", self.tau, "give a cosine such as 0.9")
        if self.segments is not None:
            fields.check_int("segments", self.segments, "give the least number of segments, such as 8, or None", 1)
        fields.check_bool("inner", self.inner)
        budget.check_keep(self.inner_keep, "inner_keep")
        self._second()

    def split(self) -> tuple[Method, ...]:
        return (self, self._second()) if self.inner and self.adaptive else (self,)

    def _second(self) -> FlashVIDInner:
        return FlashVIDInner(keep=self.inner_keep, layer=self.layer)

    def needs(self, parts: Parts) -> Needs:
        return Needs(received=(parts.block(parts.feature_layer, self.name),))

    def choose(self, video: Video) -> Reduction:
        (attention,) = video.whole.received.values()
        version = self.selection or video.version(_FAMILIES, "attn_div_v2")
        assert video.share is not None
        return self.compress(video.features[0], as_float(video.of(attention)[0]), video.share, version)

    def per_frame(self, tokens: int, share: float) -> tuple[int, int]:
        """How many of a frame's tokens are selected, and how many the others are merged into."""
        expansion = self.expansion or (_EXPANSION if self.inner else 1.0)
        left = min(math.ceil(tokens * share * expansion), tokens)
        selected = math.ceil(left * self.alpha)
        return selected, left - selected

    def compress(self, features: Tensor, saliency: Tensor, share: float, version: str) -> Reduction:
        """Decide about one video.

        Args:
            features: [T, N, D].
            saliency: [T, N].
            share: of the tokens that are left, on average over the decoder's layers.
            version: one of `VERSIONS`.
        """
        (frames, tokens), device = saliency.shape, features.device
        selected, merged = self.per_frame(tokens, share)
        average = frame_means(features)
        segments = cut(frame_similarity(average), self.segments or VERSIONS[version], self.tau)
        weight = saliency * relevance(features, average, segments) if version == "attn_div_v2" else saliency
        chosen = attended_and_diverse(features, weight, selected)
        stays = chosen.flatten().nonzero()[:, 0]
        parts = [(stays, stays, torch.ones(len(stays), device=device))]
        if merged:
            rest = (~chosen).nonzero()[:, 1].view(frames, -1)
            parent = links(features, rest, segments, merged, self.link)
            parts.append(self._merge(features, rest, parent, segments, merged))
        source, target, factor = (torch.cat(part) for part in zip(*parts, strict=True))
        kept, slot = target.unique(return_inverse=True)
        return Reduction(kept[None], Mixing(source[None], slot[None], factor[None]))

    def _merge(
        self, features: Tensor, rest: Tensor, parent: Tensor, segments: list[tuple[int, int]], merged: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What is left of tokens `rest` [T, R] that are tied to others: source, target and weight of each."""
        frames, tokens, _ = features.shape
        place = (rest + torch.arange(frames, device=rest.device)[:, None] * tokens).flatten()
        root = roots(parent)
        size = torch.bincount(root if self.tree_mean == "size" else parent.flatten(), minlength=len(root))
        weight = 1 / size[root]
        untied = parent.flatten() == torch.arange(len(root), device=root.device)
        tree = (untied.cumsum(0) - 1)[root]
        trees = untied.view(frames, -1).sum(dim=1).tolist()
        average = means(features, rest, tree, weight, sum(trees))
        joined, before = [], 0
        for first, end in segments:
            share = min(merged * (end - first) / sum(trees[first:end]), 1.0)
            for count in trees[first:end]:
                joined.append(clusters(average[before : before + count], math.ceil(count * share)) + before)
                before += count
        into = torch.cat(joined)
        number = torch.bincount(into, minlength=len(into))[into]
        return place, place[untied][into][tree], weight / number[tree]
