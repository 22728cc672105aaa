"""DyCoke: in groups of four frames, what repeats an earlier one is thinned out (arXiv 2411.15024, CVPR 2025)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc.method import budget, fields
from vtc.method.base import Method
from vtc.method.budget import Keep
from vtc.method.reduction import Reduction, top_k
from vtc.method.registry import register
from vtc.ops.similarity import unit_rows
from vtc.prunes.attention.dycoke_decode import DyCokeDecode
from vtc.selectors.video.frames import places_of
from vtc.selectors.video.videos import Video, VideoSelector


def thinned(frames: int, every_group: bool) -> tuple[range, range]:
    """Which frames are thinned out: those compared with the frame before, and those with the one two before.

    Of pairs of frames it is the second, compared with the first; of each group of four also the first frame of its
    second pair, compared with the group's first. As released the last group has none, unless `every_group`.
    """
    paired = frames - frames % 2
    return range(1, paired, 2), range(2, paired if every_group else frames - 2, 4)


def least_alike(unit: Tensor, frames: range, back: int, count: int) -> Tensor:
    """Of some frames, the tokens least like those at their places in frames before.

    Args:
        unit: [G, T, S, D], tokens of length 1.
        frames: F of them, evenly spaced.
        back: how many frames before.
        count: tokens of each.

    Returns:
        LongTensor [G, F, count], by rising similarity; equal: lowest index.
    """
    here, before = (unit[:, frames.start - lag : frames.stop - lag : frames.step] for lag in (0, back))
    return top_k(-(here * before).sum(dim=-1), count)


@register("dycoke")
@dataclass
class DyCoke(VideoSelector):
    """Of every second frame of a video keep what differs from the one before; of groups of four thin out three.

    Frames are compared in pairs, place by place, by cosine, and of the second stay the tokens least like the first. In
    each group of four the first frame of the second pair is compared with the group's first frame in the same way; as
    released, not in the last group. First frames of groups stay whole, and so does a last frame without a pair (which
    the released code loses). Images are left as they are. With `decode` follows `dycoke_decode`: decode steps attend to
    part of the visual tokens. https://arxiv.org/abs/2411.15024

    Budget: with keep=None `drop` says how many go, the paper's K: int((1 - drop) · S) tokens of each thinned frame
    stay, so that a group of four has S + 3 of these; 47.5 % at 0.7. A `keep` sets what stays of thinned frames instead,
    as much as the budget has room for, equally of each; less than the frames that stay whole can't be met. As many
    tokens stay as T and S say. Separators stay and are not counted.

    Attributes:
        drop: share of the tokens of a thinned frame that goes. 0.7 as in the paper's main row; 0.3 and 0.5 beside it.
        keep: share in (0, 1] or count of the tokens of a video, separators left out; None: by `drop`.
        every_group: whether the last group is thinned like the others.
        decode: whether the stage in decode steps follows. Off by default, as many models and caches can't do it; the
            paper has it on.
        decode_keep: `keep` of that stage (1 - P of the paper).
        layer: `layer` of that stage.
        reuse: `reuse` of that stage.
    """

    signals: ClassVar[tuple[str, ...]] = ("time",)
    drop: float = 0.7
    keep: Keep | None = None
    every_group: bool = False
    decode: bool = False
    decode_keep: Keep = 0.3
    layer: int = 3
    reuse: bool = True

    def __post_init__(self) -> None:
        fields.check_choices(self)
        fields.check_share("drop", self.drop, "give the share of a thinned frame that goes, such as 0.7")
        if self.keep is not None:
            budget.check_keep(self.keep)
        fields.check_bool("every_group", self.every_group)
        fields.check_bool("decode", self.decode)
        budget.check_keep(self.decode_keep, "decode_keep")
        self._second()

    def split(self) -> tuple[Method, ...]:
        whole = isinstance(self.keep, float) and self.keep == 1
        return (self, self._second()) if self.decode and not whole else (self,)

    def _second(self) -> DyCokeDecode:
        return DyCokeDecode(keep=self.decode_keep, layer=self.layer, reuse=self.reuse)

    def count(self, present: int) -> int:
        """Tokens left of `present`, if each were a frame of a video."""
        return self.left_of(present, 1, self.keep)

    def left_of(self, frames: int, tokens: int, keep: Keep | None) -> int:
        thin = sum(map(len, thinned(frames, self.every_group)))
        return (frames - thin) * tokens + thin * self._of_thinned(frames, tokens, keep)

    def _of_thinned(self, frames: int, tokens: int, keep: Keep | None) -> int:
        """Tokens that stay of each thinned frame."""
        if keep is None:
            return int((1 - self.drop) * tokens)
        thin = sum(map(len, thinned(frames, self.every_group)))
        room = budget.resolve(keep, frames * tokens) - (frames - thin) * tokens
        return max(room // thin, 0) if thin else tokens

    def choose(self, video: Video) -> Reduction:
        _, frames, tokens, _ = video.features.shape
        unit, count = unit_rows(video.features), self._of_thinned(frames, tokens, video.keep)
        stays = torch.ones(unit.shape[:3], dtype=torch.bool, device=unit.device)
        for back, thin in enumerate(thinned(frames, self.every_group), start=1):
            if thin:
                picks = least_alike(unit, thin, back, count)
                mask = stays.new_zeros(*picks.shape[:2], tokens).scatter_(2, picks, True)
                stays[:, thin.start : thin.stop : thin.step] = mask
        return Reduction(places_of(stays, self.left_of(frames, tokens, video.keep)))
