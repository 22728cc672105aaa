"""What a patch shows, as numbers and as one vector: the dense teaching signal of the first training stages.

Each patch has four labels (kind of thing or background, colour, content, whether the thing's centre is in it) and a
place. `Codes` gives each label the decoder's embedding of its word, signs flipped, and adds them up. The decoder first
learns to answer from such sums; the tower and projector learn at the same time to produce them from pixels.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

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
    """One vector per label, the decoder's own embedding of the word for it, and smooth ones for the places.

    Args:
        embedding: The decoder's word embeddings [V, width]; kept fixed while codes teach.
        signs: [width], 1 or -1, times every code.
        ids: Token id of every word.
        seed: Seed of the places' waves.
    """

    def __init__(self, embedding: Tensor, signs: Tensor, ids: dict[str, int], seed: int = 1) -> None:
        generator = torch.Generator().manual_seed(seed)
        table = embedding.detach().float() * signs
        nothing = torch.zeros_like(table[0])

        def words(names) -> Tensor:
            return torch.stack([table[ids[name]] if name else nothing for name in names])

        self.tables = {
            "kind": words(_KIND),
            "colour": words(("", *COLOURS)),
            "content": words(_CONTENT),
            "centre": torch.stack((nothing, table[ids["one"]])),
        }
        self.tables["kind"][:FOREGROUND] *= 0.5
        at = (torch.arange(GRID) - (GRID - 1) / 2) / (GRID / 2)
        waves = torch.stack([f(np.pi * k * at) for k in (0.5, 1, 2, 4) for f in (torch.sin, torch.cos)], dim=1)
        waves[:, 0] *= 2  # the one that grows all the way, by which places are compared
        axes = [
            0.6 * torch.tanh(2.5 * at)[:, None] * (table[ids[more]] - table[ids[less]])
            + waves @ (0.15 * torch.randn(waves.shape[1], len(nothing), generator=generator))
            for less, more in (("top", "bottom"), ("left", "right"))
        ]
        self.places = (axes[0][:, None] + axes[1][None, :]).reshape(GRID * GRID, -1)

    def __call__(self, labels: Tensor) -> Tensor:
        """Adds up the codes. int64 [..., 256, 4] -> float32 [..., 256, width]."""
        total = self.places.expand(*labels.shape[:-1], -1)
        for column, name in enumerate(LABELS):
            total = total + self.tables[name][labels[..., column]]
        return total
