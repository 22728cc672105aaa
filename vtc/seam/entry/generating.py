"""What a patch sees, and changes, of transformers' `generate`."""

import functools
from collections.abc import Iterator
from typing import Any

from torch import nn

from vtc.calls import generate
from vtc.calls.cache import has_fixed_length
from vtc.calls.composite import CompositeCall
from vtc.calls.decoder import cache_of_step
from vtc.method.prune import Prune
from vtc.model.offsets import Offsets
from vtc.model.wrap import Wrap
from vtc.seam.composition import Composition
from vtc.seam.conversation import conversation_of
from vtc.seam.prompt.ending import PromptEnding
from vtc.seam.stepping import is_step
from vtc.tower.observer import Observer


def wraps_of_generate(
    composition: Composition, observer: Observer, ending: PromptEnding, offsets: Offsets
) -> Iterator[Wrap]:
    """Who sees which methods of the model, where it has them.

    Args:
        composition: what the patch knows.
        observer: sees the prompt.
        ending: knows where it ends.
        offsets: keeps the M-RoPE offset with its conversation.
    """
    model: nn.Module = composition.adapter.model
    if hasattr(model, generate.STEP_INPUTS):
        yield Wrap(model, generate.STEP_INPUTS, after=functools.partial(_see_inputs, composition.parts.composite))
    if hasattr(model, generate.PREFILL):
        yield Wrap(model, generate.PREFILL, before=observer.before_prefill)
    if offsets.needed and hasattr(model, generate.MAKING_POSITIONS):
        yield Wrap(model, generate.MAKING_POSITIONS, before=offsets.before_positions, after=offsets.after_positions)
    if composition.reviver is not None and hasattr(model, generate.MAKING_CACHES):
        yield Wrap(model, generate.MAKING_CACHES, before=functools.partial(_refuse_drafts, composition.reviver))
    if hasattr(model, generate.ENCODING_AHEAD):
        yield Wrap(model, generate.ENCODING_AHEAD, before=observer.see_prompt)
    if composition.reads_text and hasattr(model, generate.GENERATE):
        yield Wrap(model, generate.GENERATE, before=ending.begin, finally_=ending.end)
        if hasattr(model, generate.FINDING_INPUTS):  # else what needs to know the prompt's end says so
            yield Wrap(model, generate.FINDING_INPUTS, after=ending.see_inputs)


def _see_inputs(composite: nn.Module, output: Any, args: tuple, kwargs: dict[str, Any]) -> None:
    """Called with what `generate` will call the model with."""
    if not isinstance(output, dict):
        return
    call = CompositeCall((), output, composite)
    if not has_fixed_length(call.cache) or is_step(cache_of_step((), output), {}):
        return
    if conversation_of(call.cache) is not None or call.shows:
        generate.give_mask_back(output, args, kwargs)


def _refuse_drafts(reviver: Prune, args: tuple, kwargs: dict[str, Any]) -> None:
    """Called when `generate` makes its cache.

    Raises:
        ValueError: it will take steps back, or go without a cache.
    """
    if generate.goes_without_cache(args, kwargs):
        raise ValueError(
            f"without a cache each step would choose anew for all tokens before it as well, which {reviver.name} "
            f"does for new ones alone; leave use_cache=True, or {reviver.unrevived}"
        )
    if generate.takes_drafts(args, kwargs):
        raise ValueError(
            f"assisted generation takes steps back, which {reviver.name} can't once tokens came back; generate "
            f"without drafts, or {reviver.unrevived}"
        )
