"""LLaVA-Scissor: one token for each connected component of similar ones (arXiv 2506.21862)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc.method import fields
from vtc.method.reduction import Reduction
from vtc.method.registry import register
from vtc.ops.components import alike
from vtc.ops.mixing import Mixing
from vtc.ops.similarity import as_float, nearest, unit_rows
from vtc.selectors.video.videos import Video, VideoSelector


@register("llava_scissor")
@dataclass
class LlavaScissor(VideoSelector):
    """Merge what chains of similar tokens connect, within each frame and then over the video, and fold all into that.

    Two tokens of a frame are connected where their cosine is above tau, and so are those that others connect. Each
    component becomes the mean of its members; what this leaves of all frames is merged once more the same way. Then
    every token of the video joins the one of these with the largest cosine, and each new token is the mean of itself
    and all that joined it. https://arxiv.org/abs/2506.21862

    A new token stands at the place of its key, the member with most edges, of a frame's component and then of the
    video's; that is the released order too. The released code looks for components from tokens drawn at random, all of
    them up to 3233, and is exact there; here components always are. It drops newlines, which stay here; and its
    published numbers are of the authors' own checkpoints.

    Budget: none; tau decides how many tokens stay, the more the higher it is. `vtc.calibrate` finds the tau that leaves
    a share of other videos.

    Attributes:
        tau: cosine above which two tokens are connected. Published configs: 0.9; 1 merges nothing.
    """

    signals: ClassVar[tuple[str, ...]] = ("merging", "time")
    may_adapt: ClassVar[bool] = True
    keep = None
    tau: float = 0.9

    def __post_init__(self) -> None:
        fields.check_choices(self)
        fields.check_share("tau", self.tau, "give a cosine such as 0.9; 1 merges nothing")

    @property
    def adaptive(self) -> bool:
        """Whether the video decides: at a tau of 1 all tokens stay."""
        return self.tau < 1

    def choose(self, video: Video) -> Reduction:
        kept, mixing = merge_alike(as_float(video.features[0]), self.tau)
        return Reduction(kept[None], mixing)


def merge_alike(x: Tensor, tau: float) -> tuple[Tensor, Mixing]:
    """One token for each component of a video, with all tokens of the video folded into them.

    Args:
        x: [T, S, D], finite.
        tau: cosine above which two tokens are connected.

    Returns:
        LongTensor [k], the places of the new tokens, ascending; and how all T·S make them up, for one video.
    """
    frames, tokens, _ = x.shape
    rows, every = x.flatten(0, 1), torch.arange(frames * tokens, device=x.device)
    keys = alike(x, tau) + every[::tokens, None]
    places, of_frame, means = _means(rows, keys.flatten())
    kept, of_video, new = _means(means, alike(means[None], tau)[0])
    made = of_video[of_frame]
    share = 1 / (torch.bincount(of_frame)[of_frame] * torch.bincount(of_video)[made])
    joined = nearest(unit_rows(rows)[None], unit_rows(new)[None])[1][0]
    joined = torch.where(rows.any(dim=1), joined, made)  # what has no direction is like nothing
    target = torch.cat([made, joined])
    weight = torch.cat([share, torch.ones_like(share)]) / (1 + torch.bincount(joined, minlength=len(kept)))[target]
    return places[kept], Mixing(every.repeat(2)[None], target[None], weight[None])


def _means(rows: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The different keys, ascending; for each of the `rows` [n, D] the number of its own; the mean of those of each."""
    places, number, sizes = keys.unique(return_inverse=True, return_counts=True)
    total = rows.new_zeros(len(places), rows.shape[1]).index_add(0, number, rows)
    return places, number, total / sizes[:, None]
