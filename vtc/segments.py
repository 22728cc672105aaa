"""The stretches of decoder layers between two removals, and what every argument looks like in each."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vtc.conversation import Conversation
from vtc.host import on
from vtc.sequence import Cut, cut_mask, map_tensors, token_dim


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
    into: Tensor | None = None
    base: "Segment | None" = None
    within: Cut | None = None
    done: dict[tuple[int | None, ...], tuple[Any, Any]] = field(default_factory=dict)


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


def renumber(positions: Tensor, valid: Tensor, cut: Cut, delta: Tensor, packed: bool) -> tuple[Tensor, Tensor]:
    """Positions of the survivors of `cut`, and the lag that this adds to the tokens of later calls.

    Args:
        positions: LongTensor [B, L], ascending over the valid tokens of each row.
        valid: BoolTensor [B, L].
        cut: what survives.
        delta: LongTensor [B, 1]: lag from earlier calls, subtracted from all.
        packed: number the survivors without gaps from the row's first position on; else each keeps its own.

    Returns:
        Positions [B, n] and lag [B, 1] (with `delta`).
    """
    if not packed or cut.identity:
        return cut.take(positions) - delta, delta
    first = positions.masked_fill(~valid, torch.iinfo(torch.long).max).amin(dim=1, keepdim=True) - delta
    last = positions.masked_fill(~valid, torch.iinfo(torch.long).min).amax(dim=1, keepdim=True)
    rank = cut.valid.cumsum(dim=1) - 1
    count = rank[:, -1:] + 1
    return (first + rank).clamp_min(0), last + 1 - (first + count)


def cut_argument(name: str, value: Any, cut: Cut, visual_index: Tensor | None, visual_total: int, family: str) -> Any:
    """Reduce one extra argument of the decoder or of a layer.

    A tensor whose dimensions (batch, length) match is gathered there; one with a row for each visual token of the
    batch is gathered by visual index; anything else that does not mention the length passes.

    Raises:
        ValueError: a tensor has the old length somewhere else; the message names family and argument.
    """
    batch, length = cut.index.shape[0], cut.length

    def reduce(tensor: Tensor) -> Tensor:
        dim = token_dim(tensor, batch, length)
        if dim is not None:
            return cut.take(tensor, dim)
        if visual_index is not None and tensor.dim() >= 2 and tensor.shape[0] == visual_total:
            return tensor.index_select(0, on(tensor.device, visual_index))
        if 1 < length != len(cut) and length in tensor.shape[: max(tensor.dim() - 1, 1)]:
            raise ValueError(
                f"{family}: argument {name!r} of shape {tuple(tensor.shape)} has the length {length} of the whole "
                "sequence in a place that vtc does not know; leave it out, or unpatch the model for this call"
            )
        return tensor

    return map_tensors(value, reduce)


def layer_mask(
    mask: Tensor | None, segment: int, now: Segment, conversation: Conversation | None, held: int | None, flash: bool
) -> Tensor | None:
    """The attention mask for a layer of a segment, from the one that the model made for segment 0.

    Args:
        mask: None, or a tensor [B, S] or [B, h, Q, S] over all slots.
        segment: index of the segment.
        now: the segment.
        conversation: what earlier calls left; None in a fresh one.
        held: keys that the layer's cache holds already; None for layers that keep none (recurrent ones).
        flash: whether the attention takes [B, S] masks only.
    """
    new = now.in_slots
    old = conversation.slots if conversation is not None else 0
    if held is None or (mask is not None and mask.dim() == 2 and mask.shape[1] == new.length < old + new.length):
        if mask is None:  # a recurrent layer wants a mask of this call's tokens
            return new.valid if new.padded and not new.identity else None
        return mask if new.identity else new.take(mask) * new.valid.to(mask.device)
    seen = conversation.held_valid[segment] if conversation is not None else None
    if mask is None and not new.padded and seen is None:
        return None
    if mask is not None and new.identity and held == mask.shape[-1] - new.length and (segment == 0 or not old):
        return mask
    columns, visible = new.index + old, new.valid
    if held and conversation is not None:
        before = conversation.held[segment]
        before = torch.arange(old, device=columns.device).expand(len(columns), old) if before is None else before
        seen = torch.ones_like(before, dtype=torch.bool) if seen is None else seen
        columns = torch.cat([before[:, before.shape[1] - held :].to(columns.device), columns], dim=1)
        visible = torch.cat([seen[:, seen.shape[1] - held :].to(columns.device), visible], dim=1)
    if mask is not None:
        return cut_mask(mask, None if new.identity else new, columns, visible)
    if flash:
        return visible
    queries, keys = new.valid.shape[1], visible.shape[1]
    causal = torch.ones(queries, keys, dtype=torch.bool, device=visible.device).tril(keys - queries)
    return causal & visible[:, None, None, :]


def opened_mask(mask: Tensor | None, now: Segment, seen: Tensor | None, old: int) -> Tensor:
    """A mask [B, 1, n, S] under which every token sees all that are not padding; rows without an image keep theirs.

    Args:
        mask: None, or [B, h, n, S], what the layer would be called with.
        now: the segment of the layer.
        seen: BoolTensor [B, ..old]: cached keys that are not padding; None: all are.
        old: keys that the layer's cache holds.
    """
    cut = now.cut
    before = cut.valid.new_ones(len(cut.valid), old) if seen is None else seen[:, seen.shape[1] - old :]
    visible = torch.cat([before, cut.valid.to(before.device)], dim=1)[:, None, None].expand(-1, 1, len(cut), -1)
    pictured = on(visible.device, now.visual_counts)[:, None, None, None] > 0
    if mask is None:
        place = torch.arange(visible.shape[-1], device=visible.device)
        return visible & (pictured | (place <= place[old:, None]))
    if not mask.is_floating_point():
        return torch.where(pictured, visible, mask)
    lowest = torch.finfo(mask.dtype).min
    opened = torch.zeros(visible.shape, dtype=mask.dtype, device=visible.device).masked_fill(~visible, lowest)
    return torch.where(pictured, opened, mask)
