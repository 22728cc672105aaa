"""Running a selector over the images of a call, and putting merged tokens in their places."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vtc import ops
from vtc.layout import Layout
from vtc.method import Selector, VisualTokens
from vtc.reduction import Mixing, Reduction

Scores = dict[tuple[str, int], list[Tensor]]


@dataclass(frozen=True)
class Selection:
    """What a selector decided for G images that are laid out alike.

    Attributes:
        members: their indices in the layout.
        rows: LongTensor [G, 1]: the row of each.
        places: LongTensor [G, N]: places of their tokens in the row.
        survivors: LongTensor [G, k]: places of the tokens that stay.
        reduction: the decision, within each image.
    """

    members: list[int]
    rows: Tensor
    places: Tensor
    survivors: Tensor
    reduction: Reduction

    @property
    def removed(self) -> int:
        """Tokens that each image loses."""
        return self.places.shape[1] - self.survivors.shape[1]

    def mixings(self) -> dict[int, tuple[Tensor, Mixing]]:
        """Image index -> survivors within the image [k] and the mixing of that image alone."""
        mixing, kept = self.reduction.mixing, self.reduction.kept
        if mixing is None:
            return {}
        return {
            index: (kept[i], Mixing(mixing.source[i], mixing.target[i], mixing.weight[i]))
            for i, index in enumerate(self.members)
        }


def select(selector: Selector, layout: Layout, embeds: Tensor, scores: Scores) -> list[Selection]:
    """Run `selector` on all images that it shortens, those laid out alike at once.

    Args:
        selector: decides.
        layout: the images of the call.
        embeds: Tensor [B, L, D], the decoder's input.
        scores: ("received" or "cls", tower block) -> for each image, Tensor [N].

    Raises:
        RuntimeError: the selector kept another number than its budget says.
    """
    groups: dict[Any, list[int]] = defaultdict(list)
    for index, image in enumerate(layout.images):
        if selector.count(len(image)) < len(image):
            groups[image.kind, image.grids, len(image)].append(index)
    selections = []
    for (kind, grids, total), members in groups.items():
        images = [layout.images[index] for index in members]
        rows = torch.tensor([[image.row] for image in images]).to(embeds.device)
        places = torch.stack([image.positions for image in images]).to(embeds.device)
        visual = VisualTokens(
            features=embeds[rows, places],
            grids=grids,
            separators=images[0].separators(),
            kind=kind,
            ordinals=tuple(image.ordinal for image in images),
            received=_of_members(scores, "received", members, embeds.device),
            cls=_of_members(scores, "cls", members, embeds.device),
        )
        k = selector.count(total)
        with torch.no_grad():
            reduction = selector.select(visual, k)
        _check(selector, reduction, len(members), k, total)
        selections.append(Selection(members, rows, places, places.gather(1, reduction.kept), reduction))
    return selections


def merge(embeds: Tensor, selections: list[Selection]) -> Tensor:
    """`embeds` [B, L, D] with the merged tokens in the places of their centres; a copy where anything is merged."""
    for selection in selections:
        mixing = selection.reduction.mixing
        if mixing is not None:
            new = ops.merge(embeds[selection.rows, selection.places], mixing, selection.survivors.shape[1])
            embeds = embeds.index_put((selection.rows, selection.survivors), new.to(embeds.dtype))
    return embeds


def _check(selector: Selector, reduction: Reduction, images: int, k: int, total: int) -> None:
    """Hold a decision against its contract; values only of methods from outside, since that waits for the device."""
    if not isinstance(reduction, Reduction):
        raise RuntimeError(f"{selector.name}.select gave a {type(reduction).__name__}; it must give a vtc.Reduction")
    shape = tuple(reduction.kept.shape)
    if shape != (images, k) and not (getattr(selector, "compat", False) and len(shape) == 2):
        raise RuntimeError(f"{selector.name} kept {shape} tokens instead of {(images, k)}, images by tokens")
    if not type(selector).__module__.startswith("vtc."):
        kept = reduction.kept.cpu()
        if (kept.diff(dim=1) <= 0).any() or kept.min() < 0 or kept.max() >= total:
            raise RuntimeError(f"{selector.name} must keep ascending positions from 0 to {total - 1}, each once")
        mixing = reduction.mixing
        if mixing is not None and not (mixing.target.max() < k and mixing.source.max() < total):
            raise RuntimeError(f"{selector.name}: the mixing names a token that is not there")


def _of_members(scores: Scores, what: str, members: list[int], device: torch.device) -> dict[int, Tensor]:
    return {
        block: torch.stack([values[index].to(device) for index in members])
        for (name, block), values in scores.items()
        if name == what
    }
