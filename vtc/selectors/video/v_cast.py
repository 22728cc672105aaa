"""V-CAST: more of the frames at which a video turns, there what stands out (arXiv 2603.27650)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc.method import budget
from vtc.method.budget import Keep
from vtc.method.reduction import Reduction
from vtc.method.registry import register
from vtc.ops.similarity import as_float
from vtc.selectors.video.frames import lowest_of_frames, places_of
from vtc.selectors.video.videos import Video, VideoSelector

_TEMPERATURE, _EPS = 0.7, 1e-6


def frame_directions(features: Tensor) -> Tensor:
    """The means of the frames' tokens, of length 1: [G, T, D] from [G, T, S, D]."""
    return torch.nn.functional.normalize(as_float(as_float(features).mean(dim=2)), dim=-1, eps=_EPS)


def curvature(frames: Tensor) -> Tensor:
    """How sharply a video turns at each frame: 1 - cosine of the steps before and behind it.

    Args:
        frames: [G, T, D], one vector for each frame.

    Returns:
        Tensor [G, T] from 0 (straight on) to 2 (back again); 1 at both ends, and where nothing moves.
    """
    steps = torch.nn.functional.normalize(frames.diff(dim=1), dim=-1, eps=_EPS)
    turns = 1 - (steps[:, 1:] * steps[:, :-1]).sum(dim=-1)
    return torch.nn.functional.pad(turns, (1, 1), value=1.0)[:, : frames.shape[1]]


def frame_budgets(weights: Tensor, total: int, tokens: int) -> Tensor:
    """Share `total` tokens out over frames by their weights.

    Every frame has one token, and the whole part of its share of the others. What is left goes to the frame with the
    largest fraction, as much as it can take, then to the next: as released, where a fraction outlives its token.

    Args:
        weights: [G, T].
        total: tokens in all; below T the one token of each frame is given up.
        tokens: S, as many as a frame has.

    Returns:
        LongTensor [G, T].
    """
    least = min(total // weights.shape[1], 1)
    spread = total - least * weights.shape[1]
    part = weights / weights.sum(dim=1, keepdim=True) * spread
    whole = part.floor()
    extra = whole.clamp(max=tokens - least)
    order = (part - whole).argsort(dim=1, descending=True, stable=True)
    room = (tokens - least - extra).gather(1, order)
    taken = (spread - extra.sum(dim=1, keepdim=True) - (room.cumsum(dim=1) - room)).clamp(min=0)
    return least + extra.scatter_add(1, order, torch.minimum(taken, room)).long()


def standing_out(features: Tensor, frames: Tensor) -> Tensor:
    """1 - cosine of a token with its frame's vector, plus its length scaled to the range of the frame's.

    Args:
        features: [G, T, S, D].
        frames: [G, T, D], of length 1.

    Returns:
        Tensor [G, T, S].
    """
    features = as_float(features)
    length = features.norm(dim=-1)
    low, high = length.aminmax(dim=2, keepdim=True)
    cosine = torch.nn.functional.cosine_similarity(features, frames[:, :, None], dim=-1, eps=_EPS)
    return 1 - cosine + (length - low) / (high - low + _EPS)


@register("v_cast")
@dataclass
class VCAST(VideoSelector):
    """Keep more of the frames at which a video turns, and of each frame the tokens that stand out from it.

    A frame is the mean of its tokens. How sharply the path of these vectors bends at a frame is its weight in the
    budget. Within a frame stay the tokens least like its mean and longest. Images, and videos of one frame, are left as
    they are, whatever `keep` is. https://arxiv.org/abs/2603.27650

    Budget: the paper's ratio is `keep`, of the tokens of a video, rounded half to even; at least one of each frame.
    What rounding leaves over goes to one frame, as released. Separators stay and are not counted.

    Attributes:
        keep: share in (0, 1] or count of the tokens of a video, separators left out.
    """

    signals: ClassVar[tuple[str, ...]] = ("diversity", "time")
    keep: Keep = 0.25

    def left_of(self, frames: int, tokens: int, keep: Keep | None) -> int:
        assert keep is not None
        return tokens if frames == 1 else budget.resolve(keep, frames * tokens, minimum=frames)

    def choose(self, video: Video) -> Reduction:
        _, count, tokens, _ = video.features.shape
        total = self.left_of(count, tokens, video.keep)
        frames = frame_directions(video.features)
        budgets = frame_budgets((curvature(frames) / _TEMPERATURE).softmax(dim=1), total, tokens)
        return Reduction(places_of(lowest_of_frames(-standing_out(video.features, frames), budgets), total))
