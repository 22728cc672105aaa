"""DocVQA (arXiv 2007.00398): ANLS, the average normalised Levenshtein similarity (arXiv 1905.13648)."""

from collections.abc import Mapping, Sequence
from typing import Any

#: An answer less similar than this is simply wrong.
THRESHOLD = 0.5


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """The similarity to the accepted answer that is nearest; 0 below the threshold."""
    nearest = 1 - min(distance(results[0].strip(), accepted) for accepted in doc["answers"])
    return {"anls": nearest if nearest >= THRESHOLD else 0.0}


def distance(answer: str, accepted: str) -> float:
    """Edits between the two over the longer one's length, 0 to 1; case and runs of spaces don't count as edits."""
    # Lengths are those of the texts as they stand, in capitals: "ß" is two long, spaces count.
    longest = max(len(answer.upper()), len(accepted.upper()))
    return edits(_plain(answer), _plain(accepted)) / longest if longest else 0.0


def edits(one: str, other: str) -> int:
    """Levenshtein distance: the least number of characters inserted, deleted and replaced that turn one into the other.

    Row by row of the table of Wagner and Fischer (1974): `row[j]` edits turn what is read of `one` into `other[:j]`.
    """
    row = list(range(len(other) + 1))
    for read, character in enumerate(one, 1):
        above, row = row, [read]
        for j, wanted in enumerate(other):
            row.append(min(above[j] + (character != wanted), above[j + 1] + 1, row[j] + 1))
    return row[-1]


def _plain(text: str) -> str:
    return " ".join(text.lower().split())
