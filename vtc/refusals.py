"""What a compressed model can't do, said in a sentence before it goes wrong."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vtc.method import Decision, Method, Prune, Reducer, Rows, Selector
from vtc.patches import Patches
from vtc.reduction import Mixing, Reduction
from vtc.tap import PREFIX

if TYPE_CHECKING:
    from vtc.conversation import Conversation
    from vtc.host import EarlyCopies
    from vtc.seam import Seam

CHUNKS = (
    "prefill_chunk_size cuts images apart, and a compressed model must see each whole; leave it None (a compressed "
    "prefill is short)"
)


def split_kinds(methods: Sequence[Method]) -> tuple[Reducer | None, Selector | None, list[Prune]]:
    """The reducer, the selector (or None) and the prunes among `methods`; "none" is neither.

    Raises:
        ValueError: more than one of reducers and selectors, or a method of another kind.
    """
    parts = [part for method in methods for part in method.split()]
    outer = [part for part in parts if isinstance(part, Reducer | Selector) and part.name != "none"]
    if len(outer) > 1:
        names = " and ".join(part.name for part in outer)
        raise ValueError(
            f"{names} can't be composed: both decide what enters the first decoder layer; keep one of them"
        )
    for part in parts:
        if not isinstance(part, Reducer | Selector | Prune):
            raise ValueError(f"{part.name} is neither a Reducer nor a Selector nor a Prune; derive it from one of them")
    reducer = next((part for part in outer if isinstance(part, Reducer)), None)
    selector = next((part for part in outer if isinstance(part, Selector)), None)
    return reducer, selector, [part for part in parts if isinstance(part, Prune)]


def check_blocks(seam: "Seam") -> tuple[int, ...]:
    """The tower blocks at which the seam's reducer acts; none where there is no reducer.

    Raises:
        ValueError: the tower lacks what it needs, its patches can't be followed, or a block is out of range.
    """
    reducer, parts = seam.reducer, seam.parts
    if reducer is None:
        return ()
    parts.block(0, reducer.name)
    if not seam.adapter.follows_patches:
        raise ValueError(
            f"{reducer.name} removes patches inside the vision tower, and which visual tokens they make is not known "
            f"for {parts.family}; use a selector such as 'divprune'"
        )
    blocks = reducer.blocks(parts)
    if not blocks or list(blocks) != sorted(set(blocks)):
        raise ValueError(f"{reducer.name}: blocks {blocks!r} must name one or more tower blocks, ascending")
    last = parts.feature_layer % len(parts.blocks)
    for block in blocks:
        if not 0 <= block <= last:
            raise ValueError(
                f"{reducer.name}: tower block {block} is out of range; {parts.family} reads its features from block "
                f"{last}"
            )
    return blocks


def check_tower(seam: "Seam", reducer: Reducer) -> None:
    """Refuse a pass through the tower that can't be shortened.

    Raises:
        ValueError: gradient checkpointing, or an attention implementation that was changed after `vtc.patch`.
    """
    check_tapped(seam)
    tower = seam.adapter.tower
    if tower.training and any(getattr(module, "gradient_checkpointing", False) for module in tower.modules()):
        raise ValueError(
            f"{reducer.name} can't run under gradient checkpointing of the vision tower, which calls blocks again; "
            "call model.gradient_checkpointing_disable() or use a selector"
        )


def check_decision(reducer: Reducer, reduction: Any, patches: Patches) -> None:
    """Hold a reducer's decision against its contract; values only of methods from outside: that waits for the device.

    Raises:
        RuntimeError: it breaks it.
    """
    name, images, now = reducer.name, len(patches.sizes), patches.units
    if not isinstance(reduction, Reduction):
        raise RuntimeError(f"{name}.reduce gave a {type(reduction).__name__}; it must give a vtc.Reduction or None")
    shape, mixing = tuple(reduction.kept.shape), reduction.mixing
    if len(shape) != 2 or shape[0] != images or not patches.target <= shape[1] <= now:
        raise RuntimeError(
            f"{name} left {shape} units, sequences by units; it must leave {patches.target} to {now} of each of the "
            f"{images} sequences"
        )
    if reduction.features is not None:
        raise RuntimeError(f"{name} gave features, which a reducer can't; give a mixing")
    if reduction.sizes is not None and tuple(reduction.sizes.shape) != shape:
        raise RuntimeError(f"{name} gave sizes of shape {tuple(reduction.sizes.shape)} for {shape} units")
    if type(reducer).__module__.startswith("vtc."):
        return
    kept = reduction.kept.cpu()
    if ((ordered := kept.sort(dim=1).values).diff(dim=1) <= 0).any() or ordered.min() < 0 or ordered.max() >= now:
        raise RuntimeError(f"{name} must keep units from 0 to {now - 1}, each once")
    check_mixing(name, mixing, shape[1], now, "unit")


def check_pruned(prune: Prune, decision: Any, rows: Rows) -> None:
    """Hold a prune's decision against its contract; by shapes alone: values would wait for the device.

    Raises:
        RuntimeError: it breaks it.
    """
    if not isinstance(decision, Decision):
        raise RuntimeError(f"{prune.name}.decide gave a {type(decision).__name__}; it must give a vtc.Decision")
    wanted = {"alive": rows.visual.shape, "hidden": rows.hidden.shape, "into": rows.visual.shape}
    for name, shape in wanted.items():
        value = getattr(decision, name)
        if value is not None and value.shape != shape:
            raise RuntimeError(f"{prune.name}: {name} has shape {tuple(value.shape)}; it must have {tuple(shape)}")
    if decision.alive.dtype != torch.bool:
        raise RuntimeError(f"{prune.name}: alive is {decision.alive.dtype}; it must be a BoolTensor")


def check_mixing(name: str, mixing: Mixing | None, new: int, old: int, what: str) -> None:
    """Hold a mixing of `old` tokens into `new` ones against its contract.

    Raises:
        RuntimeError: an index is out of range.
    """
    for index, size in () if mixing is None else ((mixing.target, new), (mixing.source, old)):
        if index.min() < 0 or index.max() >= size:
            raise RuntimeError(f"{name}: the mixing names a {what} that is not there")


def check_reduced(reducer: Reducer, layout: Any, recorded: Any) -> None:
    """Refuse features that `reducer` did not make.

    Raises:
        ValueError: they were made before the model was patched, or not by its own tower.
    """
    for image in layout.images:
        run = recorded.features_of(image.kind).tower
        if run is None or image.origin >= len(run.maps) or len(run.maps[image.origin]) != len(image):
            raise ValueError(
                f"{reducer.name} works inside the vision tower, but the visual features of row {image.row} did not "
                "come from it: make the features after vtc.patch, by the patched model itself; or use a selector"
            )


def check_schedules(seam: "Seam") -> dict[int, tuple[Prune, int]]:
    """Layer -> the prune that acts in front of it, and which of its stages that is.

    Raises:
        ValueError: a layer out of range or not ascending, an empty schedule, two prunes in front of one layer or that
            clash otherwise, an attention implementation that can't do what a prune asks.
    """
    prune_at: dict[int, tuple[Prune, int]] = {}
    for prune in seam.prunes:
        schedule = seam.schedules[id(prune)]
        if not schedule or list(schedule) != sorted(set(schedule)):
            raise ValueError(f"{prune.name}: schedule {schedule!r} must name one or more layers, ascending")
        for stage, layer in enumerate(schedule):
            seam.parts.layer(layer, prune.name)
            if layer in prune_at:
                other = prune_at[layer][0].name
                raise ValueError(f"{prune.name} and {other} both prune in front of layer {layer}; move one of them")
            prune_at[layer] = prune, stage
    _check_together(seam)
    implementation = getattr(seam.decoder_config, "_attn_implementation", None) or ""
    if prune_at and "flex" in implementation:
        names = ", ".join(prune.name for prune in seam.prunes)
        raise ValueError(
            f"{names} can't cut the block masks of flex_attention; load the model with attn_implementation='sdpa'"
        )
    for prune in seam.prunes:
        if seam.watches[id(prune)].open and "flash" in implementation:
            raise ValueError(
                f"{prune.name} opens the causal mask of a layer, which {implementation} can't; load the model with "
                "attn_implementation='sdpa'"
            )
    return prune_at


def _check_together(seam: "Seam") -> None:
    """Refuse prunes that would get into each other's way."""
    for prune in seam.prunes:
        if prune.revives and _slides(seam):
            raise ValueError(
                f"{prune.name} brings tokens back, which layers of {seam.parts.family} that keep only the newest would "
                f"keep in their place; give {prune.name} revive=False"
            )
        others = [other for other in seam.prunes if other is not prune]
        if prune.revives and others:
            raise ValueError(
                f"{prune.name} brings tokens back in decode steps, which {others[0].name} can't follow; keep one of "
                f"them, or give {prune.name} revive=False"
            )
        for other in others if prune.returns else ():
            watch = seam.watches[id(other)]
            watched = {*watch.attention, *watch.modules, *watch.heads}
            if both := sorted(watched & set(seam.schedules[id(prune)])):
                raise ValueError(
                    f"{other.name} watches layer {both[0]}, which tokens skip by {prune.name}; move one of them"
                )


