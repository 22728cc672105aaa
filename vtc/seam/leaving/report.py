"""The trace of a call that has ended."""

import functools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vtc.attention.heads import Heads
from vtc.model.layout import Layout
from vtc.ops.clock import Moment
from vtc.ops.cut import Cut
from vtc.seam.composition import Composition
from vtc.seam.entry.selection import Selection, merged_into
from vtc.seam.segments import Segment
from vtc.tower.prompt import Prompt
from vtc.tracing import ImageTrace, Stage, Trace


def trace_of(
    composition: Composition,
    prompt: Prompt,
    layout: Layout,
    segments: Sequence[Segment],
    *,
    selections: Sequence[Selection] = (),
    heads: Mapping[int, Heads] | None = None,
    spent: Sequence[tuple[Moment, Moment]] = (),
    revived: Mapping[int, Tensor] | None = None,
    uncompressed: str | None = None,
) -> Trace:
    """What a call did.

    Args:
        composition: what the patch knows.
        prompt: what was seen of the call.
        layout: its images.
        segments: that its layers ran in; one, where nothing was removed.
        selections: what was decided in front of the first layer.
        heads: layer -> the heads that it computes, where these are not all.
        spent: begin and end of each decision.
        revived: segment -> LongTensor [B], tokens that decode steps bring back; it fills later, and is read when
            the trace is.
        uncompressed: why nothing was removed, where pictures were given and not seen.
    """
    depth, batch = len(composition.parts.layers), layout.shape[0]
    stages = tuple(
        Stage(segment.first_layer, segment.cut, segment.into, (before.base or before).cut)
        for segment, before in zip(segments, [segments[0], *segments])
    )
    merged = merged_into(selections, layout)
    counts = [[s for s in segments if s.first_layer <= layer][-1].visual_counts for layer in range(depth)]
    made = prompt.features.values()
    spent = [*spent, *(pair for features in made if features.tower is not None for pair in features.tower.spent)]
    return Trace(
        spec=composition.spec,
        layout=layout,
        images=tuple(
            ImageTrace(image.row, image.kind, image, stages, merged.get(index))
            for index, image in enumerate(layout.images)
        ),
        tokens_per_layer=torch.tensor(counts).view(depth, batch),
        heads_per_layer=_head_shares(composition, heads or {}),
        _valid=segments[0].cut.valid,
        _selection=lambda: sum(start.ms_until(end) for start, end in spent),
        _cost=composition.cost([run for features in made for run in features.runs]),
        _revived=functools.partial(_revived, {} if revived is None else revived, composition, batch),
        uncompressed=uncompressed,
    )


def trace_of_untouched(
    composition: Composition,
    prompt: Prompt,
    layout: Layout,
    mask: Tensor | None,
    why: str | None = None,
    given: list[int] | None = None,
) -> Trace:
    """The trace of a call from which nothing is removed.

    Args:
        composition: what the patch knows.
        prompt: what was seen of the call.
        layout: its images.
        mask: Tensor [B, ..L], 0 at padding; None: there is none.
        why: why nothing is, where pictures were given and not seen.
        given: visual tokens of each row; None: those of the layout.
    """
    valid = torch.ones(layout.shape, dtype=torch.bool)
    if mask is not None:
        valid = mask[:, -valid.shape[1] :].bool()
    cut, nothing = Cut.whole(valid, padded=True), torch.zeros(0)
    whole = Segment(0, cut, cut, cut, None, nothing, nothing, layout.tokens_per_row() if given is None else given)
    return trace_of(composition, prompt, layout, [whole], uncompressed=why)


def _head_shares(composition: Composition, heads: Mapping[int, Heads]) -> tuple[float, ...]:
    """Share of the heads that each decoder layer computes."""
    depth = len(composition.parts.layers)
    if not heads:
        return (1.0,) * depth
    total = composition.decoder_config.num_attention_heads
    return tuple(heads[layer].share(total) if layer in heads else 1.0 for layer in range(depth))


def _revived(counts: Mapping[int, Tensor], composition: Composition, batch: int) -> Tensor:
    """Tokens brought back so far, [layers, rows that the cache has now]."""
    batch = max(map(len, counts.values()), default=batch)
    none = torch.zeros(batch, dtype=torch.long)
    behind = map(composition.segment_of, range(len(composition.parts.layers)))
    return torch.stack([counts[index].cpu() if index in counts else none for index in behind])
