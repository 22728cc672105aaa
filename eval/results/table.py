"""Tables of figures in Markdown, columns padded."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vtc.eval.results.results import Spread


def shown(spread: "Spread | None", factor: float = 1) -> str:
    """Median [quartiles], to three digits of the median, and three behind the point at most; nothing for None."""
    if spread is None:
        return ""
    median = factor * spread["median"]
    if median < 0.001:
        return "<0.001" if median else "0"
    digits = min(max(2 - math.floor(math.log10(median)), 0), 3)
    return f"{median:.{digits}f} [{factor * spread['low']:.{digits}f}, {factor * spread['high']:.{digits}f}]"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table, its heading first."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in rows]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]
