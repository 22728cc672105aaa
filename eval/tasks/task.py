"""A task: questions about pictures and videos, how an answer is scored, and what becomes of the scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from vtc.eval.media.video import Video

#: A picture, or a video, or its frames alone, uint8 [F, H, W, 3].
Shown: TypeAlias = "Image.Image | Video | np.ndarray"


@dataclass(frozen=True)
class Scored:
    """What an answer is worth.

    Attributes:
        metrics: by metric what its aggregation takes of this sample, JSON values; a metric may be missing.
        score: how right the answer is, 0 to 1: what samples are compared by; None where the task doesn't tell.
        parsed: False where the answer has not the form that the task asks for, so that it could not be read.
    """

    metrics: dict[str, Any]
    score: float | None
    parsed: bool = True

    @property
    def correct(self) -> bool | None:
        """Whether at least half of it is right."""
        return None if self.score is None else self.score >= 0.5


@dataclass(frozen=True)
class Metric:
    """One number of a task.

    Attributes:
        name: as lmms-eval calls it.
        aggregation: the number, from the `Scored.metrics[name]` of all samples.
        higher_is_better: direction.
        is_mean: the aggregation is the arithmetic mean of numbers, for which the bootstrap has a short cut.
    """

    name: str
    aggregation: Callable[[Sequence[Any]], float] = fmean
    higher_is_better: bool = True
    is_mean: bool = True


@dataclass(frozen=True)
class Question:
    """One question about pictures and videos.

    Attributes:
        id: unique within the task.
        group: what it is counted under.
        text: what the model is asked, the task's prompt around it.
        answer: the expected answer, as the records show it.
        shown: opens or draws what is asked about, in order; it may be nothing. InputError where a file can't be read.
        score: what an answer is worth.
        cluster: questions that are not independent of each other (two about one picture) share it; None: by itself.
    """

    id: str
    group: str
    text: str
    answer: str
    shown: Callable[[], Sequence[Shown]]
    score: Callable[[str], Scored]
    cluster: str | None = None


@dataclass(frozen=True)
class Task:
    """A list of questions, each made when it is looked at.

    Attributes:
        name: of the task.
        fingerprint: names the very questions, prompts and rules; part of what tells one run from another.
        size: how many questions there are.
        get: question number i.
        metrics: the first is the headline, by which settings are compared.
        kind: "image" or "video": what most questions show, which chooses the bundled model.
        max_new_tokens: longest answer.
        until: the answer ends before the first of these.
    """

    name: str
    fingerprint: str
    size: int
    get: Callable[[int], Question]
    metrics: tuple[Metric, ...] = (Metric("exact_match"),)
    kind: str = "image"
    max_new_tokens: int = 8
    until: tuple[str, ...] = ()

    def batches(self, size: int) -> list[range]:
        """The indices of each batch of at most `size` questions."""
        return [range(start, min(start + size, self.size)) for start in range(0, self.size, size)]

    def cut(self, answer: str) -> str:
        """The answer up to the first of `until`, without the space around it."""
        for stop in self.until:
            answer = answer.partition(stop)[0] if stop else answer
        return answer.strip()
