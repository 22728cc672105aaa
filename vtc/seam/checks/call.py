"""Calls of a decoder that can't be compressed, said in a sentence before anything is computed."""

from typing import Any

from torch import Tensor, nn

from vtc.calls.balancing import LOSS, ROUTER_LOGITS, Routed
from vtc.calls.cache import can_be_asked, has_fixed_length
from vtc.calls.composite import CompositeCall
from vtc.calls.decoder import DecoderCall
from vtc.model.layout import Layout
from vtc.seam.composition import Composition
from vtc.seam.conversation import Conversation, conversation_of
from vtc.tower.prompt import Prompt


def is_uncounted(composition: Composition, prompt: Prompt, cache: Any) -> bool:
    """Whether a call is text in a cache that does not count tokens (continuous batching): no patch can have cut it."""
    text = not prompt.shows and not prompt.placeholders
    return text and composition.counts_tokens and cache is not None and not can_be_asked(cache)


def check_cache(composition: Composition, cache: Any) -> None:
    """Refuse a static cache that has no room for what a method does.

    Raises:
        ValueError: tokens come back in it.
    """
    if composition.reviver is not None and has_fixed_length(cache):
        name = composition.reviver.name
        raise ValueError(
            f"{name} brings tokens back in decode steps, for which a {type(cache).__name__} has no room; use the "
            f"default cache (cache_implementation=None), or {composition.reviver.unrevived}"
        )


def check_export(composition: Composition, call: CompositeCall) -> None:
    """Refuse to export a call whose graph would do without what is removed.

    Raises:
        ValueError: it has pictures, or goes on with a compressed cache.
    """
    if not composition.keeps_all and (call.shows or conversation_of(call.cache) is not None):
        raise ValueError(
            f"a model patched with {composition.spec} can't be exported: which tokens go depends on what a picture "
            "shows, and a graph has one shape; call vtc.unpatch first, and patch again behind it"
        )


def check_no_replica(module: nn.Module) -> None:
    """Refuse a copy that torch.nn.DataParallel made, whose hooks are those of the original's parts.

    Raises:
        ValueError: it is one.
    """
    if getattr(module, "_is_replica", False):
        raise ValueError(
            "torch.nn.DataParallel calls copies of a patched model, whose own parts vtc does not see; use "
            "torch.nn.parallel.DistributedDataParallel, or call vtc.unpatch"
        )


def check_balanced(output: Any, family: str) -> None:
    """Refuse a balancing loss that was computed of tokens that are gone.

    Args:
        output: of the whole model; None where it failed.
        family: of the model.

    Raises:
        RuntimeError: it was.
    """
    given = getattr(output, ROUTER_LOGITS, None)
    if isinstance(given, Routed) and not given.balanced and getattr(output, LOSS, None) is not None:
        raise RuntimeError(
            f"vtc: {family} computes its {LOSS} otherwise than vtc knows, so that dropped tokens count in it; "
            "give output_router_logits=False, or unpatch the model for this call"
        )


def check_entered(prompt: Prompt, call: DecoderCall, family: str) -> None:
    """Refuse a decoder's call whose embeddings, or what came before it, were not seen.

    Raises:
        RuntimeError: placeholders were filled for it, and it brings no embeddings, or nobody saw the model's call.
    """
    if prompt.placeholders and call.embeds is None:
        raise RuntimeError(
            f"vtc: the decoder of {family} was called with {', '.join(map(call.label, call.values)) or 'nothing'}, and "
            "none of it are the embeddings that visual features were put into; run `vtc doctor`, or call vtc.unpatch"
        )
    if prompt.placeholders and not prompt.open:
        raise RuntimeError(
            f"vtc: {family} filled placeholders outside of a call of its model as a module (by model.forward?), so its "
            "mask and ids were not seen; call the model itself, or call vtc.unpatch"
        )


def check_turn(composition: Composition, conversation: Conversation, layout: Layout, answers: bool) -> None:
    """Refuse a turn in which some rows bring images and others would bring back tokens of earlier ones.

    Args:
        composition: what the patch knows.
        conversation: what earlier calls left.
        layout: the images of the call.
        answers: whether tokens of the call stand behind its prompt.

    Raises:
        ValueError: it is one, or follows several samples in one row, or tokens behind the prompt would choose anew what
            they see.
    """
    if conversation.packed:
        raise ValueError(
            "this cache was filled with several samples packed into one row, and which of them goes on is not known; "
            "give each sample a row of its own, or give use_cache=False"
        )
    if answers and composition.reviver is not None:
        name = composition.reviver.name
        raise ValueError(
            f"with {name} each token behind the prompt chooses anew what it sees, which one call of all of them can't "
            f"do; feed them one by one with a cache, or {composition.reviver.unrevived}"
        )
    if conversation.revival is None or composition.reviver is None or not layout.images:
        return
    for row, count in enumerate(layout.tokens_per_row()):
        if not count and any(counts[row] for counts in conversation.revival.counts.values()):
            name = composition.reviver.name
            raise ValueError(
                f"row {row} brings no image in this turn while other rows do, and {name} would choose anew for it from "
                f"its earlier image, which one call can't do; run these rows apart, or {composition.reviver.unrevived}"
            )


def check_visible(layout: Layout, host_mask: Tensor) -> None:
    """Refuse images that the attention mask hides.

    Args:
        layout: the images of the call.
        host_mask: BoolTensor [B, L] on the CPU.

    Raises:
        ValueError: the mask is 0 at a visual token.
    """
    for image in layout.images:
        if not host_mask[image.row, image.positions].all():
            raise ValueError(
                f"attention_mask hides visual tokens of row {image.row}; leave masked images out of the prompt, or "
                "unpatch the model for this call"
            )
