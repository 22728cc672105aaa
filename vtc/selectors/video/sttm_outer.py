"""STTM on the embeddings: a quadtree over each frame of a video, then merging over time (arXiv 2507.07990)."""

from dataclasses import dataclass

import torch

from vtc.method import fields
from vtc.method.reduction import Reduction
from vtc.method.registry import register
from vtc.ops.mixing import Mixing
from vtc.prunes.sttm_tree import Rule, merge_video
from vtc.selectors.video.videos import Video, VideoSelector


@register("sttm_outer")
@dataclass
class STTMOuter(Rule, VideoSelector):
    """Merge, in front of the decoder, what is alike in each frame of a video, and then from frame to frame.

    The K = 0 of the paper: what `sttm` does with the hidden states of a later layer, done with the embeddings, as for
    its 72B model. Newlines stay. https://arxiv.org/abs/2507.07990

    Budget: none; the thresholds decide how many tokens stay, the more the higher they are. `vtc.calibrate` finds them
    for a number of tokens.

    Attributes:
        tau_s: cosine with its children from which on a node stays whole.
        tau_t: cosine from which on nodes of neighbouring frames are merged; None: no merging over time.
        root: level at which trees begin: 0, where a side has two nodes, 1, one finer, and so on; -1: no tree.
        weighted: whether means are of cells, each counting once; False: of children and of nodes.
        parts: the cosine is the mean of those of so many equal parts of the channels: the paper's heads.
        corner: whether nodes of odd sides are compared with the frame's first one too, as released.
        components: whether all nodes that pairs over time connect become one; False: as released, which stops early.
    """

    tau_s: float = 0.94
    tau_t: float | None = 0.82
    root: int = 1
    weighted: bool = False
    parts: int = 1
    corner: bool = True
    components: bool = False

    def __post_init__(self) -> None:
        fields.check_choices(self)
        self.check()

    def choose(self, video: Video) -> Reduction:
        grids = video.features[0].unflatten(1, (video.height, video.width))
        merged = merge_video(grids, self)
        cells = torch.arange(len(merged.into), device=merged.into.device)
        stays = merged.into == cells
        target = (stays.cumsum(0) - 1)[merged.into]
        return Reduction(cells[stays][None], Mixing(cells[None], target[None], merged.weight[None]))
