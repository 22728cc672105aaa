"""Holds a cache against the conversation that it belongs to, and against what a call says of its past."""

from typing import Any

import torch
from torch import Tensor

from vtc.calls.cache import has_fixed_length, is_whole, keys_in_layer, lengths_in, tokens_in
from vtc.ops.host import EarlyCopies
from vtc.seam.composition import Composition
from vtc.seam.conversation import Conversation, Lease

_ANEW = "start the conversation anew with its whole prompt, or call vtc.unpatch; `vtc doctor` tells what fits"


def check_lengths(cache: Any, conversation: Conversation, composition: Composition) -> None:
    """Hold a cache against the plan (contract clause 9), by its own count of what it holds.

    Args:
        cache: before or after a call.
        conversation: what it was fed until then.
        composition: what the patch knows.

    Raises:
        RuntimeError: a layer holds another number of tokens than its segment.
    """
    for layer, (length, segment) in enumerate(zip(lengths_in(cache), composition.segment_of_layers)):
        expected = conversation.fed(segment)
        if length not in (None, expected) and keys_in_layer(cache, layer, expected):
            raise RuntimeError(
                f"vtc: layer {layer} of {composition.parts.family} has {length} tokens in its cache where the plan "
                f"says {expected}; somebody else filled or cut it. {_ANEW[0].upper()}{_ANEW[1:]}"
            )


def check_past(
    cache: Any,
    conversation: Conversation | None,
    mask: Tensor | None,
    positions: Tensor | None,
    length: int,
    early: EarlyCopies,
    lease: Lease,
    pictures: bool,
) -> None:
    """Hold what a call says of its past against what vtc knows of it.

    Args:
        cache: of the call; None: it has none, or none was found.
        conversation: that lives on it.
        mask: the call's attention mask, over everything that was fed; None: it has none.
        positions: its position ids.
        length: new tokens.
        early: what the host knows of its arguments.
        lease: of the patch; before it has compressed anything, no cache can have lost tokens by it.
        pictures: whether the call has some, so that it is no decode step.

    Raises:
        RuntimeError: the call goes on with something that vtc does not know, or not with what it knows.
    """
    covered = mask.shape[-1] if mask is not None else None
    start = _start(positions, early)
    if conversation is not None:
        if covered is not None and covered not in (conversation.logical + length, length):
            raise RuntimeError(
                f"vtc: the attention mask covers {covered} tokens, where the conversation has {conversation.logical} "
                f"and this call brings {length}; {_ANEW}"
            )
        return
    if has_fixed_length(cache):  # of which nothing is removed, and whose masks cover room to come
        return
    held = tokens_in(cache)
    lengths = {count for count in lengths_in(cache) if count is not None} - {0}
    if len(lengths) > 1 or (held and lengths and lengths != {held}):
        raise RuntimeError(
            f"vtc: this {type(cache).__name__} holds {sorted(lengths)} tokens in its layers, and what was removed from "
            f"it is not known (a cache that was rebuilt from another one's keys?); {_ANEW}"
        )
    if (covered is not None and covered not in (held + length, length)) or (not held and covered not in (None, length)):
        raise RuntimeError(
            f"vtc: the attention mask covers {covered} tokens, and this call brings {length} behind {held} that were "
            f"seen in a cache; what came before is not known. {_ANEW[0].upper()}{_ANEW[1:]}"
        )
    fits = covered == held + length or start in (held, held + 1)  # PaliGemma counts from 1
    if held and lease.used and not is_whole(cache) and not fits:
        raise RuntimeError(
            f"vtc: this {type(cache).__name__} was filled where vtc did not see it, and nothing tells whether it is "
            f"whole; fill it with the patched model, or {_ANEW}"
        )
    if not held and lease.used and not pictures and start is not None and start > 1:
        raise RuntimeError(
            f"vtc: position ids begin at {start}, and no cache was seen that holds what is before; {_ANEW}"
        )


def seen_before(mask: Tensor | None, old: int, length: int, device: torch.device) -> Tensor | None:
    """What of the tokens before a call is no padding.

    Args:
        mask: the call's, [B, S]; None: it has none.
        old: tokens before the call.
        length: its own.
        device: where the answer is wanted.

    Returns:
        BoolTensor [B, old]; None where nothing is known to be padding.

    Raises:
        ValueError: the mask covers the new tokens alone.
    """
    if mask is None or not old:
        return None
    if mask.shape[1] < old + length:
        raise ValueError(
            f"attention_mask covers {mask.shape[1]} tokens, and a compressed call behind {old} needs it over all "
            f"{old + length}, since what is padding among the earlier ones is not known otherwise"
        )
    return mask[:, :old].to(device).bool()


def _start(positions: Tensor | None, early: EarlyCopies) -> int | None:
    """The smallest of some position ids [B, L]; None where there are none, or it would mean to wait for the device."""
    if positions is None or positions.dim() != 2 or not positions.numel():
        return None
    known = early.of(positions)
    return None if known is None else int(known.min())
