"""What a selector asked for, put together for images that are laid out alike."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vtc.layout import Layout
from vtc.recorded import Features, Recorded
from vtc.visual import Crops, Projection

if TYPE_CHECKING:
    from vtc.seam import Seam

Scores = dict[tuple[str, int | str], list[Tensor]]


@dataclass
class Seen:
    """What was seen of the images `members` of a call."""

    seam: "Seam"
    layout: Layout
    recorded: Recorded
    tower: Scores
    members: list[int]

    @property
    def _features(self) -> Features:
        return self.recorded.features_of(self.layout.images[self.members[0]].kind)

    def scores(self, what: str, device: torch.device) -> Mapping[Any, Tensor]:
        """Tower block or name -> Tensor [G, N, ...]."""
        return {
            block: torch.stack([values[index].to(device) for index in self.members])
            for (name, block), values in self.tower.items()
            if name == what
        }

    def crops(self) -> Crops | None:
        """Which crop each token was seen in; None where nothing is asked of the tower."""
        if not self.tower and not self.seam.needs.projection:
            return None
        sequences, patches = self._features.shape
        rows = self._maps[self.layout.images[self.members[0]].origin]
        first = rows[:, 0]
        alive = first >= 0
        crop = torch.where(alive, first // patches if sequences > 1 else torch.zeros_like(first), -1)
        crop = torch.where(alive, crop - crop[alive].min(), -1)
        count, inside = int(crop.max()) + 1, first % patches
        units = patches // rows.shape[1]
        side = round(units**0.5)
        if sequences == 1 and count == 1:  # a packed tower: all of the image, in its own grid
            grid = self.layout.images[self.members[0]].grids[-1]
            return Crops(crop, torch.where(alive, alive.cumsum(0) - 1, -1), 1, (grid.t * grid.h, grid.w))
        if rows.shape[1] > 1:  # several patches make a token: tokens stand in raster order within each crop
            inside = torch.cat([torch.arange(int((crop == c).sum())) for c in range(count)])
        return Crops(crop, torch.where(alive, inside, -1), count, (side, units // side))

    def projection(self, device: torch.device) -> Projection | None:
        """The projector and what it read; None where it was not asked for or a token is made of several patches."""
        features, adapter = self._features, self.seam.adapter
        if not self.seam.needs.projection or features.projected is None or not adapter.projects_rows:
            return None
        origins, maps = [self.layout.images[index].origin for index in self.members], self._maps
        if maps[0].shape[1] != 1:
            return None
        flat = features.projected.flatten(0, 1).to(device)
        rows = torch.stack([_rows(flat, maps[origin]) for origin in origins])
        cls = None
        if features.cls is not None:
            seen = [maps[origin][:, 0] // features.shape[1] for origin in origins]
            seen = [crop[maps[origin][:, 0] >= 0] for origin, crop in zip(origins, seen)]
            cls = torch.stack([features.cls[int(crop.min()) : int(crop.max()) + 1] for crop in seen]).to(device)
        return Projection(rows, cls, adapter.projector)

    def question(self) -> tuple[Tensor, ...]:
        """For each image, the ids of the text behind the row's last visual token."""
        ids = self.recorded.input_ids
        if not self.seam.needs.text or ids is None:
            return ()
        return tuple(ids[row, places] for row, places in self._text_places())

    def text(self, embeds: Tensor) -> tuple[Tensor, ...]:
        """For each image, the embeddings of the same."""
        if not self.seam.needs.text:
            return ()
        return tuple(embeds[row, places.to(embeds.device)] for row, places in self._text_places())

    def _text_places(self) -> list[tuple[int, Tensor]]:
        places = []
        for index in self.members:
            row = self.layout.images[index].row
            end = max(int(image.positions[-1]) for image in self.layout.images if image.row == row)
            after = torch.arange(end + 1, self.layout.shape[1])
            if self.recorded.mask is not None:
                after = after[self.recorded.mask[row, -self.layout.shape[1] :].cpu()[after] != 0]
            places.append((row, after))
        return places

    @cached_property
    def _maps(self) -> list[Tensor]:
        """For each encoded image of the kind, the tower's rows of each token."""
        kind = self.layout.images[self.members[0]].kind
        tokens = dict(sorted((image.origin, len(image)) for image in self.layout.images if image.kind == kind))
        return self.seam.adapter.patches(self._features, self._features.shape, list(tokens.values()))


def _rows(flat: Tensor, rows: Tensor) -> Tensor:
    """Rows `rows` [N, 1] of `flat` [P, C]; NaN where they are -1."""
    first = rows[:, 0].to(flat.device)
    return flat[first.clamp(min=0)].masked_fill(first[:, None] < 0, float("nan"))
