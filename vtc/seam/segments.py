"""The stretches of decoder layers between two removals, and what each sees."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vtc.ops.cut import Cut, holds_tensors, map_tensors, token_dim
from vtc.ops.host import on


@dataclass
class Segment:
    """Layers from `first_layer` up to the next segment's; all see the same tokens.

    Attributes:
        first_layer: index from 0.
        cut: from the tokens of this call, as the user gave them, to those alive here.
        in_entry: from the tokens that the decoder was entered with to those alive here.
        in_slots: from this call's slots (see `Conversation`) to the tokens alive here.
        positions: LongTensor [B, n] of the alive tokens; None where the model has several position axes.
        shift: LongTensor [B, 1]: by how much packed positions lag behind the logical ones after this call.
        visual: BoolTensor [B, n]: visual tokens.
        visual_counts: visual tokens of each row.
        behind: BoolTensor [B, n]: tokens behind the prompt; None: there are none.
        into: LongTensor [B, n of the segment before]: where its merged tokens went, -1 elsewhere; None: none merged.
        base: the segment of all tokens that are alive, where some skip this segment's layer; None: none skip.
        within: from the tokens of `base` to those of this segment.
        done: arguments already reduced, by their id (each is kept alive beside its result).
    """

    first_layer: int
    cut: Cut
    in_entry: Cut
    in_slots: Cut
    positions: Tensor | None
    shift: Tensor
    visual: Tensor
    visual_counts: list[int]
    behind: Tensor | None = None
    into: Tensor | None = None
    base: "Segment | None" = None
    within: Cut | None = None
    done: dict[tuple[int | None, ...], tuple[Any, Any]] = field(default_factory=dict)


class Segments:
    """The segments of one decoder call that its layers have reached, in order.

    Args:
        first: segment 0.
        shift: for each segment of the model, by how much packed positions lag behind the logical ones.
    """

    def __init__(self, first: Segment, shift: Sequence[Tensor]):
        self._all = [first]
        self._shift = shift

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Segment]:
        return iter(self._all)

    @property
    def first(self) -> Segment:
        """Segment 0."""
        return self._all[0]

    @property
    def now(self) -> Segment:
        """The segment that the layers are in."""
        return self._all[-1]

    @property
    def index(self) -> int:
        """Its number."""
        return len(self._all) - 1

    @property
    def base(self) -> Segment:
        """The segment of the tokens that are alive, those that skip the layer among them."""
        return self.now.base or self.now

    def index_of(self, segment: Segment) -> int:
        """The number of a segment."""
        return next(index for index, other in enumerate(self._all) if other is segment)

    def of_layer(self, layer: int) -> Segment:
        """The segment of a layer that ran."""
        return [segment for segment in self._all if segment.first_layer <= layer][-1]

    def start(self, layer: int, cut: Cut, slots: Cut, counts: list[int], packed: bool, returns: bool) -> None:
        """Add the segment of `layer`.

        Args:
            layer: its first.
            cut: names its tokens, among those of `base`.
            slots: the same, ascending: the places where they stand.
            counts: visual tokens of each row.
            packed: whether its tokens are numbered anew.
            returns: whether what is left out comes back behind the layer.
        """
        before, index = self.base, len(self._all)
        parent = next(i for i, segment in enumerate(self._all) if segment is before)
        gain = self._shift[index] - self._shift[parent]
        positions, lag = None, gain
        if before.positions is not None:
            positions, lag = renumber(before.positions, before.cut.valid, cut, gain, packed)
        visual, behind = (_marked(cut, marks) for marks in (before.visual, before.behind))
        assert visual is not None
        self._all.append(
            Segment(
                first_layer=layer,
                cut=before.cut.then(cut),
                in_entry=before.in_entry.then(cut),
                in_slots=before.in_slots.then(slots),
                positions=positions,
                shift=before.shift + lag,
                visual=visual,
                visual_counts=counts,
                behind=behind,
                base=before if returns else None,
                within=cut if returns else None,
            )
        )

    def take_back(self) -> None:
        """Forget the segment that was started last."""
        self._all.pop()


def _marked(cut: Cut, marks: Tensor | None) -> Tensor | None:
    """Which survivors are marked; False at padding."""
    return marks if marks is None or cut.identity else cut.take(marks) & cut.valid.to(marks.device)


def renumber(
    positions: Tensor, valid: Tensor, cut: Cut, delta: Tensor, packed: bool, samples: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Positions of the survivors of `cut`, and the lag that this adds to the tokens of later calls.

    Args:
        positions: LongTensor [B, L], ascending over the valid tokens of each row.
        valid: BoolTensor [B, L].
        cut: what survives.
        delta: LongTensor [B, 1]: lag from earlier calls, subtracted from all.
        packed: number the survivors without gaps from the row's first position on; else each keeps its own.
        samples: LongTensor [B, L]: each of a row's is numbered from that position on, and so is padding, so that no
            token follows one of another; None: a row is a sample.

    Returns:
        Positions [B, n] and lag [B, 1] (with `delta`).
    """
    if not packed or cut.identity:
        return cut.take(positions) - delta, delta
    first = positions.masked_fill(~valid, torch.iinfo(torch.long).max).amin(dim=1, keepdim=True) - delta
    last = positions.masked_fill(~valid, torch.iinfo(torch.long).min).amax(dim=1, keepdim=True)
    rank = cut.valid.cumsum(dim=1) - 1
    if samples is not None:
        owner = cut.take(samples)
        starts = torch.ones_like(cut.valid)
        starts[:, 1:] = (owner[:, 1:] != owner[:, :-1]) | ~cut.valid[:, :-1]
        rank = rank - torch.where(starts, rank, -1).cummax(dim=1).values
        return first + rank, delta
    count = rank[:, -1:] + 1
    return (first + rank).clamp_min(0), last + 1 - (first + count)


