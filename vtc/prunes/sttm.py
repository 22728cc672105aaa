"""STTM: a quadtree over each frame of a video, then merging over time, inside the decoder.

arXiv 2507.07990, ICCV 2025. In front of the decoder, as for 72B models, it is another method.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vtc import ops
from vtc.method import fields
from vtc.method.prune import Decision, Memory, Prune, Rows
from vtc.method.registry import register
from vtc.ops.host import on
from vtc.ops.mixing import Mixing
from vtc.prunes.sttm_tree import Rule, merge_video


@register("sttm")
@dataclass
class STTM(Rule, Prune):
    """Merge, in front of one decoder layer, what is alike in each frame of a video, and then from frame to frame.

    Over each frame stands a quadtree of means of the hidden states: from its root on, a node stays whole where it is
    like each of its up to four children, else these are looked at. Nodes of neighbouring frames of which one covers the
    other are merged where they are alike. A merged token stands at the first cell of its first node. Each video is
    merged by itself, once, in prefill; pictures, also those that stand for the frames of a video, newlines and text
    stay. Cells that an earlier method removed are left out of the means. https://arxiv.org/abs/2507.07990

    As released, groups over time may be parts of what is connected, and at odd sides a node with fewer than four
    children is also compared with the first one of its frame; both can be switched. On models that number anew, later
    tokens go on behind the merged ones, where the released code goes on at the original length; the layers in front
    keep all tokens in both. Its runs have no newlines.

    Budget: none; the thresholds decide how many tokens stay, the more the higher they are. The paper's 50 and 30 % were
    met by thresholds found on each benchmark's own videos: `vtc.calibrate` finds them on others.

    Attributes:
        layer: decoder layer, from 0, that is the first to see fewer tokens: K of the paper, so K layers run in full. As
            it is, for any depth; published: 2 of 28, and 0, on the embeddings, which is the method `sttm_outer`.
        tau_s: cosine with its children from which on a node stays whole.
        tau_t: cosine from which on nodes of neighbouring frames are merged; None: no merging over time.
        root: level at which trees begin: 0, where a side has two nodes, 1, one finer, and so on; -1: no tree.
        weighted: whether means are of cells, each counting once; False: of children and of nodes.
        parts: the cosine is the mean of those of so many equal parts of the channels: the paper's heads.
        corner: whether nodes of odd sides are compared with the frame's first one too, as released.
        components: whether all nodes that pairs over time connect become one; False: as released, which stops early.
    """

    layer: int = 2
    tau_s: float = 0.85
    tau_t: float | None = 0.55
    root: int = 1
    weighted: bool = False
    parts: int = 1
    corner: bool = True
    components: bool = False

    def __post_init__(self) -> None:
        fields.check_int("layer", self.layer, "give 1 or more; on the embeddings it is the method sttm_outer", 1)
        self.check()

    def schedule(self, num_layers: int) -> tuple[int, ...]:
        return (self.layer,)

    def decide(self, rows: Rows, counts: Sequence[int], memory: Memory) -> Decision:
        place = torch.arange(rows.visual.shape[1], device=rows.hidden.device).expand(rows.visual.shape)
        into, weight = place.clone(), torch.ones(place.shape, device=place.device)
        for row, cells in _videos(rows, place):
            there = cells >= 0
            merged = merge_video(rows.hidden[row, cells.clamp(min=0)], self, there)
            cells, there = cells.flatten(), there.flatten()
            into[row, cells[there]] = cells[merged.into[there]]
            weight[row, cells[there]] = merged.weight[there]
        alive = into == place
        hidden = ops.merge(rows.hidden, Mixing(place, into, weight), place.shape[1])
        return Decision(alive, hidden, into.masked_fill(alive, -1))


def _videos(rows: Rows, place: Tensor) -> Iterator[tuple[int, Tensor]]:
    """The row of each video, and where its cells stand now, LongTensor [T, H, W]; -1 for those that are gone."""
    assert rows.origin is not None
    end = 1 + max(int(image.positions[-1]) for image in rows.images)
    now = torch.full((len(place), end + 1), -1, device=place.device)
    now.scatter_(1, rows.origin.clamp(max=end).masked_fill(~rows.valid, end), place)
    for image in rows.images:
        for grid in image.grids:
            if image.kind == "video" or grid.is_video:
                yield image.row, now[image.row, on(place.device, image.positions[grid.tokens()])]
