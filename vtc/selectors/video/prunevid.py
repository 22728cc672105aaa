"""PruneVid: what stands still in a video is merged over time, what moves in space, and the question chooses among both.

arXiv 2412.16117, ACL 2025.
"""

from dataclasses import dataclass
from typing import ClassVar

from vtc.method import budget, fields
from vtc.method.base import Method
from vtc.method.budget import Keep
from vtc.method.reduction import Reduction
from vtc.method.registry import register
from vtc.ops.similarity import as_float
from vtc.prunes.attention.prunevid_inner import PruneVidInner
from vtc.selectors.video.prunevid_segments import frame_labels, lengths_of, merge_segments, repaired
from vtc.selectors.video.videos import Video, VideoSelector


@register("prunevid")
@dataclass
class PruneVid(VideoSelector):
    """Merge over time what stands still, then in space, and inside the decoder keep what the question attends to.

    In front of the decoder: frames are clustered by density peaks, and after a repair of short runs each run of frames
    of one cluster is a segment. A position of a segment is static if its tokens' mean cosine, over all pairs of
    different frames, is above tau: it becomes the mean over the frames. A segment's static tokens, and each frame's
    other ones, are clustered by density peaks where they are more than 14; a cluster becomes the mean of its members.
    Inside the decoder follows `prunevid_inner`, for which pictures, left whole here, are frames too.
    https://arxiv.org/abs/2412.16117

    A merged token stands at its cluster's centre, a static one in the segment's first frame. Where tokens are numbered
    anew and rows have no newlines, they come in the released order: by segment, its static tokens first, and clusters
    by their centres' score. No noise is added to densities: of equal tokens the first wins. Videos of fewer than seven
    frames, at which the released code fails, have as many neighbours as frames. Newlines stay.

    Budget: none; the video decides by the settings. About half of what is static once or moves is left in front of the
    decoder: `vtc.calibrate` finds the `cluster_ratio` that leaves a number of tokens.

    Attributes:
        tau: mean cosine above which a position is static.
        segment_ratio: clusters of frames, as a share of the frames, rounded down.
        cluster_ratio: clusters of tokens, as a share of those that are clustered, rounded down.
        neighbours: nearest tokens, or frames, that make up a density.
        inner: whether the inner stage follows.
        inner_keep: `keep` of the inner stage, the paper's alpha.
        layer: `layer` of the inner stage; None: 11 of 32, scaled to the depth.
    """

    signals: ClassVar[tuple[str, ...]] = ("time", "merging", "question")
    may_adapt: ClassVar[bool] = True
    in_order: ClassVar[bool] = True
    keep = None
    tau: float = 0.8
    segment_ratio: float = 0.25
    cluster_ratio: float = 0.5
    neighbours: int = 7
    inner: bool = True
    inner_keep: Keep = 0.4
    layer: int | None = None

    def __post_init__(self) -> None:
        fields.check_choices(self)
        fields.check_share("tau", self.tau, "give a cosine such as 0.8; 1 makes nothing static")
        for name in ("segment_ratio", "cluster_ratio"):
            fields.check_share(name, getattr(self, name), "give a share such as 0.5; one cluster is left at least")
        fields.check_int("neighbours", self.neighbours, "give the published 7", 1)
        fields.check_bool("inner", self.inner)
        budget.check_keep(self.inner_keep, "inner_keep")
        self._second()

    @property
    def adaptive(self) -> bool:
        """Whether the video decides how many tokens stay in front of the decoder: by some settings all do."""
        return self.tau < 1 or self.cluster_ratio < 1

    def split(self) -> tuple[Method, ...]:
        return (self, self._second()) if self.inner else (self,)

    def _second(self) -> PruneVidInner:
        return PruneVidInner(keep=self.inner_keep, layer=self.layer)

    def choose(self, video: Video) -> Reduction:
        x = as_float(video.features[0])
        lengths = lengths_of(repaired(frame_labels(x, self.segment_ratio, self.neighbours)))
        merged = merge_segments(x, lengths, self.tau, self.cluster_ratio, self.neighbours)
        return Reduction(merged.kept[None], merged.mixing, order=merged.order[None], groups=merged.groups[None])
