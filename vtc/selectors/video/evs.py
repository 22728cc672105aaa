"""EVS: the parts of a video that change from frame to frame (arXiv 2510.14624)."""

from dataclasses import dataclass
from numbers import Integral, Real
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vtc.method.budget import Keep
from vtc.method.reduction import Reduction
from vtc.method.registry import register
from vtc.ops.similarity import as_float
from vtc.selectors.video.videos import Video, VideoSelector

_FIRST = 255.0  # above any dissimilarity


def temporal_change(features: Tensor) -> Tensor:
    """How much each token differs from the one at its place in the frame before: 1 - cosine, in float32.

    Args:
        features: [..., T, S, D].

    Returns:
        Tensor [..., T, S]; 255 in the first frame.
    """
    unit = _unit(features)
    change = _change(unit[..., 1:, :, :], unit[..., :-1, :, :])
    return torch.cat([torch.full_like(unit[..., :1, :, 0], _FIRST), change], dim=-2)


def change_since_kept(features: Tensor, threshold: float) -> Tensor:
    """How much each token differs from the last one at its place that differed by more than `threshold` from such.

    Args:
        features: [..., T, S, D].
        threshold: of 1 - cosine.

    Returns:
        Tensor [..., T, S]; 255 in the first frame.
    """
    shown, *later = _unit(features).unbind(dim=-3)
    changes = [torch.full_like(shown[..., 0], _FIRST)]
    for unit in later:
        changes.append(_change(unit, shown))
        shown = torch.where((changes[-1] > threshold)[..., None], unit, shown)
    return torch.stack(changes, dim=-2)


def _unit(features: Tensor) -> Tensor:
    return torch.nn.functional.normalize(as_float(features), dim=-1)


def _change(unit: Tensor, other: Tensor) -> Tensor:
    """1 - cosine as half the squared distance of the unit vectors, which is exactly 0 where nothing changes."""
    return (unit - other).square().sum(dim=-1) / 2


@register("evs")
@dataclass
class EVS(VideoSelector):
    """Keep the first frame of a video whole, and elsewhere what changes most from the frame before.

    Efficient Video Sampling: the dissimilarities of all frames are ranked together, of equal ones the earliest wins, so
    that frames may end up without a token. Compared is with the frame before, not with what was kept last: slow change
    may never be seen. With a `threshold` stays what differs by more than that, by default from what was kept last at
    its place, so that slow change is seen as well. Images are left as they are, so that per="frame" removes nothing.
    Written from the public description of the rule. https://arxiv.org/abs/2510.14624

    Budget: with the paper's pruning rate q, keep = 1 - q; T·H·W·keep is rounded down, and at least one frame is kept.
    With a `threshold` alone the video decides; with both, the threshold first, then the ranking where more than the
    budget is left (keep=1.0 leaves all, as everywhere). Which threshold leaves so many tokens depends on the model:
    `vtc.calibrate` finds it. Separators (newlines, CLS tokens of frames) stay and are not counted.

    Attributes:
        keep: share in (0, 1] or count of the tokens of a video, separators left out. None: 0.25, or with a `threshold`
            whatever is above that.
        threshold: dissimilarity (1 - cosine, from 0 to 2) above which a token stays; None: `keep` alone decides.
            NVIDIA's adaptive form, which is closed, mentions 0.2 to 0.4.
        reference: what the threshold compares a token with: the last "kept" one at its place, or that of the
            "previous" frame.
    """

    signals: ClassVar[tuple[str, ...]] = ("time",)
    may_adapt = True

    keep: Keep | None = None
    threshold: float | None = None
    reference: Literal["kept", "previous"] = "kept"

    def __post_init__(self) -> None:
        if self.threshold is None:
            self.keep = 0.25 if self.keep is None else self.keep
        elif isinstance(self.threshold, bool) or not isinstance(self.threshold, Real):
            raise TypeError(
                f"threshold={self.threshold!r} is a {type(self.threshold).__name__}, not a number; give a "
                "dissimilarity such as 0.2, or None for a budget alone"
            )
        elif not 0 <= self.threshold < 2:
            raise ValueError(
                f"threshold={self.threshold!r} is not in [0, 2); give a dissimilarity (1 - cosine) such as 0.2"
            )
        super().__post_init__()

    @property
    def varies(self) -> bool:  # type: ignore[override]
        """Whether a threshold may leave fewer than the budget."""
        return self.threshold is not None

    @property
    def by_content(self) -> bool:  # type: ignore[override]
        """Whether it decides where the budget has room for all."""
        return self.threshold is not None

    def left_of(self, frames: int, tokens: int, keep: Keep | None) -> int:
        cells = frames * tokens
        wanted = int(keep) if isinstance(keep, Integral) else int(cells * float(1 if keep is None else keep))
        return min(max(tokens, wanted), cells)

    def choose(self, video: Video) -> Reduction:
        _, frames, tokens, _ = video.features.shape
        count, change = self.left_of(frames, tokens, video.keep), temporal_change(video.features)
        if self.threshold is not None:
            since = change if self.reference == "previous" else change_since_kept(video.features, self.threshold)
            seen = since > self.threshold
            count, change = min(count, int(seen.sum())), change.masked_fill(~seen, -1)
        return Reduction.of(change.flatten(1).argsort(dim=1, descending=True, stable=True)[:, :count])
