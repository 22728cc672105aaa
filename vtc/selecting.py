"""Running a selector over the images of a call, and putting merged tokens in their places."""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from vtc import ops
from vtc.layout import Layout
from vtc.method import Selector, VisualTokens
from vtc.reduction import Mixing, Reduction

Scores = dict[tuple[str, int], list[Tensor]]


def select(selector: Selector, layout: Layout, embeds: Tensor, scores: Scores) -> dict[int, Reduction]:
    """Run `selector` on all images that it shortens, those laid out alike at once.

    Args:
        selector: decides.
        layout: the images of the call.
        embeds: Tensor [B, L, D], the decoder's input.
        scores: ("received" or "cls", tower block) -> for each image, Tensor [N].

    Returns:
        Image index -> its own reduction: `kept` [k], mixing tensors [M].

    Raises:
        RuntimeError: the selector kept another number than its budget says.
    """
    groups: dict[Any, list[int]] = defaultdict(list)
    for index, image in enumerate(layout.images):
        if selector.count(len(image)) < len(image):
            groups[image.kind, image.grids, len(image)].append(index)
    reductions = {}
    for (kind, grids, total), members in groups.items():
        images = [layout.images[index] for index in members]
        visual = VisualTokens(
            features=torch.stack([embeds[image.row, image.positions.to(embeds.device)] for image in images]),
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
        if reduction.kept.shape[1] != k and not getattr(selector, "compat", False):
            raise RuntimeError(f"{selector.name} kept {reduction.kept.shape[1]} tokens instead of {k}")
        for place, index in enumerate(members):
            reductions[index] = _of_image(reduction, place)
    return reductions


def merge(embeds: Tensor, layout: Layout, reductions: dict[int, Reduction]) -> Tensor:
    """`embeds` [B, L, D] with the merged tokens in the places of their centres; a copy where anything is merged."""
    merged = {index: reduction for index, reduction in reductions.items() if reduction.mixing is not None}
    if merged:
        embeds = embeds.clone()
    for index, reduction in merged.items():
        image = layout.images[index]
        places = image.positions.to(embeds.device)
        assert reduction.mixing is not None
        mixing = Mixing(reduction.mixing.source[None], reduction.mixing.target[None], reduction.mixing.weight[None])
        new = ops.merge(embeds[image.row, places][None], mixing, len(reduction.kept))
        embeds[image.row, places[reduction.kept]] = new[0].to(embeds.dtype)
    return embeds


def _of_members(scores: Scores, what: str, members: list[int], device: torch.device) -> dict[int, Tensor]:
    return {
        block: torch.stack([values[index].to(device) for index in members])
        for (name, block), values in scores.items()
        if name == what
    }


def _of_image(reduction: Reduction, place: int) -> Reduction:
    mixing = reduction.mixing
    if mixing is not None:
        mixing = Mixing(mixing.source[place], mixing.target[place], mixing.weight[place])
    return Reduction(reduction.kept[place], mixing)
