"""Decode steps of a static cache: nothing is due in them but masks and positions, made of tensors that stay in place.

`torch.compile` follows every line here, so that a step is one graph. Whatever else a patched model is called with
leaves the graph at the hooks.
"""

from typing import Any

import torch
from torch import Tensor, nn

from vtc.calls.cache import CompressedCache, has_fixed_length, own_length
from vtc.calls.composite import turns_several_axes
from vtc.calls.decoder import EMBEDS, HIDDEN, MASK, POSITIONS, ROTARY, cache_of_step, window_of
from vtc.model.compiled import exports
from vtc.seam.composition import Composition
from vtc.seam.layers import Layers
from vtc.seam.steps import Steps


def steps_of(composition: Composition, layers: Layers, cache: Any, masked: bool) -> Steps | None:
    """What the steps behind a call with a static cache need; None where they are calls as others.

    Args:
        composition: what the patch knows.
        layers: of the call, which the conversation has been told of.
        cache: that was filled.
        masked: whether the user tells what is padding.
    """
    conversation, room = layers.conversation, cache.get_max_length()
    longest = conversation.logical + room - conversation.fed(0)
    if not composition.steps_alone or (composition.windowed and longest >= window_of(composition.decoder_config)):
        return None  # a window may count dropped tokens; and layers that keep no more have room for just that
    rotary = None
    shifts: list[Tensor | None] = list(conversation.shift)
    if composition.packs_inside and not turns_several_axes(composition.parts.composite):
        rotary = _rotary(layers)
        if rotary is None:
            return None
    elif not composition.packs_at_entry:
        shifts = [None for _ in shifts]
    visible = []
    for segment, valid in enumerate(conversation.held_valid):
        fed = conversation.fed(segment)
        if valid is None and masked:
            valid = conversation.shift[0].new_ones(conversation.rows(), fed, dtype=torch.bool)
        visible.append(None if valid is None else torch.nn.functional.pad(valid, (0, room - fed), value=True))
    return Steps(tuple(visible), tuple(shifts), composition.layer_that_keeps, composition.segment_of_layers, rotary)


def _rotary(layers: Layers) -> nn.Module | None:
    """The one embedding that made the tables of every layer, called with hidden states and positions alone."""
    calls = layers.rotary
    alone = len(calls) == 1 and len(calls[0].args) + len(calls[0].kwargs) == 2 and calls[0].positions.dim() == 2
    return calls[0].module if alone and layers.arguments.turned_by_name else None


def is_quiet(keeps_all: bool, args: tuple, kwargs: dict[str, Any]) -> bool:
    """Whether hooks keep still in a call of a model: a step that needs nothing, or what `step` does, of its decoder.

    So do they in what is compiled of a model of which nothing is ever removed, and in all that is exported.
    """
    if exports() or (torch.compiler.is_compiling() and keeps_all):
        return True
    cache = cache_of_step(args, kwargs)
    if isinstance(cache, CompressedCache):
        return is_step(cache, kwargs)
    return torch.compiler.is_compiling() and cache is not None and has_fixed_length(cache)


def is_step(cache: Any, kwargs: dict[str, Any]) -> bool:
    """Whether a call with one token a row is a step of a compressed static cache that `step` can do."""
    if not isinstance(cache, CompressedCache) or not cache._vtc.stepping:
        return False
    mask = kwargs.get(MASK)
    told = isinstance(mask, Tensor) and mask.dim() == 2
    steps: Any = cache._vtc.steps
    return not told or steps.visible[0] is not None


def step(composition: Composition, cache: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The decoder's arguments, with mask and positions of what its layers hold.

    Raises:
        RuntimeError: the attention takes other masks by now.
    """
    if not composition.takes_square_masks:
        raise RuntimeError(
            "vtc: the attention implementation was changed within a conversation with a static cache, whose steps were "
            "made ready for masks of queries by keys; set sdpa or eager again, or start the conversation anew"
        )
    steps: Steps = cache._vtc.steps
    embeds = kwargs[EMBEDS]
    told = kwargs.get(MASK)
    if isinstance(told, Tensor) and told.dim() == 2:
        for segment, visible in enumerate(steps.visible):
            assert visible is not None
            place = torch.zeros(1, dtype=torch.long, device=visible.device) + own_length(cache, steps.keeper[segment])
            visible.index_copy_(1, place, told[:, -1:].to(visible))
    changed = {MASK: _mask(composition, cache, embeds)}
    if steps.shift[0] is not None:
        positions = kwargs.get(POSITIONS)
        if positions is None:
            positions = torch.zeros_like(steps.shift[0]) + cache.get_seq_length()
        changed[POSITIONS] = positions - steps.shift[0]
    return {**kwargs, **changed}


def step_layer(cache: Any, layer: int, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """A layer's arguments in a step: of the masks of all segments its own, and tables for its own positions."""
    steps: Steps = cache._vtc.steps
    segment, mask, changed = steps.of_layer[layer], kwargs.get(MASK), {}
    if isinstance(mask, Tensor) and mask.dim() == 4:
        changed[MASK] = mask[:, segment : segment + 1]
    if steps.rotary is not None and segment:
        hidden = args[0] if args else kwargs[HIDDEN]
        lag, first = steps.shift[segment], steps.shift[0]
        assert lag is not None and first is not None
        own = kwargs[POSITIONS] - lag + first
        changed[ROTARY] = steps.rotary.forward(hidden, own)
    return {**kwargs, **changed}


def _mask(composition: Composition, cache: Any, embeds: Tensor) -> Tensor | None:
    """The mask of a step.

    Where all layers hold the same it is [B, room], from which the decoder makes its own; else [B, segments, 1, room].
    """
    steps: Steps = cache._vtc.steps
    if not composition.prunes:
        return steps.visible[0]
    place, masks = torch.arange(cache.get_max_length(), device=embeds.device), []
    for segment, visible in enumerate(steps.visible):
        seen = (place <= own_length(cache, steps.keeper[segment]))[None]
        masks.append(seen.expand(len(embeds), -1) if visible is None else seen & visible)
    mask = torch.stack(masks, dim=1)[:, :, None]
    if composition.adds_masks:
        lowest = torch.finfo(embeds.dtype).min
        return torch.zeros(mask.shape, dtype=embeds.dtype, device=mask.device).masked_fill(~mask, lowest)
    return mask
