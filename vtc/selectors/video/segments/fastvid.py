"""FastVID: in segments of a video salient tokens stay, the rest is merged around density peaks (arXiv 2503.11187)."""

from dataclasses import dataclass, field
from itertools import chain
from numbers import Integral
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vtc.method import fields
from vtc.method.base import Positions
from vtc.method.budget import Keep
from vtc.method.reduction import Reduction
from vtc.method.registry import register
from vtc.method.visual_tokens import Needs
from vtc.model.parts import Parts
from vtc.ops.host import on
from vtc.ops.mixing import Mixing
from vtc.ops.similarity import as_float, unit_rows
from vtc.selectors.video.segments.anchors import Deal, deal_equally, deal_out, densest, gather_into, most_salient
from vtc.selectors.video.segments.cutting import cut, frame_means, frame_similarity
from vtc.selectors.video.videos import Video, VideoSelector

Variant = Literal["ov", "video", "qwen"]
#: How the names of families begin whose version is not that of LLaVA-OneVision.
_FAMILIES: dict[str, Variant] = {"llava_next_video": "video", "qwen": "qwen"}
_NEIGHBOURS = 4


@register("fastvid")
@dataclass
class FastVID(VideoSelector):
    """Cut a video into segments, keep what is salient in each frame, and merge the rest around density peaks.

    The video is cut where consecutive frames are least alike. Each frame keeps the tokens that receive most attention
    in the last vision block. Every fourth frame of a segment, counted from its last, is an anchor: of its other tokens
    those are centres that are dense and far from anything denser, and all other tokens of the segment are merged into
    the most similar one of them, into those of every anchor again. A merged token stands at its centre's place; images
    stay as they are. https://arxiv.org/abs/2503.11187

    Three versions were released, each for one family. "ov" (LLaVA-OneVision) is the method; all families have it but
    these: with "video" (LLaVA-Video, here families whose name begins with llava_next_video) a segment's budget is dealt
    out without loss, and an anchor's own centres are none of its members; with "qwen" moreover frames that repeat the
    next one get no tokens, and what does not fit into the others is lost (27 % asked for, 24.1 % kept). Published
    numbers are of frames' vectors and saliency from SigLIP's pooling head, which checkpoints here do not bring: a frame
    is told by its mean token instead, and saliency by the attention received in the tower, much as released for Qwen.
    Of equally dense tokens the first counts as denser, where released code draws noise. Newlines behind rows, and CLS
    tokens of frames, stay where tokens of theirs do, those behind the video always. A token is merged into every anchor
    of its segment, so a still video takes memory for frames / 4 weights of each token.

    Budget: the paper's retention ratio is `keep`, rounded down in each frame; how many are left depends on where the
    video is cut, and is less, by what centres can't be divided into. Where that is nothing at all, the most salient
    token stays. keep=1.0 leaves everything as it is.

    Attributes:
        keep: share in (0, 1] or count of the tokens of a video, separators left out; met roughly, from below.
        segments: least number of segments, as far as there are frames.
        tau: cosine of consecutive frames below which the video is cut in any case. Published: 0.9, 0.84 for Qwen2.5-VL.
        density: share of the budget that goes to centres.
        distance: frames from one anchor to the next.
        beta: least weight of a centre beside the mean of its members.
        ignore: cosine from which a frame repeats the next one; "qwen" alone.
        variant: "ov", "video" or "qwen"; None: the family decides.
        positions: as of every selector, but "original" as released.
    """

    signals: ClassVar[tuple[str, ...]] = ("saliency", "time", "merging")
    varies: ClassVar[bool] = True
    bare_rows: ClassVar[bool] = False
    keep: Keep = 0.25
    segments: int = 8
    tau: float = 0.9
    density: float = 0.4
    distance: int = 4
    beta: float = 0.6
    ignore: float = 0.95
    variant: Variant | None = None
    positions: Positions = field(default="original", kw_only=True)  # type: ignore[misc]

    def __post_init__(self) -> None:
        super().__post_init__()
        fields.check_int("segments", self.segments, "give the published 8, or 1 to cut by tau alone", 1)
        fields.check_share("tau", self.tau, "give a cosine such as 0.9")
        fields.check_share("density", self.density, "give a share of the budget such as 0.4")
        fields.check_int("distance", self.distance, "give the published 4, or 1 to make every frame an anchor", 1)
        fields.check_share("beta", self.beta, "give a weight such as 0.6")
        fields.check_share("ignore", self.ignore, "give a cosine such as 0.95")

    def needs(self, parts: Parts) -> Needs:
        return Needs(received=(parts.block(parts.feature_layer, self.name),))

    def choose(self, video: Video) -> Reduction:
        features, (attention,) = video.features[0], video.whole.received.values()
        (length, tokens, _), keep = features.shape, video.keep
        assert keep is not None
        each = int(keep) // length if isinstance(keep, Integral) else int(tokens * keep)
        variant = self.variant or video.version(_FAMILIES, "ov")
        return self.compress(features, frame_means(features), as_float(video.of(attention)[0]), each, variant)

    def compress(self, features: Tensor, frames: Tensor, saliency: Tensor, each: int, variant: Variant) -> Reduction:
        """Decide about one video.

        Args:
            features: [T, S, D].
            frames: [T, G], a vector that stands for each frame.
            saliency: [T, S].
            each: tokens that are left of a frame.
            variant: the version.
        """
        tokens, device = saliency.shape[1], features.device
        similarity = frame_similarity(frames)
        segments = cut(similarity, self.segments, self.tau)
        deals = [self._deal(similarity[first : end - 1], tokens, each, variant) for first, end in segments]
        salient = most_salient(saliency, on(device, [*chain.from_iterable(deal.salient for deal in deals)]))
        counts = [*chain.from_iterable(deal.centres for deal in deals)]
        if not any(counts) and not salient.any():  # nothing is left of a frame
            salient.view(-1)[saliency.argmax()] = True
        anchors = [frame for frame, count in enumerate(counts) if count]
        peaks = densest(features[anchors], ~salient[anchors], [counts[frame] for frame in anchors], _NEIGHBOURS)
        centres = {frame: peak + frame * tokens for frame, peak in zip(anchors, peaks, strict=True)}
        flat, rest = features.flatten(0, 1), ~salient.flatten()
        stays = (~rest).nonzero()[:, 0]
        parts = [(stays, stays, torch.ones(len(stays), device=device))]
        for first, end in chain.from_iterable(map(Deal.spans, deals, segments)):
            pool = rest[first * tokens : end * tokens].nonzero()[:, 0] + first * tokens
            unit = unit_rows(flat[pool])
            parts += [
                (pool, *gather_into(unit, pool, centres[frame], self.beta, counted=variant == "ov"))
                for frame in range(first, end)
                if frame in centres
            ]
        source, target, weight = (torch.cat(part) for part in zip(*parts, strict=True))
        kept, slot = target.unique(return_inverse=True)
        return Reduction(kept[None], Mixing(source[None], slot[None], weight[None]))

    def _deal(self, similarity: Tensor, tokens: int, each: int, variant: Variant) -> Deal:
        """What the frames of a segment get, by the similarities [L - 1] of its frames."""
        length, setting = len(similarity) + 1, (tokens, each, self.density, self.distance)
        if variant == "ov":
            return deal_equally(length, *setting)
        still = (similarity >= self.ignore).tolist() if variant == "qwen" else [False] * (length - 1)
        frames = [frame for frame, same in enumerate([*still, False]) if not same]
        return deal_out(frames, length, *setting, capped=variant == "qwen")
