"""What a selector asked for of the tower and the prompt, put together for units that are laid out alike."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from vtc.method.units import Unit
from vtc.method.visual_tokens import Crops, Projection
from vtc.model.layout import Layout, VisualInput
from vtc.ops.host import autocasts, on
from vtc.seam.composition import Composition
from vtc.tower.features import Features
from vtc.tower.prompt import Prompt

Scores = dict[tuple[str, int | str], list[Tensor]]


@dataclass
class Evidence:
    """What was seen of some units of a call.

    Attributes:
        composition: what the patch knows.
        layout: the images of the call.
        prompt: what was seen of the call.
        tower: what was asked of the tower -> for each image, Tensor [N, ...].
        members: the units.
    """

    composition: Composition
    layout: Layout
    prompt: Prompt
    tower: Scores
    members: list[Unit]

    @property
    def _features(self) -> Features:
        """The call that made the images; what is asked of videos needs none."""
        return self.prompt.features_of("image")

    def _of(self, unit: Unit, values: Callable[[int], Tensor]) -> Tensor:
        """What `values` gives for each image of a unit, [N, ...], one behind the other, at the unit's tokens."""
        parts = [values(index) for index in unit.images]
        parts = [part if inside is None else part[on(part.device, inside)] for part, inside in zip(parts, unit.inside)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def scores(self, what: str, device: torch.device) -> Mapping[Any, Tensor]:
        """Tower block or name -> Tensor [G, N, ...]."""
        return {
            block: torch.stack([on(device, self._of(unit, values.__getitem__)) for unit in self.members])
            for (name, block), values in self.tower.items()
            if name == what
        }

    def crops(self) -> Crops | None:
        """Which crop each token was seen in; None where nothing is asked of the tower."""
        if not self.tower and not self.composition.needs.projection:
            return None
        unit = self.members[0]
        if len(unit.images) == 1 and unit.kind == "video":
            return _frames(unit)
        return _beside([self._crops(self.layout.images[index]) for index in unit.images])

    def _crops(self, image: VisualInput) -> Crops:
        """The crops of a whole image, as the tower saw it; of a video its frames."""
        if image.kind == "video":
            return _frames(image)
        sequences, patches = self._features.shape
        rows = self._maps[image.origin]
        first = rows[:, 0]
        alive = first >= 0
        crop = torch.where(alive, first // patches if sequences > 1 else torch.zeros_like(first), -1)
        crop = torch.where(alive, crop - crop[alive].min(), -1)
        count, inside = int(crop.max()) + 1, first % patches
        units = patches // rows.shape[1]
        side = round(units**0.5)
        if sequences == 1 and count == 1:  # a packed tower: all of the image, in its own grid
            grid = image.grids[-1]
            return Crops(crop, torch.where(alive, alive.cumsum(0) - 1, -1), 1, (grid.t * grid.h, grid.w))
        if rows.shape[1] > 1:  # several patches make a token: tokens stand in raster order within each crop
            inside = torch.cat([torch.arange(int((crop == c).sum())) for c in range(count)])
        return Crops(crop, torch.where(alive, inside, -1), count, (side, units // side))

    def projection(self, device: torch.device) -> Projection | None:
        """The projector and what it read; None where not asked for, for videos, or if several patches make a token."""
        features, adapter = self._features, self.composition.adapter
        if not self.composition.needs.projection or features.projected is None or not adapter.projects_rows:
            return None
        shown = (self.layout.images[index] for unit in self.members for index in unit.images)
        if any(image.kind == "video" for image in shown) or self._maps[0].shape[1] != 1:
            return None
        flat = features.projected.flatten(0, 1).to(device)
        found = [self._of(unit, lambda index: self._maps[self.layout.images[index].origin]) for unit in self.members]
        rows, cls = torch.stack([_rows(flat, first) for first in found]), None
        if features.cls is not None:
            seen = [first[first >= 0] // features.shape[1] for first in found]
            cls = torch.stack([features.cls[int(crop.min()) : int(crop.max()) + 1] for crop in seen]).to(device)
        return Projection(rows, cls, _as_in_the_call(adapter.projector, device))

    def question(self) -> tuple[Tensor, ...]:
        """For each unit, the ids of the text behind the row's last visual token."""
        ids = self.prompt.ids
        if not self.composition.needs.text or ids is None:
            return ()
        return tuple(ids[row, on(ids.device, places)] for row, places in self._text_places())

    def text(self, embeds: Tensor) -> tuple[Tensor, ...]:
        """For each unit, the embeddings of the same."""
        if not self.composition.needs.text:
            return ()
        return tuple(embeds[row, on(embeds.device, places)] for row, places in self._text_places())

    def _text_places(self) -> list[tuple[int, Tensor]]:
        places = []
        owners = [self.layout.sample_of(image.row, image.positions) for image in self.layout.images]
        for owner in (self.layout.sample_of(unit.row, unit.positions) for unit in self.members):
            row, shown = owner[0], zip(owners, self.layout.images)
            end = max(int(image.positions[-1]) for other, image in shown if other == owner)
            after = torch.arange(end + 1, self._end_of_prompt(owner))
            if self.prompt.mask is not None:
                after = after[self.prompt.early.read(self.prompt.mask)[row, -self.layout.shape[1] :][after] != 0]
            places.append((row, after))
        return places

    def _end_of_prompt(self, owner: tuple[int, int]) -> int:
        """The place behind the last token of the prompt of a sample, (row, sample in it)."""
        ends = self.prompt.ends
        return self.layout.end_of(*owner) if ends is None else ends[owner]

    @cached_property
    def _maps(self) -> list[Tensor]:
        """For each encoded image, the tower's rows of each token."""
        tokens = dict(sorted((image.origin, len(image)) for image in self.layout.images if image.kind == "image"))
        return self.composition.adapter.patches(self._features, self._features.shape, list(tokens.values()))


def check_scores(composition: Composition, scores: Scores) -> None:
    """Refuse a selector whose tower scores were not seen.

    Raises:
        ValueError: the features were made before the model was patched, or by a tower that is not tapped.
    """
    needs, selector = composition.needs, composition.selector
    wanted: list[tuple[str, int | str]] = [
        (what, block) for what in ("received", "cls", "keys", "hidden") for block in getattr(needs, what)
    ]
    wanted += [("observed", name) for name in needs.observe]
    missing = [f"{what} of block {block}" for what, block in wanted if (what, block) not in scores]
    if missing and selector is not None:
        raise ValueError(
            f"{selector.name} needs attention scores of the vision tower ({', '.join(missing)}) that were not "
            "seen: make the features after vtc.patch, by the patched model itself; or use a method that reads no "
            "attention, such as 'divprune'"
        )


def _frames(video: Unit | VisualInput) -> Crops:
    """The frames of a video as crops."""
    (grid,) = video.grids
    index, place = torch.full((2, len(video)), -1)
    cells = grid.tokens()
    index[cells] = torch.arange(grid.t)[:, None, None].expand_as(cells)
    place[cells] = torch.arange(grid.h * grid.w).view(grid.h, grid.w).expand_as(cells)
    return Crops(index, place, grid.t, (grid.h, grid.w))


def _beside(images: list[Crops]) -> Crops:
    """The crops of several images, one behind the other, all in a grid that is wide and high enough for each."""
    high, wide = (max(crops.grid[side] for crops in images) for side in (0, 1))
    index, place, count = [], [], 0
    for crops in images:
        here, columns = crops.index >= 0, crops.grid[1]
        index.append(torch.where(here, crops.index + count, -1))
        place.append(torch.where(here, crops.place // columns * wide + crops.place % columns, -1))
        count += crops.count
    return Crops(torch.cat(index), torch.cat(place), count, (high, wide))


def _rows(flat: Tensor, rows: Tensor) -> Tensor:
    """Rows `rows` [N, 1] of `flat` [P, C]; NaN where they are -1."""
    first = on(flat.device, rows[:, 0])
    return flat[first.clamp(min=0)].masked_fill(first[:, None] < 0, float("nan"))


def _as_in_the_call(projector: Callable[[Tensor], Tensor], device: torch.device) -> Callable[[Tensor], Tensor]:
    """The model's own projector with the call's autocast, in which the selector does not decide."""
    if not autocasts(device):
        return projector
    dtype = torch.get_autocast_dtype(device.type)

    def apply(rows: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype=dtype):
            return projector(rows)

    return apply
