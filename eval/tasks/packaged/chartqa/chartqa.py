"""ChartQA (arXiv 2203.10244, 5.1): relaxed accuracy: numbers may be off by 5 %, other answers must be equal."""

from collections.abc import Mapping, Sequence
from typing import Any

TOLERANCE = 0.05


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Relaxed accuracy, over all and over the part that the question comes from."""
    right = float(relaxed_match(results[0], doc["answer"]))
    part = "human" if doc["type"] == "human_test" else "augmented"
    return {"relaxed_overall": right, f"relaxed_{part}_split": right}


def relaxed_match(answer: str, target: str) -> bool:
    """Whether two numbers are within 5 % of the target; without two, or with a target of 0, equality but for case."""
    number, target_number = as_number(answer), as_number(target)
    if number is None or not target_number:
        return answer.lower() == target.lower()
    return abs(number - target_number) / abs(target_number) <= TOLERANCE


def as_number(text: str) -> float | None:
    """What Python reads as a number, "12%" being 0.12; "1,000" and "12 cm" are none."""
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
