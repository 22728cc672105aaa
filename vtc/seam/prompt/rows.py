"""What prunes see of the sequence in a layer: the prompt alone."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vtc.attention.scores import Attention
from vtc.method.prune import Decision, Prune, Rows
from vtc.model.layout import Layout
from vtc.ops.cut import Cut
from vtc.ops.host import on
from vtc.seam.composition import Composition
from vtc.seam.prompt.view import PromptView
from vtc.seam.segments import Segment


class PromptRows:
    """The prompts of one decoder call, in each of its segments.

    Args:
        composition: what the patch knows.
        layout: the images of the call.
        text_counts: tokens of each row that are neither visual nor padding.
        answers: of these, how many stand behind the prompt; None: none do.
        groups: LongTensor [B, L]: what the selector says of each token's group (see `Rows.groups`).
    """

    def __init__(
        self,
        composition: Composition,
        layout: Layout,
        text_counts: list[int],
        answers: list[int] | None,
        groups: Tensor | None,
    ):
        self.composition, self.layout, self._groups = composition, layout, groups
        self._text = text_counts if answers is None else [t - a for t, a in zip(text_counts, answers)]
        ends = {image.row: int(image.positions[-1]) for image in layout.images}  # the last of a row counts
        self._ends = [ends.get(row, -1) for row in range(layout.shape[0])]  # the instruction begins behind
        self._tail = max(layout.shape[1] - 1 - min(ends.values(), default=0), 1)
        self._views: dict[int, PromptView] = {}  # by the segment's id, which lives as long
        self._marked: dict[tuple[int, torch.device], tuple[Tensor, ...]] = {}

    def view(self, segment: Segment) -> PromptView:
        """The prompt in a segment."""
        if id(segment) not in self._views:
            self._views[id(segment)] = PromptView(segment, self._counted(segment.visual_counts))
        return self._views[id(segment)]

    def rows(
        self,
        prune: Prune,
        segment: Segment,
        layer: int,
        hidden: Tensor,
        tables: Any,
        probe: Callable[[], Attention] | None = None,
    ) -> Rows:
        """The prompt in front of, or in, a layer.

        Args:
            prune: who sees it.
            segment: of the layer.
            layer: index from 0.
            hidden: Tensor [B, n, D], its input.
            tables: the rotary tables that it is called with.
            probe: gives its attention.
        """
        visual, valid, instruction, origin = self._marks(segment, hidden.device)
        view = self.view(segment)
        length = len(segment.cut)  # in front of a layer those of the one before may be of fewer tokens
        plain = isinstance(tables, tuple) and len(tables) == 2
        plain = plain and all(t.dim() == 3 and t.shape[1] == length for t in tables)
        return Rows(
            layer=layer,
            hidden=view.of(hidden).flatten(2),  # of several streams of a token one behind the other
            visual=visual,
            valid=valid,
            instruction=instruction,
            probe=probe,
            stage=sum(earlier < layer for earlier in self.composition.schedules[id(prune)]),
            tail=min(self._tail, visual.shape[1]),
            images=self.layout.images,
            origin=origin,
            packed=prune.positions == "packed" and segment.positions is not None,
            rotary=(view.of(tables[0]), view.of(tables[1])) if plain else None,
            groups=None if self._groups is None else self._groups.to(origin.device).gather(1, origin),
        )

    def cut(self, segment: Segment, decision: Decision, counts: list[int]) -> Cut:
        """The cut that a decision about the prompt, which leaves `counts` visual tokens of each row, makes in it."""
        visual, valid = self._marks(segment, decision.alive.device)[:2]
        cut = Cut.keep(valid & (~visual | decision.alive), self._counted(counts))
        return cut if decision.source is None else cut.ordered(decision.source)

    def _counted(self, visual_counts: list[int]) -> list[int]:
        """Tokens of each row's prompt, with so many visual ones."""
        return [text + visual for text, visual in zip(self._text, visual_counts)]

    def _marks(self, segment: Segment, device: torch.device) -> tuple[Tensor, ...]:
        """Which tokens of the prompt are visual, valid, instruction, and where they come from: each [B, n]."""
        key = id(segment), device
        if key not in self._marked:
            prompt = self.view(segment).cut.to(device)
            cut = segment.cut.to(device).then(prompt)
            instruction = cut.valid & (cut.index > on(device, self._ends)[:, None])
            instruction[:, -1] = True
            visual = segment.visual.to(device)
            visual = visual if prompt.identity else prompt.take(visual) & prompt.valid
            self._marked[key] = visual, cut.valid, instruction, cut.index
        return self._marked[key]
