"""What a compressed model can't do, said in a sentence before it goes wrong."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from vtc.method import Method, Prune, Selector
from vtc.tap import PREFIX

if TYPE_CHECKING:
    from vtc.seam import Seam

CHUNKS = (
    "prefill_chunk_size cuts images apart, and a compressed model must see each whole; leave it None (a compressed "
    "prefill is short)"
)


def split_kinds(methods: Sequence[Method]) -> tuple[Selector | None, list[Prune]]:
    """The selector (or None) and the prunes among `methods`; "none" is neither.

    Raises:
        ValueError: more than one selector, or a method of another kind.
    """
    selectors = [method for method in methods if isinstance(method, Selector) and method.name != "none"]
    if len(selectors) > 1:
        names = " and ".join(method.name for method in selectors)
        raise ValueError(f"{names} can't be composed: both select before the first decoder layer; keep one of them")
    for method in methods:
        if not isinstance(method, Selector | Prune):
            raise ValueError(
                f"{method.name} is a {method.kind}, which this release does not run; use a Selector or a Prune"
            )
    return (selectors[0] if selectors else None), [method for method in methods if isinstance(method, Prune)]


def check_schedules(seam: "Seam") -> dict[int, tuple[Prune, int]]:
    """Layer -> the prune that acts in front of it, and which of its stages that is.

    Raises:
        ValueError: a layer out of range or not ascending, two prunes in front of one layer, an empty schedule.
    """
    prune_at: dict[int, tuple[Prune, int]] = {}
    for prune in seam.prunes:
        schedule = prune.schedule(len(seam.parts.layers))
        if not schedule or list(schedule) != sorted(set(schedule)):
            raise ValueError(f"{prune.name}: schedule {schedule!r} must name one or more layers, ascending")
        for stage, layer in enumerate(schedule):
            seam.parts.layer(layer, prune.name)
            if layer in prune_at:
                other = prune_at[layer][0].name
                raise ValueError(f"{prune.name} and {other} both prune in front of layer {layer}; move one of them")
            prune_at[layer] = prune, stage
    if prune_at and "flex" in (getattr(seam.decoder_config, "_attn_implementation", None) or ""):
        names = ", ".join(prune.name for prune in seam.prunes)
        raise ValueError(
            f"{names} can't cut the block masks of flex_attention; load the model with attn_implementation='sdpa'"
        )
    return prune_at


def check_scores(seam: "Seam", scores: dict[tuple[str, int], list[Tensor]]) -> None:
    """Refuse a selector whose tower scores were not seen.

    Raises:
        ValueError: the features were made before the model was patched, or by a tower that is not tapped.
    """
    wanted = [("received", block) for block in seam.needs.received] + [("cls", block) for block in seam.needs.cls]
    missing = [f"{what} of block {block}" for what, block in wanted if (what, block) not in scores]
    if missing and seam.selector is not None:
        raise ValueError(
            f"{seam.selector.name} needs attention scores of the vision tower ({', '.join(missing)}) that were not "
            "seen: make the features after vtc.patch, by the patched model itself; or use a method that reads no "
            "attention, such as 'divprune'"
        )


def check_call(seam: "Seam", kwargs: dict[str, Any]) -> None:
    """Refuse a call that a compressed decoder can't do.

    Raises:
        ValueError: static caches, attention outputs, tuples as output, gradient checkpointing with a prune, packed
            samples, an attention implementation that was changed after `vtc.patch`.
    """
    cache, config, decoder = kwargs.get("past_key_values"), seam.decoder_config, seam.parts.decoder
    if cache is not None and getattr(cache, "is_compileable", False) and len(getattr(cache, "layers", [])):
        raise ValueError(
            f"a {type(cache).__name__} has a fixed length for all layers, so a compressed model can't use it; "
            "use the default dynamic cache (cache_implementation=None)"
        )
    if kwargs.get("output_attentions") or getattr(config, "output_attentions", False):
        raise ValueError(
            "output_attentions=True is not available while a model is compressed, since layers see different "
            "tokens; unpatch the model for it, or read vtc.trace(model)"
        )
    if getattr(config, "return_dict", True) is False:
        raise ValueError("the decoder's config says return_dict=False, which hides its outputs; set it to True")
    if seam.prunes and decoder.training and getattr(decoder, "gradient_checkpointing", False):
        raise ValueError(
            f"{', '.join(prune.name for prune in seam.prunes)} can't run under gradient checkpointing, which calls "
            "layers again out of order; call model.gradient_checkpointing_disable() or use a selector"
        )
    positions = kwargs.get("position_ids") if cache is None and kwargs.get("attention_mask") is None else None
    if positions is not None and positions.dim() == 2 and (positions.diff(dim=1) < 0).any():
        raise ValueError(
            "position_ids start again within a row: samples packed into one row can't be compressed; give each "
            "sample a row of its own"
        )
    for module in seam.tapped:
        name = str(getattr(module.config, "_attn_implementation", None))
        if not name.startswith(PREFIX):
            raise ValueError(
                f"the attention implementation was set to {name!r} after vtc.patch, which cut the method off; "
                "call vtc.unpatch, set it, and patch again"
            )


def check_visible(layout: Any, host_mask: Tensor) -> None:
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
