"""The statistics of a table: shares with intervals, medians with quartiles."""

import math
import statistics
from collections.abc import Sequence

Z95 = 1.959963984540054


def wilson(right: int, asked: int) -> tuple[float, float]:
    """Wilson's 95 % interval of the share right / asked; (0, 1) where nothing was asked."""
    if not asked:
        return 0.0, 1.0
    share, z2 = right / asked, Z95 * Z95
    centre = share + z2 / (2 * asked)
    spread = Z95 * math.sqrt(share * (1 - share) / asked + z2 / (4 * asked * asked))
    low, high = (centre - spread) / (1 + z2 / asked), (centre + spread) / (1 + z2 / asked)
    return max(0.0, low), min(1.0, high)


def relative(right: int, right_without: int) -> float | None:
    """Accuracy as a share of the uncompressed model's on the same questions; None where that one is 0."""
    return right / right_without if right_without else None


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile (linear between the values), of at least one value."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high