def visual_index(visual: Tensor, cut: Cut, left: int) -> Tensor:
    """Index of the surviving visual tokens among all visual tokens of the batch, row by row.

    Args:
        visual: BoolTensor [B, L] before the cut.
        cut: what survives.
        left: how many visual tokens these are, so that nobody has to ask the device.
    """
    number = (visual.flatten().cumsum(0) - 1).view_as(visual)
    alive = cut.take(visual) & cut.valid.to(visual.device)
    there = (~alive).flatten().to(torch.uint8).argsort(stable=True)[:left]
    return cut.take(number).flatten().index_select(0, there)


def check_seen_through(name: str, value: Any, family: str) -> None:
    """Refuse an argument that may hold tensors where nobody sees them.

    Raises:
        ValueError: it is such an object.
    """
    if holds_tensors(value):
        raise ValueError(
            f"{family}: argument {name!r} is a {type(value).__name__} with tensors in it, and which of them are per "
            "token is not known to vtc; run `vtc doctor`, or unpatch the model for this call"
        )


def cut_argument(name: str, value: Any, cut: Cut, visual_index: Tensor | None, visual_total: int, family: str) -> Any:
    """Reduce one extra argument of the decoder or of a layer.

    A tensor whose dimensions (batch, length) match is gathered there; one with a row for each visual token of the
    batch is gathered by visual index; anything else that does not mention the length passes.

    Raises:
        ValueError: a tensor has the old length somewhere else, or an object may hold some; the message names family and
            argument.
    """
    batch, length = cut.index.shape[0], cut.length
    check_seen_through(name, value, family)

    def reduce(tensor: Tensor) -> Tensor:
        dim = token_dim(tensor, batch, length)
        if dim is not None:
            return cut.take(tensor, dim)
        per_visual = visual_index is not None and tensor.dim() >= 2 and tensor.shape[0] == visual_total
        shape = tensor.shape[: max(tensor.dim() - 1, 1)]
        misplaced = {length, batch * length}.intersection(shape) if 1 < length != len(cut) else set()
        if visual_index is not None and per_visual and not (misplaced and tensor.shape[1] == batch):
            return tensor.index_select(0, on(tensor.device, visual_index))
        if misplaced:
            raise ValueError(
                f"{family}: argument {name!r} of shape {tuple(tensor.shape)} has the length {min(misplaced)} of the "
                "whole sequence in a place that vtc does not know; leave it out, or unpatch the model for this call"
            )
        return tensor

    return map_tensors(value, reduce)
