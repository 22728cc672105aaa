"""Samples packed into one row that can't be compressed there, said in a sentence before anything is computed."""

import torch

from vtc.calls.composite import turns_several_axes
from vtc.calls.decoder import DecoderCall
from vtc.calls.packing import bounds_govern, text_axis
from vtc.model.layout import Layout
from vtc.seam.composition import Composition
from vtc.seam.entry.samples import samples_by_bounds, straddling, told_by_positions
from vtc.tower.prompt import Prompt

_WAY_OUT = "give each sample a row of its own"


def check_packed(composition: Composition, call: DecoderCall, prompt: Prompt, layout: Layout) -> None:
    """Refuse packed samples of which the methods or the model's attention would make something else.

    Args:
        composition: what the patch knows.
        call: the decoder's.
        prompt: what was seen of the call.
        layout: its images, and the samples that were found.

    Raises:
        ValueError: prunes; an image in two samples; samples that transformers doesn't keep apart in such a call, or
            that its arguments name otherwise; kept positions in which it would find others.
    """
    if not layout.images:
        return
    _check_told(composition, call, prompt, layout)
    if layout.samples is None and not call.bounds:
        return
    if composition.prunes:
        told = "several samples are packed into one row" if layout.samples is not None else f"{next(iter(call.bounds))}"
        raise ValueError(
            f"{told}, and {composition.prunes[0].name} chooses for whole rows; {_WAY_OUT}, or use a selector"
        )
    row = straddling(layout)
    if row is not None:
        raise ValueError(f"an image of row {row} begins in one packed sample and ends in another; {_WAY_OUT}")
    outer, positions = composition.reducer or composition.selector, call.positions
    if layout.samples is None or outer is None or outer.positions == "packed" or positions is None:
        return
    one_axis = positions.dim() == 2 and not turns_several_axes(composition.parts.composite)
    blind = not bounds_govern(call.bounds) if composition.flash else call.mask is None and bool(composition.windowed)
    if one_axis and blind:
        raise ValueError(
            f"{composition.spec} keeps position ids, in whose gaps transformers would see further samples in this "
            f"packed row; {_WAY_OUT}"
        )


def _check_told(composition: Composition, call: DecoderCall, prompt: Prompt, layout: Layout) -> None:
    """Refuse samples that the call's arguments name, and transformers does not keep apart.

    Raises:
        ValueError: there are some.
    """
    samples = torch.zeros(layout.shape, dtype=torch.long) if layout.samples is None else layout.samples
    if call.bounds:
        named = samples_by_bounds(call, prompt, layout.shape)
        rows, names = layout.shape[0], ", ".join(map(str, call.bounds))
        told = told_by_positions(composition, call, prompt, layout)
        unlike = told is not None and bool(told.any()) and not torch.equal(told, samples)
        if rows > 1 or unlike or (named is not None and not torch.equal(named, samples)):
            why = "in a batch of several rows" if rows > 1 else "that neither position_ids nor attention_mask do"
            raise ValueError(
                f"{names} name packed samples {why}, so transformers does not keep them apart; put all into one row "
                f"with position_ids that start again with each, or {_WAY_OUT}"
            )
    mask = None if prompt.mask is None else prompt.early.of(prompt.mask)
    if mask is not None and mask.numel() and mask.max() > 1:
        raise ValueError(
            f"attention_mask has numbers up to {mask.max().item()}, as if it numbered packed samples, which "
            f"transformers does not keep apart by it; leave it out and let position_ids start again, or {_WAY_OUT}"
        )
    if layout.samples is not None or text_axis(call.positions, composition.decoder_config) is None:
        return
    untold = prompt.mask is None and call.mask is None and call.cache is None
    positions = prompt.early.read(call.positions) if untold else prompt.early.of(call.positions)
    if positions is None:
        return
    axis = text_axis(positions, composition.decoder_config)
    assert axis is not None
    back = axis.expand(*layout.shape).diff(dim=1) < 0
    if mask is not None:
        valid = mask[:, -layout.shape[1] :].bool()
        back &= valid[:, 1:] & valid[:, :-1]
    if back.any():
        raise ValueError(
            f"position_ids start again within a row: transformers does not keep samples apart that are packed into it "
            f"{_why(composition, call, prompt)}, or {_WAY_OUT}"
        )


def _why(composition: Composition, call: DecoderCall, prompt: Prompt) -> str:
    """When it does not, and what to do about it."""
    if prompt.blocks is not None:
        return "where a mask of queries by keys lets them see each other; leave attention_mask out"
    if prompt.mask is not None:
        return "where there is an attention_mask; leave it out"
    if composition.flash:
        return "under FlashAttention in a batch of several rows; put all samples into one row"
    return "where a cache is filled; give use_cache=False"
