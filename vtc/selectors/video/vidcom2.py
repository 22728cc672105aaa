"""VidCom²: the tokens least like their video and their frame (arXiv 2505.14454, EMNLP 2025)."""

from dataclasses import dataclass
from numbers import Integral
from typing import ClassVar

import torch
from torch import Tensor

from vtc.method import fields
from vtc.method.budget import Keep
from vtc.method.reduction import Reduction
from vtc.method.registry import register
from vtc.ops.similarity import as_float, unit_rows
from vtc.selectors.video.frames import lowest_of_frames, places_of
from vtc.selectors.video.videos import Video, VideoSelector

_WIDTHS, _TEMPERATURE = (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0), 0.01


def steady_channels(features: Tensor) -> Tensor:
    """LongTensor [G, max(D // 2, 1)], ascending: the channels that vary least over a video [G, T, S, D]."""
    variance = as_float(features).flatten(1, 2).var(dim=1, correction=0)
    variance = torch.where(variance.isnan(), float("inf"), variance)
    return variance.argsort(dim=1, stable=True)[:, : max(features.shape[-1] // 2, 1)].sort(dim=1).values


def likeness(features: Tensor) -> tuple[Tensor, Tensor]:
    """How much each token is like its video, and like its frame: sums of Gaussians around the means of unit tokens.

    Args:
        features: [G, T, S, D].

    Returns:
        Two Tensors [G, T, S] between 0 and 5.
    """
    channels = steady_channels(features)[:, None, None].expand(*features.shape[:-1], -1)
    unit = unit_rows(features.gather(3, channels))
    return _near(unit, unit.mean(dim=(1, 2), keepdim=True)), _near(unit, unit.mean(dim=2, keepdim=True))


def _near(unit: Tensor, centre: Tensor) -> Tensor:
    distance = (unit - centre).square().sum(dim=-1)
    return torch.stack([torch.exp(-distance / (2 * width)) for width in _WIDTHS]).sum(dim=0)


def frame_shares(video_likeness: Tensor, share: float) -> Tensor:
    """The share of its tokens that each frame keeps, more where it is less like the video: [G, T] from [G, T, S]."""
    most = (-video_likeness.mean(dim=2) / _TEMPERATURE).softmax(dim=1)
    return (share * (1 + most - most.mean(dim=1, keepdim=True))).clamp(max=1)


def vidcom2(features: Tensor, share: float, count: int | None = None) -> Tensor:
    """The tokens that stay of videos.

    Args:
        features: [G, T, S, D].
        share: of the tokens, about which the frames' budgets lie.
        count: exactly so many: the tokens most like their video and frame go, or those least like them come back,
            whatever frame they are of; None: as many as the frames' budgets make.

    Returns:
        BoolTensor [G, T, S].
    """
    of_video, of_frame = likeness(features)
    budgets = (frame_shares(of_video, share) * features.shape[2]).round().long().clamp(min=1)
    score = of_video + of_frame
    kept = lowest_of_frames(score, budgets)
    if count is None:
        return kept
    by_score = score.flatten(1).argsort(dim=1, stable=True)
    kept_first = (~kept).flatten(1).gather(1, by_score).to(torch.uint8).argsort(dim=1, stable=True)
    stay = by_score.gather(1, kept_first)[:, :count]
    return torch.zeros_like(kept).flatten(1).scatter(1, stay, True).view_as(kept)


@register("vidcom2")
@dataclass
class VidCom2(VideoSelector):
    """Keep of each frame of a video the tokens that are least like the video and the frame; more of frames unlike it.

    Compared are unit vectors of the half of the channels that vary least over the video, with the mean of the video's
    and with that of the frame's, by a sum of five Gaussians. The frame least like the video gets up to twice the budget
    of the others. All of that is of each video alone; images are left as they are. https://arxiv.org/abs/2505.14454

    Budget: the paper's retention ratio is `keep`. By itself its result is only near that: counts are rounded in each
    frame, and what a frame can't take is lost (102 of 144 tokens at 0.8, where 115 were meant). vLLM's form of the
    method, here the default, then adds or drops tokens, whatever frame they are of, until T·S·keep are left, rounded
    down (and at least T). So many tokens stay as T, S and `keep` say. Published numbers are of the form without
    (exact=False). Separators stay and are not counted.

    Attributes:
        keep: share in (0, 1] or count of the tokens of a video, separators left out.
        exact: whether the budget is met exactly; False: as the paper's code does, the video decides.
    """

    signals: ClassVar[tuple[str, ...]] = ("diversity", "time")
    keep: Keep = 0.25
    exact: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        fields.check_bool("exact", self.exact)

    @property
    def varies(self) -> bool:  # type: ignore[override]
        """Whether counts depend on what the video shows."""
        return not self.exact

    def left_of(self, frames: int, tokens: int, keep: Keep | None) -> int:
        assert keep is not None
        total = frames * tokens
        wanted = int(keep) if isinstance(keep, Integral) else int(total * (1 - (1 - float(keep))))
        return max(frames, min(wanted, total))

    def choose(self, video: Video) -> Reduction:
        _, frames, tokens, _ = video.features.shape
        assert video.share is not None and video.keep is not None
        count = self.left_of(frames, tokens, video.keep) if self.exact else None
        kept = vidcom2(video.features, min(video.share, 1.0), count)
        return Reduction(places_of(kept, int(kept.sum()) if count is None else count))