def _slides(seam: "Seam") -> bool:
    """Whether a layer of the decoder sees, and keeps, only a window or chunk of the newest tokens."""
    kinds = getattr(seam.decoder_config, "layer_types", None)
    if kinds:
        return any("sliding" in kind or "chunked" in kind for kind in kinds)
    everywhere = getattr(seam.decoder_config, "sliding_window", None)
    found = (seam.adapter.find_attention(layer) for layer in seam.parts.layers)
    return any(getattr(attention, "sliding_window", everywhere) for attention in found if attention is not None)


def check_scores(seam: "Seam", scores: dict[tuple[str, int | str], list[Tensor]]) -> None:
    """Refuse a selector whose tower scores were not seen.

    Raises:
        ValueError: the features were made before the model was patched, or by a tower that is not tapped.
    """
    needs = seam.needs
    wanted: list[tuple[str, int | str]] = [
        (what, block) for what in ("received", "cls", "keys", "hidden") for block in getattr(needs, what)
    ]
    wanted += [("observed", name) for name in needs.observe]
    missing = [f"{what} of block {block}" for what, block in wanted if (what, block) not in scores]
    if missing and seam.selector is not None:
        raise ValueError(
            f"{seam.selector.name} needs attention scores of the vision tower ({', '.join(missing)}) that were not "
            "seen: make the features after vtc.patch, by the patched model itself; or use a method that reads no "
            "attention, such as 'divprune'"
        )


