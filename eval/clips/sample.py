"""What a question of the clip benchmark is."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

#: Of a clip, where no other number is asked for; what the model was trained on.
FRAMES = 8
GROUPS: tuple[str, ...] = ("moved", "direction", "count", "colour", "order", "when")


@dataclass(frozen=True)
class ClipSample:
    """One clip with one question.

    Attributes:
        id: Stable and unique, `clips-<split>-<seed>-<index>`.
        frames: uint8 [F, 224, 224, 3], 8 of them where no other number was asked for.
        question: The question as a person would type it.
        answer: The right answer, lower case.
        group: One of `GROUPS`.
    """

    id: str
    frames: np.ndarray = field(repr=False, compare=False)
    question: str
    answer: str
    group: str
