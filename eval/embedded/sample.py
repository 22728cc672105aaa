"""What a question of the embedded benchmark is, and when an answer counts as right."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

GROUPS: tuple[str, ...] = (
    "existence",
    "colour",
    "count",
    "relation",
    "quadrant",
    "digit",
    "word",
    "choice",
    "scene",
)

SPLITS: tuple[str, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class Sample:
    """One picture with one question.

    Attributes:
        id: Stable and unique, `<split>-<seed>-<index>`.
        image: RGB picture, 224 x 224.
        question: The question as a person would type it.
        answer: The right answer, lower case (a capital letter for the choice group).
        group: One of `GROUPS`.
        choices: The options of the choice group in the order A, B, C, D; None elsewhere.
    """

    id: str
    image: Image = field(repr=False, compare=False)
    question: str
    answer: str
    group: str
    choices: tuple[str, ...] | None = None


def normalise(text: str) -> str:
    """Lower-cases, drops punctuation and joins runs of blanks."""
    return " ".join(re.sub(r"[^\w\s]", " ", text.lower()).split())


def is_correct(prediction: str, sample: Sample) -> bool:
    """Whether a prediction equals the answer after lower-casing and stripping punctuation."""
    return normalise(prediction) == normalise(sample.answer)
