"""What a patch shows, as numbers and as one vector: the dense teaching signal of the first training stages.

Each patch has four labels (kind of thing or background, colour, content, whether the thing's centre is in it) and a
place. `Codes` gives each label a fixed random vector and adds them up. The decoder first learns to answer from such
sums; the tower and projector learn at the same time to produce them from pixels.
"""

from __future__ import annotations

import numpy as np
import torch

from .render import patch_owner
from .scenes import BACKGROUNDS, COLOURS, GRID, KINDS, PATCH, WORDS, Scene

_KIND = {name: i for i, name in enumerate((*BACKGROUNDS, *KINDS))}
_COLOUR = {name: i + 1 for i, name in enumerate(COLOURS)}
_CONTENT = {name: i for i, name in enumerate(("", *map(str, range(10)), *WORDS))}

LABELS: dict[str, int] = {"kind": len(_KIND), "colour": len(_COLOUR) + 1, "content": len(_CONTENT), "centre": 2}
FOREGROUND = len(BACKGROUNDS)  # first kind that is a thing


def patch_labels(scene: Scene) -> np.ndarray:
    """Labels of every patch, int64 [256, 4], columns as in `LABELS`; background has colour, content and centre 0."""
    owner = patch_owner(scene).reshape(-1)
    rows = [(_KIND[t.kind], _COLOUR[t.colour], _CONTENT[t.content], 0) for t in scene.things]
    rows.append((_KIND[scene.background], 0, 0, 0))
    labels = np.array(rows, dtype=np.int64)[owner]
    for index, thing in enumerate(scene.things):
        centre = min(thing.y // PATCH, GRID - 1) * GRID + min(thing.x // PATCH, GRID - 1)
        labels[centre, 3] = owner[centre] == index
    return labels


class Codes:
    """Fixed random vectors of the labels and smooth ones of the places.

    Args:
        width: Size of a code.
        seed: Seed of the vectors.
    """

    def __init__(self, width: int, seed: int = 1) -> None:
        generator = torch.Generator().manual_seed(seed)

        def table(rows: int, scale: float) -> torch.Tensor:
            return scale * torch.randn(rows, width, generator=generator)

        self.tables = {name: table(size, 0.3 if name == "centre" else 0.55) for name, size in LABELS.items()}
        for name in ("colour", "content", "centre"):
            self.tables[name][0] = 0
        at = (torch.arange(GRID) - (GRID - 1) / 2) / (GRID / 2)
        waves = [at * 1.7] + [f(np.pi * k * at) for k in (1, 2, 4) for f in (torch.sin, torch.cos)]
        axis = torch.stack(waves, dim=1)  # [16, 7]
        down, across = (axis @ table(7, 0.2) for _ in range(2))
        self.places = (down[:, None] + across[None, :]).reshape(GRID * GRID, width)

    def __call__(self, labels: torch.Tensor) -> torch.Tensor:
        """Adds up the codes. int64 [..., 256, 4] -> float32 [..., 256, width]."""
        total = self.places.expand(*labels.shape[:-1], -1)
        for column, name in enumerate(LABELS):
            total = total + self.tables[name][labels[..., column]]
        return total
