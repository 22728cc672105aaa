"""The statistics of a table: intervals, medians with quartiles, and what changed between two settings."""

import math
import statistics
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vtc.eval.embedded.sample import normalise

Z95 = 1.959963984540054

#: Resamples of a bootstrap: of means, and of what a task's own function aggregates (2,000 questions take it a second).
RESAMPLES, RESAMPLES_OF_FUNCTIONS = 2000, 400
#: Most numbers that are drawn at once.
_AT_ONCE = 10**7

Aggregation = Callable[[Sequence[Any]], float]


def wilson(right: float, asked: int) -> tuple[float, float]:
    """Wilson's 95 % interval of the share right / asked; (0, 1) where nothing was asked."""
    if not asked:
        return 0.0, 1.0
    share, z2 = right / asked, Z95 * Z95
    centre = share + z2 / (2 * asked)
    spread = Z95 * math.sqrt(share * (1 - share) / asked + z2 / (4 * asked * asked))
    low, high = (centre - spread) / (1 + z2 / asked), (centre + spread) / (1 + z2 / asked)
    return max(0.0, low), min(1.0, high)


def relative(right: float, right_without: float) -> float | None:
    """A number as a share of the untouched model's on the same questions; None where that one is 0."""
    return right / right_without if right_without else None


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile (linear between the values), of at least one value."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def bootstrap(
    values: Sequence[Any],
    aggregation: Aggregation = statistics.fmean,
    is_mean: bool = False,
    clusters: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> tuple[float, float]:
    """The percentile bootstrap's 95 % interval of `aggregation(values)` (Efron and Tibshirani 1993, section 13.3).

    Args:
        values: of N samples, at least one.
        aggregation: what is made of them.
        is_mean: it is the arithmetic mean of numbers.
        clusters: of each sample; samples of one are drawn together, for they are not independent. None: by itself.
        seed: of the draws; the same arguments give the same interval.
    """
    return _percentiles(_resampled([values], aggregation, is_mean, clusters, seed)[0])


def paired_bootstrap(
    values: Sequence[Any],
    without: Sequence[Any],
    aggregation: Aggregation = statistics.fmean,
    is_mean: bool = False,
    clusters: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> tuple[float, float]:
    """The same for `aggregation(values) - aggregation(without)`: each resample draws the same questions for both.

    Args:
        values: of N samples, at least one.
        without: the others', in the same order.
        aggregation: as in `bootstrap`.
        is_mean: likewise.
        clusters: likewise.
        seed: likewise.
    """
    mine, others = _resampled([values, without], aggregation, is_mean, clusters, seed)
    return _percentiles(mine - others)


def _percentiles(numbers: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(numbers, [2.5, 97.5])
    return float(low), float(high)


def _resampled(
    columns: Sequence[Sequence[Any]],
    aggregation: Aggregation,
    is_mean: bool,
    clusters: Sequence[Hashable] | None,
    seed: int,
) -> list[np.ndarray]:
    """The aggregation of each column in every resample, [resamples] each."""
    members = _members(clusters, len(columns[0]))
    generator = np.random.default_rng(seed)
    if is_mean:
        sizes = np.array([len(some) for some in members])
        sums = [np.array([math.fsum(column[i] for i in some) for some in members]) for column in columns]
        block = max(1, min(RESAMPLES, _AT_ONCE // len(members)))
        found: list[list[np.ndarray]] = [[] for _ in columns]
        for start in range(0, RESAMPLES, block):
            drawn = generator.integers(len(members), size=(min(block, RESAMPLES - start), len(members)))
            for into, total in zip(found, sums):
                into.append(total[drawn].sum(axis=1) / sizes[drawn].sum(axis=1))
        return [np.concatenate(each) for each in found]
    resamples: list[list[float]] = [[] for _ in columns]
    for _ in range(RESAMPLES_OF_FUNCTIONS):
        chosen = [i for cluster in generator.integers(len(members), size=len(members)) for i in members[cluster]]
        for into_list, column in zip(resamples, columns):
            into_list.append(float(aggregation([column[i] for i in chosen])))
    return [np.array(each) for each in resamples]


def _members(clusters: Sequence[Hashable] | None, count: int) -> list[list[int]]:
    """The samples of each cluster; one that has none is by itself."""
    found: dict[Hashable, list[int]] = {}
    for index, cluster in enumerate(clusters or [None] * count):
        found.setdefault(("alone", index) if cluster is None else ("cluster", cluster), []).append(index)
    return list(found.values())


@dataclass(frozen=True)
class Flips:
    """Questions that are answered rightly in one of two cases only.

    Attributes:
        right_to_wrong: rightly without, wrongly with.
        wrong_to_right: the reverse.
        p_value: McNemar's exact two-sided test of both being equally likely.
    """

    right_to_wrong: int
    wrong_to_right: int
    p_value: float


def flips(without: Sequence[bool], with_: Sequence[bool]) -> Flips:
    """What changed between two cases of the same questions."""
    lost = sum(before and not after for before, after in zip(without, with_, strict=True))
    won = sum(after and not before for before, after in zip(without, with_, strict=True))
    return Flips(lost, won, mcnemar(lost, won))


def mcnemar(lost: int, won: int) -> float:
    """McNemar's exact two-sided p: of so uneven a split, or a more uneven one, where both sides are equally likely."""
    changed = lost + won
    tail = sum(math.comb(changed, count) for count in range(min(lost, won) + 1))
    return min(1.0, 2 * tail / 2**changed)


def agreement(answers: Sequence[str], without: Sequence[str]) -> float:
    """Share of the answers that are the same but for case, punctuation and blanks; of at least one."""
    same = sum(normalise(mine) == normalise(other) for mine, other in zip(answers, without, strict=True))
    return same / len(answers)


def mean_relative(ratios: Mapping[str, float | None]) -> float | None:
    """Mean over tasks of the ratio to the untouched model, of those tasks that have one; None where none has."""
    known = [ratio for ratio in ratios.values() if ratio is not None]
    return statistics.fmean(known) if known else None
