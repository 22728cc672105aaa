"""The attention mask of a decoder layer whose segment sees fewer tokens than the model was given."""

import torch
from torch import Tensor

from vtc.ops.cut import cut_mask
from vtc.ops.host import on
from vtc.seam.conversation import Conversation
from vtc.seam.segments import Segment


def layer_mask(
    mask: Tensor | None,
    segment: int,
    now: Segment,
    conversation: Conversation | None,
    held: int | None,
    flash: bool,
    room: int = 0,
) -> Tensor | None:
    """The attention mask for a layer of a segment, from the one that the model made for segment 0.

    Args:
        mask: None, or a tensor [B, S] or [B, h, Q, S] over all slots.
        segment: index of the segment.
        now: the segment.
        conversation: what earlier calls left; None in a fresh one.
        held: keys that the layer's cache holds already; None for layers that keep none (recurrent ones).
        flash: whether the attention takes [B, S] masks only.
        room: keys that a static layer gives behind the new ones, which hold nothing yet.

    Raises:
        RuntimeError: the mask covers another number of tokens than were fed.
    """
    new = now.in_slots
    old = conversation.slots if conversation is not None else 0
    if held is None or (mask is not None and mask.dim() == 2 and mask.shape[1] == new.length < old + new.length):
        if mask is None:  # a recurrent layer wants a mask of this call's tokens
            return new.valid if new.padded and not new.identity else None
        return mask if new.identity else new.take(mask) * new.valid.to(mask.device)
    seen = conversation.held_valid[segment] if conversation is not None else None
    if mask is None and not new.padded and seen is None and not room:
        return None
    whole = None if mask is None else mask.shape[-1] - new.length - (room if mask.dim() == 4 else 0)
    if new.identity and held == whole and (segment == 0 or not old) and (not room or held == old):
        return mask
    if mask is not None and mask.shape[-1] > old + new.length:  # made for a static cache, room included
        mask = mask[..., : old + new.length]
    hidden = 0 if mask is None else old + new.length - mask.shape[-1]  # a window's mask begins where its keys do
    if mask is not None and hidden and held != old - hidden:
        raise RuntimeError(
            f"vtc: a layer's attention mask of shape {tuple(mask.shape)} does not cover the {old} tokens that were fed "
            f"before and the {new.length} new ones, so which of its columns are dropped ones is not known; run "
            "`vtc doctor`, or call vtc.unpatch"
        )
    columns, visible = new.index + old, new.valid
    if held and conversation is not None:
        before = conversation.held[segment]
        before = torch.arange(old, device=columns.device).expand(len(columns), old) if before is None else before
        seen = torch.ones_like(before, dtype=torch.bool) if seen is None else seen
        columns = torch.cat([before[:, before.shape[1] - held :].to(columns.device), columns], dim=1)
        visible = torch.cat([seen[:, seen.shape[1] - held :].to(columns.device), visible], dim=1)
    if mask is not None:
        return with_room(cut_mask(mask, None if new.identity else new, columns - hidden, visible), room)
    if flash:
        return visible  # a mask that is shorter than the keys says how many of them hold something
    queries, keys = new.valid.shape[1], visible.shape[1]
    causal = torch.ones(queries, keys, dtype=torch.bool, device=visible.device).tril(keys - queries)
    return with_room(causal & visible[:, None, None, :], room)


def with_room(mask: Tensor, room: int) -> Tensor:
    """A mask [B, h, n, S] with `room` more columns behind, which nobody sees; one [B, S] stays."""
    if not room or mask.dim() == 2:
        return mask
    hidden = torch.finfo(mask.dtype).min if mask.is_floating_point() else 0
    return torch.cat([mask, mask.new_full((*mask.shape[:-1], room), hidden)], dim=-1)


def opened_mask(mask: Tensor | None, now: Segment, seen: Tensor | None, old: int, room: int = 0) -> Tensor:
    """A mask [B, 1, n, S] under which each token sees the whole prompt but padding; rows without an image keep theirs.

    Args:
        mask: None, or [B, h, n, S], what the layer would be called with.
        now: the segment of the layer.
        seen: BoolTensor [B, ..old]: cached keys that are not padding; None: all are.
        old: keys that the layer's cache holds.
        room: keys that a static layer gives behind the new ones.
    """
    cut = now.cut
    if room:
        return with_room(opened_mask(None if mask is None else mask[..., :-room], now, seen, old), room)
    before = cut.valid.new_ones(len(cut.valid), old) if seen is None else seen[:, seen.shape[1] - old :]
    visible = torch.cat([before, cut.valid.to(before.device)], dim=1)[:, None, None].expand(-1, 1, len(cut), -1)
    if now.behind is not None:  # what stands behind the prompt stays causal, as in the calls that bring it
        place = torch.arange(visible.shape[-1], device=visible.device)
        answer = torch.cat([torch.zeros_like(before), now.behind.to(before.device)], dim=1)[:, None, None]
        visible = visible & (~answer | (place <= place[old:, None]))
    pictured = on(visible.device, now.visual_counts)[:, None, None, None] > 0
    if mask is None:
        place = torch.arange(visible.shape[-1], device=visible.device)
        return visible & (pictured | (place <= place[old:, None]))
    if not mask.is_floating_point():
        return torch.where(pictured, visible, mask)
    lowest = torch.finfo(mask.dtype).min
    opened = torch.zeros(visible.shape, dtype=mask.dtype, device=visible.device).masked_fill(~visible, lowest)
    return torch.where(pictured, opened, mask)