def check_call(seam: "Seam", kwargs: dict[str, Any], early: "EarlyCopies") -> None:
    """Refuse a call that a compressed decoder can't do.

    Args:
        seam: the patch.
        kwargs: the decoder's keyword arguments.
        early: what the host knows of them.

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
    if positions is not None and positions.dim() == 2 and (early.read(positions).diff(dim=1) < 0).any():
        raise ValueError(
            "position_ids start again within a row: samples packed into one row can't be compressed; give each "
            "sample a row of its own"
        )
    check_tapped(seam)


def check_turn(seam: "Seam", conversation: "Conversation", layout: Any) -> None:
    """Refuse a turn in which some rows bring images and others would bring back tokens of earlier ones.

    Raises:
        ValueError: it is one.
    """
    if conversation.revival is None or seam.reviver is None or not layout.images:
        return
    for row, count in enumerate(layout.tokens_per_row()):
        if not count and any(counts[row] for counts in conversation.revival.counts.values()):
            name = seam.reviver.name
            raise ValueError(
                f"row {row} brings no image in this turn while other rows do, and {name} would choose anew for it from "
                f"its earlier image, which one call can't do; run these rows apart, or give {name} revive=False"
            )


def check_tapped(seam: "Seam") -> None:
    """Refuse an attention implementation that was changed after `vtc.patch`.

    Raises:
        ValueError: it was.
    """
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
