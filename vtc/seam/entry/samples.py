"""Samples packed into one row of the batch: found once in a call, and kept with the layout of its images."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from vtc.calls.decoder import DecoderCall
from vtc.calls.packing import (
    bounds_govern,
    bounds_of,
    makes_cache,
    samples_by_masks,
    samples_by_positions,
    starts_in,
    text_axis,
)
from vtc.model.layout import Layout
from vtc.seam.composition import Composition
from vtc.seam.entry.selection import Selection
from vtc.tower.prompt import Prompt


def by_samples(composition: Composition, call: DecoderCall, prompt: Prompt, layout: Layout) -> Layout:
    """The layout with the samples of each row, where transformers keeps several of a row apart.

    Args:
        composition: what the patch knows.
        call: the decoder's.
        prompt: what was seen of the call.
        layout: its images; without any, nothing is looked at.
    """
    samples = _found(composition, call, prompt, layout) if layout.images else None
    if samples is None or not bool(samples.any()):
        return layout
    return replace(layout, samples=samples)


def _found(composition: Composition, call: DecoderCall, prompt: Prompt, layout: Layout) -> Tensor | None:
    if prompt.blocks is not None:
        return samples_by_masks(call.mask, layout.shape[1])
    if composition.flash and bounds_govern(call.bounds):
        return samples_by_bounds(call, prompt, layout.shape)
    return told_by_positions(composition, call, prompt, layout)


def told_by_positions(composition: Composition, call: DecoderCall, prompt: Prompt, layout: Layout) -> Tensor | None:
    """LongTensor [B, L] on the host: the samples that transformers tells by positions; None where it does not."""
    config = composition.decoder_config
    if text_axis(call.positions, config) is None or not looks_for_samples(composition, call, prompt):
        return None
    on_host = text_axis(prompt.early.read(call.positions), config)
    assert on_host is not None
    return samples_by_positions(on_host.expand(*layout.shape), composition.flash)


def looks_for_samples(composition: Composition, call: DecoderCall, prompt: Prompt) -> bool:
    """Whether transformers tells samples by the positions of a call, where they start again."""
    given = call.mask if isinstance(call.mask, Tensor) and call.mask.dim() == 2 else prompt.mask
    if composition.flash:  # which drops a mask that hides nothing, and goes by positions in one row only
        seen = None if given is None else prompt.early.of(given)
        return call.embeds.shape[0] == 1 and (given is None or (seen is not None and bool(seen.all())))
    if given is not None or call.cache is not None:
        return False
    if call.mask is not None:  # made in front of the decoder, which makes its cache later
        return True
    return not makes_cache(call.named, composition.parts.decoder)


def samples_by_bounds(call: DecoderCall, prompt: Prompt, shape: tuple[int, int]) -> Tensor | None:
    """LongTensor [B, L]: the samples that `cu_seq_lens_q` and its like name, all rows one behind the other.

    Raises:
        ValueError: they name others for queries than for keys, or don't end with the rows.
    """
    told = {name: prompt.early.read(value).long().flatten() for name, value in starts_in(call.bounds).items()}
    if not told:
        return None
    total = shape[0] * shape[1]
    name, starts = next(iter(told.items()))
    for other, value in told.items():
        if not torch.equal(value, starts):
            raise ValueError(f"{name} and {other} name different samples; give both the same, or leave them out")
    if len(starts) < 2 or starts[0] != 0 or starts[-1] != total or (starts.diff() <= 0).any():
        raise ValueError(
            f"{name}={starts.tolist()} must go up from 0 to the {total} tokens of the call, one step for each sample"
        )
    samples = torch.arange(len(starts) - 1).repeat_interleave(starts.diff()).view(shape)
    return samples - samples[:, :1]


def bounds_left(call: DecoderCall, layout: Layout, selections: Sequence[Selection]) -> dict:
    """The arguments that name the samples' lengths, for what selections leave of them."""
    if not call.bounds:
        return {}
    samples = torch.zeros(layout.shape, dtype=torch.long) if layout.samples is None else layout.samples
    lengths = [torch.bincount(row) for row in samples]
    for unit, removed in ((unit, selection.removed) for selection in selections for unit in selection.units):
        row, sample = layout.sample_of(unit.row, unit.positions)
        lengths[row][sample] -= removed
    return bounds_of(call.bounds, [length for row in lengths for length in row.tolist() if length])


def straddling(layout: Layout) -> int | None:
    """The row of an image whose tokens lie in two samples; None where there is none."""
    if layout.samples is None:
        return None
    for image in layout.images:
        here = layout.samples[image.row, image.positions]
        if any(one != other for one, other in pairwise(here.tolist())):
            return image.row
    return None
