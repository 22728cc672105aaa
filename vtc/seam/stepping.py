"""Decode steps of a static cache: nothing is due in them but masks and positions, made of tensors that stay in place.

`torch.compile` follows every line here, so that a step is one graph. Whatever else a patched model is called with
leaves the graph at the hooks.
"""

from typing import Any

import torch
from torch import Tensor

from vtc.calls.cache import CompressedCache, has_fixed_length, own_length
from vtc.calls.decoder import DecoderCall, cache_of_step
from vtc.seam.composition import Composition
from vtc.seam.conversation import Conversation, Steps


def steps_of(composition: Composition, conversation: Conversation, cache: Any, masked: bool) -> Steps | None:
    """What the steps behind a call with a static cache need; None where they are calls as others.

    Args:
        composition: what the patch knows.
        conversation: the call is added to it.
        cache: that was filled.
        masked: whether the user tells what is padding.
    """
    if not composition.steps_alone or (conversation.outside and composition.windowed):
        return None  # windows of masks that are made outside count dropped tokens as well
    room, visible = cache.get_max_length(), []
    for segment, valid in enumerate(conversation.held_valid):
        fed = conversation.fed(segment)
        if valid is None and masked:
            valid = conversation.shift[0].new_ones(conversation.rows(), fed, dtype=torch.bool)
        visible.append(None if valid is None else torch.nn.functional.pad(valid, (0, room - fed), value=True))
    return Steps(visible, conversation.shift[0] if composition.packs_at_entry else None)


def is_quiet(args: tuple, kwargs: dict[str, Any]) -> bool:
    """Whether hooks keep still in a call of a model: a step that needs nothing, or what `step` does, of its decoder."""
    cache = cache_of_step(args, kwargs)
    if isinstance(cache, CompressedCache):
        return is_step(cache, kwargs)
    return torch.compiler.is_compiling() and cache is not None and has_fixed_length(cache)


def is_step(cache: Any, kwargs: dict[str, Any]) -> bool:
    """Whether a call with one token a row is a step of a compressed static cache that `step` can do."""
    if not isinstance(cache, CompressedCache) or not cache._vtc.stepping:
        return False
    mask = kwargs.get(DecoderCall.mask.names[0])
    told = isinstance(mask, Tensor) and mask.dim() == 2
    return not told or cache._vtc.steps.visible[0] is not None


def step(composition: Composition, cache: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The decoder's arguments, with mask and positions of what its layers hold."""
    steps: Steps = cache._vtc.steps
    embeds = kwargs["inputs_embeds"]
    mask_name, positions_name = DecoderCall.mask.names[0], DecoderCall.positions.names[0]
    told = kwargs.get(mask_name)
    if isinstance(told, Tensor) and told.dim() == 2:
        for segment, visible in enumerate(steps.visible):
            place = torch.zeros(1, dtype=torch.long, device=visible.device) + _own(composition, cache, segment)
            visible.index_copy_(1, place, told[:, -1:].to(visible))
    changed = {mask_name: _mask(composition, cache, embeds)}
    if steps.shift is not None:
        positions = kwargs.get(positions_name)
        if positions is None:
            positions = torch.zeros_like(steps.shift) + cache.get_seq_length()
        changed[positions_name] = positions - steps.shift
    return {**kwargs, **changed}


def step_layer(composition: Composition, layer: int, kwargs: dict[str, Any]) -> dict[str, Any]:
    """A layer's arguments in a step: of the masks of all segments, its own."""
    name, segment = DecoderCall.mask.names[0], composition.segment_of_layers[layer]
    mask = kwargs.get(name)
    if not isinstance(mask, Tensor) or mask.dim() != 4:
        return kwargs
    return {**kwargs, name: mask[:, segment : segment + 1]}


def _own(composition: Composition, cache: Any, segment: int) -> Any:
    """Tokens that the layers of a segment hold."""
    return own_length(cache, composition.layer_that_keeps[segment])


def _mask(composition: Composition, cache: Any, embeds: Tensor) -> Tensor | None:
    """The mask of a step.

    Where all layers hold the same it is [B, room], from which the decoder makes its own; else [B, segments, 1, room].
    """
    steps: Steps = cache._vtc.steps
    if not composition.prunes:
        return steps.visible[0]
    place, masks = torch.arange(cache.get_max_length(), device=embeds.device), []
    for segment, visible in enumerate(steps.visible):
        seen = (place <= _own(composition, cache, segment))[None]
        masks.append(seen.expand(len(embeds), -1) if visible is None else seen & visible)
    mask = torch.stack(masks, dim=1)[:, :, None]
    if composition.adds_masks:
        lowest = torch.finfo(embeds.dtype).min
        return torch.zeros(mask.shape, dtype=embeds.dtype, device=mask.device).masked_fill(~mask, lowest)
    return mask
