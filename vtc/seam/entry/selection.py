"""Running a selector over the images of a call, and putting merged tokens in their places."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vtc import ops
from vtc.method.patches import take
from vtc.method.reducer import Reducer
from vtc.method.reduction import Reduction
from vtc.method.selector import check_selection
from vtc.method.units import Unit, units
from vtc.method.visual_tokens import VisualTokens
from vtc.model.layout import Layout
from vtc.ops.host import on, without_autocast
from vtc.ops.mixing import main_target
from vtc.seam.composition import Composition
from vtc.seam.entry.evidence import Evidence, Scores
from vtc.tower.prompt import Prompt
from vtc.tower.sequences import Reduced


@dataclass(frozen=True)
class Selection:
    """What was decided for G units that are laid out alike.

    Attributes:
        units: what each decision is about.
        rows: LongTensor [G, 1]: the row of each.
        places: LongTensor [G, N]: places of their tokens in the row.
        survivors: LongTensor [G, k]: places of the tokens that stay.
        reduction: the decision, within each unit.
        into: LongTensor [G, N]: the survivor that each token was merged into before, -1 for none; None: nothing was.
    """

    units: list[Unit]
    rows: Tensor
    places: Tensor
    survivors: Tensor
    reduction: Reduction
    into: Tensor | None = None

    @property
    def removed(self) -> int:
        """Tokens that each unit loses."""
        return self.places.shape[1] - self.survivors.shape[1]

    def merged(self) -> Tensor | None:
        """LongTensor [G, N]: for each token, the survivor that it was mixed into, -1 for none; None: none was."""
        if self.into is not None:
            return self.into
        mixing, kept = self.reduction.mixing, self.reduction.kept
        if mixing is None:
            return None
        target = main_target(mixing, self.places.shape[1])
        return torch.where(target >= 0, kept.gather(1, target.clamp(min=0)), -1)


def merged_into(selections: Sequence[Selection], layout: Layout) -> dict[int, Tensor]:
    """Image -> for each of its tokens, LongTensor [N]: the survivor (within the image) that it was mixed into, or -1.

    Images in which nothing was mixed are left out. What went into another image (`per="row"`) has no survivor here.
    """
    found: dict[int, Tensor] = {}
    for selection in selections:
        merged = selection.merged()
        for unit, into in zip(selection.units, merged if merged is not None else ()):
            start = 0
            for index, inside in zip(unit.images, unit.inside):
                blank = torch.full((len(layout.images[index]),), -1, device=into.device)
                own = torch.arange(len(blank), device=into.device) if inside is None else on(into.device, inside)
                mine = into[start : start + len(own)] - start
                here = (mine >= 0) & (mine < len(own))
                found.setdefault(index, blank)[own] = torch.where(here, own[mine.clamp(0, len(own) - 1)], -1)
                start += len(own)
    return found


def select(
    composition: Composition,
    layout: Layout,
    prompt: Prompt,
    embeds: Tensor,
    scores: Scores,
    packed: bool = True,
    images: frozenset[int] | None = None,
) -> list[Selection]:
    """Run the selector on all units that it shortens, those laid out alike at once.

    Args:
        composition: its selector decides.
        layout: the images of the call.
        prompt: what was seen of the call.
        embeds: Tensor [B, L, D], the decoder's input.
        scores: what was asked of the tower -> for each image, Tensor [N, ...].
        packed: whether the survivors will be numbered anew.
        images: those of the layout that are decided here; None: all.

    Raises:
        RuntimeError: the selector kept another number than its budget says.
    """
    selector = composition.selector
    assert selector is not None
    groups: dict[Any, list[Unit]] = defaultdict(list)
    for number, unit in enumerate(units(layout, selector.per)):
        if selector.shortens(unit) and (images is None or images.issuperset(unit.images)):
            groups[unit.kind, unit.grids, len(unit), number if selector.adaptive else None].append(unit)
    selections = []
    for (kind, grids, total, _), members in groups.items():
        rows = on(embeds.device, [[unit.row] for unit in members])
        places = on(embeds.device, torch.stack([unit.positions for unit in members]))
        seen = Evidence(composition, layout, prompt, scores, members)
        visual = VisualTokens(
            features=embeds[rows, places],
            grids=grids,
            separators=members[0].separators,
            kind=kind,
            packed=packed,
            family=composition.parts.family,
            received=seen.scores("received", embeds.device),
            cls=seen.scores("cls", embeds.device),
            keys=seen.scores("keys", embeds.device),
            hidden=seen.scores("hidden", embeds.device),
            observed=seen.scores("observed", embeds.device),
            crops=seen.crops(),
            projection=seen.projection(embeds.device),
            question=seen.question(),
            text=seen.text(embeds),
        )
        k = total if selector.adaptive else selector.count_of(members[0])
        with torch.no_grad(), without_autocast(embeds.device):
            reduction = selector.select(visual, k)
        check_selection(selector, reduction, len(members), k, total)
        selections.append(Selection(members, rows, places, places.gather(1, reduction.kept), reduction))
    return selections


def check_reduced(reducer: Reducer, layout: Layout, prompt: Prompt) -> None:
    """Refuse features that `reducer` did not make.

    Raises:
        ValueError: they were made before the model was patched, or not by its own tower.
    """
    for image in layout.images:
        run = prompt.features_of(image.kind).tower
        if run is None or image.origin >= len(run.maps) or len(run.maps[image.origin]) != len(image):
            raise ValueError(
                f"{reducer.name} works inside the vision tower, but the visual features of row {image.row} did not "
                "come from it: make the features after vtc.patch, by the patched model itself; or use a selector"
            )


def reduced(layout: Layout, prompt: Prompt, device: torch.device) -> list[Selection]:
    """What a reducer left of each image, as selections whose merged tokens are in their places already."""
    selections = []
    results: dict[str, list[Reduced]] = {}
    for unit in units(layout, "input"):
        image = layout.images[unit.images[0]]
        run = prompt.features_of(image.kind).tower
        assert run is not None
        if image.kind not in results:
            results[image.kind] = run.reduced()
        left = results[image.kind][image.origin]
        if len(left.kept) < left.total:
            row, places = on(device, [[image.row]]), on(device, image.positions[None])
            reduction = Reduction(on(device, left.kept[None]))
            into = None if left.merged is None else left.merged[None]
            selections.append(Selection([unit], row, places, places.gather(1, reduction.kept), reduction, into))
    return selections


def merge(embeds: Tensor, selections: list[Selection]) -> Tensor:
    """`embeds` [B, L, D] with the merged tokens in the places of their centres; a copy where anything is merged."""
    for selection in selections:
        mixing, new = selection.reduction.mixing, selection.reduction.features
        if mixing is not None and new is None:
            new = ops.merge(embeds[selection.rows, selection.places], mixing, selection.survivors.shape[1])
            if selection.reduction.order is not None:
                new = take(new, selection.reduction.order)
        if new is not None:
            embeds = embeds.index_put((selection.rows, selection.survivors), new.to(embeds.dtype))
    return embeds


def groups_of(selections: Sequence[Selection], shape: torch.Size) -> Tensor | None:
    """LongTensor [B, L]: the group of each survivor (see `Rows.groups`), -1 for none; None: no selector says any.

    Args:
        selections: what was decided.
        shape: (B, L) of the sequence.
    """
    named = None
    for selection in selections:
        groups, order = selection.reduction.groups, selection.reduction.order
        if groups is not None:
            groups = groups if order is None else groups.gather(1, order)
            places = torch.where(groups >= 0, selection.places.gather(1, groups.clamp(min=0)), -1)
            named = places.new_full(shape, -1) if named is None else named
            named[selection.rows, selection.survivors] = places
    return named
