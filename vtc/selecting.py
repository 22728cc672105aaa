"""Running a selector over the images of a call, and putting merged tokens in their places."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vtc import ops
from vtc.dividing import Unit, units
from vtc.host import on
from vtc.layout import Layout
from vtc.method import Selector
from vtc.patches import take
from vtc.recorded import Recorded
from vtc.reduction import Reduction, main_target
from vtc.refusals import check_mixing
from vtc.seen import Scores, Seen
from vtc.units import Reduced
from vtc.visual import VisualTokens

if TYPE_CHECKING:
    from vtc.seam import Seam


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


def shortens(selector: Selector, unit: Unit) -> bool:
    """Whether the selector may remove tokens of a unit, told from counts alone."""
    return selector.adaptive or selector.count_of(unit) < len(unit)


def select(
    seam: "Seam", layout: Layout, recorded: Recorded, embeds: Tensor, scores: Scores, packed: bool = True
) -> list[Selection]:
    """Run the seam's selector on all units that it shortens, those laid out alike at once.

    Args:
        seam: its selector decides.
        layout: the images of the call.
        recorded: what was seen of the call.
        embeds: Tensor [B, L, D], the decoder's input.
        scores: what was asked of the tower -> for each image, Tensor [N, ...].
        packed: whether the survivors will be numbered anew.

    Raises:
        RuntimeError: the selector kept another number than its budget says.
    """
    selector = seam.selector
    assert selector is not None
    groups: dict[Any, list[Unit]] = defaultdict(list)
    for number, unit in enumerate(units(layout, selector.per)):
        if shortens(selector, unit):
            groups[unit.kind, unit.grids, len(unit), number if selector.adaptive else None].append(unit)
    selections = []
    for (kind, grids, total, _), members in groups.items():
        rows = on(embeds.device, [[unit.row] for unit in members])
        places = on(embeds.device, torch.stack([unit.positions for unit in members]))
        seen = Seen(seam, layout, recorded, scores, members)
        visual = VisualTokens(
            features=embeds[rows, places],
            grids=grids,
            separators=members[0].separators,
            kind=kind,
            ordinals=tuple(unit.ordinal for unit in members),
            packed=packed,
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
        with torch.no_grad():
            reduction = selector.select(visual, k)
        _check(selector, reduction, len(members), k, total)
        selections.append(Selection(members, rows, places, places.gather(1, reduction.kept), reduction))
    return selections


def reduced(layout: Layout, recorded: Recorded, device: torch.device) -> list[Selection]:
    """What a reducer left of each image, as selections whose merged tokens are in their places already."""
    selections = []
    results: dict[str, list[Reduced]] = {}
    for unit in units(layout, "input"):
        image = layout.images[unit.images[0]]
        run = recorded.features_of(image.kind).tower
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


def _check(selector: Selector, reduction: Reduction, images: int, k: int, total: int) -> None:
    """Hold a decision against its contract; values only of methods from outside, since that waits for the device."""
    if not isinstance(reduction, Reduction):
        raise RuntimeError(f"{selector.name}.select gave a {type(reduction).__name__}; it must give a vtc.Reduction")
    shape = tuple(reduction.kept.shape)
    fewer = selector.adaptive or getattr(selector, "compat", False)
    if shape != (images, k) and not (fewer and len(shape) == 2 and shape[0] == images and 1 <= shape[1] <= k):
        raise RuntimeError(f"{selector.name} kept {shape} tokens instead of {(images, k)}, images by tokens")
    if not type(selector).__module__.startswith("vtc."):
        kept = reduction.kept.cpu()
        if (kept.diff(dim=1) <= 0).any() or kept.min() < 0 or kept.max() >= total:
            raise RuntimeError(f"{selector.name} must keep ascending positions from 0 to {total - 1}, each once")
        check_mixing(selector.name, reduction.mixing, k, total, "token")
