"""STTM's mathematics: a quadtree over each frame of a video, and nodes of neighbouring frames merged (2507.07990)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from vtc.method import fields
from vtc.method.budget import Keep
from vtc.ops.components import connected
from vtc.ops.similarity import as_float, unit_rows


class Rule:
    """How a video is merged: what both methods are, each with fields of its own.

    Attributes:
        tau_s: cosine of a node with its children from which on it stays whole.
        tau_t: cosine of nodes of neighbouring frames from which on they are merged; None: none are.
        root: level at which trees begin, from 0 for the coarsest, whose shorter side has at most two nodes.
        weighted: whether means are of cells, not of what has been merged before.
        parts: parts of the channels whose cosines are averaged.
        corner: whether a node with fewer than four children is also compared with the first one of the frame.
        components: whether all nodes that pairs connect become one.
    """

    tau_s: float
    tau_t: float | None
    root: int
    weighted: bool
    parts: int
    corner: bool
    components: bool

    signals: ClassVar[tuple[str, ...]] = ("merging", "time")
    may_adapt: ClassVar[bool] = True
    keep: Keep | None = None

    @property
    def adaptive(self) -> bool:
        """Whether the video decides: without a tree and merging over time all tokens stay."""
        return self.root >= 0 or bool(self.tau_t)

    def check(self) -> None:
        """Check these fields.

        Raises:
            TypeError, ValueError: one is bad.
        """
        fields.check_share("tau_s", self.tau_s, "give a cosine such as 0.85")
        if self.tau_t is not None:
            fields.check_share("tau_t", self.tau_t, "give a cosine such as 0.55, or None to merge each frame alone")
        fields.check_int("root", self.root, "give a level such as the published 1, or -1 for no tree", -1)
        fields.check_int("parts", self.parts, "give how many parts of the channels are compared by themselves", 1)
        for name in ("weighted", "corner", "components"):
            fields.check_bool(name, getattr(self, name))


@dataclass(frozen=True)
class Merged:
    """What becomes of the T · H · W cells of a video, counted frame by frame, each LongTensor or Tensor [T·H·W].

    Attributes:
        node: the first cell of the node that each belongs to.
        into: the cell at which each one's new token stands, the first of the first of its nodes.
        weight: the part that each has in it; 0 of cells that are not there.
    """

    node: Tensor
    into: Tensor
    weight: Tensor


@dataclass(frozen=True)
class _Level:
    """The nodes that a tree has at one level, [T, h, w].

    Attributes:
        value: Tensor [T, h, w, D], their means or sums.
        whole: BoolTensor [T, h, w]: nodes that are like all their children.
        rows, columns: for each row, and column, of cells the node's.
        weight: Tensor [T, H, W]: the part of each cell in the value of its node.
    """

    value: Tensor
    whole: Tensor
    rows: Tensor
    columns: Tensor
    weight: Tensor

    def of_cells(self, values: Tensor) -> Tensor:
        """Values [T, h, w, ...] of nodes, as [T, H, W, ...] of their cells."""
        return values[:, self.rows][:, :, self.columns]


def merge_video(x: Tensor, rule: Rule, there: Tensor | None = None) -> Merged:
    """Merge a video in space, then over time.

    Args:
        x: [T, H, W, D].
        rule: how.
        there: BoolTensor [T, H, W]: the cells that are there; means are of these. None: all are.

    Raises:
        ValueError: the channels can't be cut into so many parts.
    """
    if x.shape[3] % rule.parts:
        raise ValueError(f"parts={rule.parts}: {x.shape[3]} channels can't be cut into so many; give a divisor of them")
    x = as_float(x)
    there = torch.ones(x.shape[:3], dtype=torch.bool, device=x.device) if there is None else there
    cells = torch.arange(there.numel(), device=x.device)
    first, value, weight = _trees(x, there, rule)
    node = _lowest(first, there.flatten(), cells)
    into = node
    if rule.tau_t and len(x) > 1:
        alike = (_cosine(value[:-1], value[1:], rule.parts) >= rule.tau_t).flatten()
        frames = node.view(len(x), -1)
        pairs = frames[:-1].flatten()[alike], frames[1:].flatten()[alike]
        into = (connected if rule.components else _released)(*pairs, len(cells))[node]
    number = (there.flatten() if rule.weighted else (node == cells) & there.flatten()).float()
    members = torch.zeros_like(number).scatter_add(0, into, number).clamp(min=1)
    return Merged(node, into, torch.where(there.flatten(), weight.flatten(), 0) / members[into])


def _trees(x: Tensor, there: Tensor, rule: Rule) -> tuple[Tensor, Tensor, Tensor]:
    """The first cell of the node of each cell [T·H·W], the node's value [T, H, W, D], and the cell's weight in it."""
    frames, height, width, _ = x.shape
    rows, columns = (torch.arange(n, device=x.device) for n in (height, width))
    one = torch.ones(frames, height, width, device=x.device)
    levels = [_Level(x * there[..., None], torch.ones_like(there), rows, columns, one)]
    present = there
    while rule.root >= 0 and min(levels[-1].whole.shape[1:]) > 2:
        level, present = _coarser(levels[-1], present, rule)
        levels.append(level)
    first, value, weight = torch.zeros_like(there, dtype=torch.long), x, one
    for level in levels[: max(len(levels) - rule.root, 1)]:  # the coarsest at which a cell's node is whole counts
        stays = level.of_cells(level.whole)
        corner = _first(level.rows)[:, None] * width + _first(level.columns)
        first = torch.where(stays, corner, first)
        value = torch.where(stays[..., None], level.of_cells(level.value), value)
        weight = torch.where(stays, level.weight, weight)
    start = torch.arange(frames, device=x.device)[:, None, None] * height * width
    return (first + start).flatten(), value, weight


def _coarser(finer: _Level, present: Tensor, rule: Rule) -> tuple[_Level, Tensor]:
    """The level of half as many nodes a side, and which of its nodes have cells; an odd side's first is alone."""
    odd = [side % 2 for side in present.shape[1:]]
    value = pad(finer.value, (0, 0, odd[1], 0, odd[0], 0)).unflatten(2, (-1, 2)).unflatten(1, (-1, 2))
    there = pad(present, (odd[1], 0, odd[0], 0)).unflatten(2, (-1, 2)).unflatten(1, (-1, 2))
    number = there.sum(dim=(2, 4))
    total = value.sum(dim=(2, 4))
    share = torch.ones_like(number, dtype=value.dtype) if rule.weighted else 1 / number.clamp(min=1)
    mean = total * share[..., None]
    whole = ((_cosine(mean[:, :, None, :, None], value, rule.parts) >= rule.tau_s) | ~there).all(dim=4).all(dim=2)
    if rule.corner:
        few = torch.zeros_like(whole)
        few[:, : odd[0]] = few[:, :, : odd[1]] = True
        like = _cosine(mean, finer.value[:, :1, :1], rule.parts) >= rule.tau_s
        whole &= like | ~few | ~present[:, :1, :1]
    rows, columns = ((index + side) // 2 for index, side in zip((finer.rows, finer.columns), odd, strict=True))
    weight = finer.weight * share[:, rows][:, :, columns]
    return _Level(mean, whole, rows, columns, weight), number > 0


def _cosine(a: Tensor, b: Tensor, parts: int) -> Tensor:
    """Cosines [...] of vectors [..., D], the mean over so many parts of the channels; 0 without a direction."""
    a, b = (unit_rows(each.unflatten(-1, (parts, -1))) for each in (a, b))
    return (a * b).sum(dim=-1).mean(dim=-1)


def _first(index: Tensor) -> Tensor:
    """The first place of an ascending index [n] that has the same number as each."""
    return torch.searchsorted(index, index)


def _lowest(name: Tensor, there: Tensor, cells: Tensor) -> Tensor:
    """The first cell of those with the same name that are there; of none, the name."""
    none = len(cells)
    found = torch.full_like(cells, none).scatter_reduce(0, name, torch.where(there, cells, none), "amin")
    return torch.where(found == none, cells, found)[name]


def _released(first: Tensor, second: Tensor, tokens: int) -> Tensor:
    """Groups of what pairs connect, as the released code looks for them: it may stop early, with parts of components.

    Args:
        first: LongTensor [E], the one of each pair.
        second: LongTensor [E], the other.
        tokens: how many there are.

    Returns:
        LongTensor [tokens]: a lower member of each one's group, or itself.
    """
    name = torch.arange(tokens, device=first.device)
    while True:
        lowest = name[first].minimum(name[second])
        for side in (first, second):
            name = name.scatter_reduce(0, side, lowest, "amin")
        name = name[name]
        if torch.equal(name[name], name):
            return name
