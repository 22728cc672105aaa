"""POPE (arXiv 2305.10355): accuracy, precision, recall and F1 of "is there a ... in the picture?", yes being positive.

The answer must be yes or no and nothing else: "Yes." with its full stop is an answer that could not be read.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from vtc.eval.tasks.packaged.shared.picture import around

Values = Sequence[Mapping[str, Any]]


def doc_to_text(doc: Mapping[str, Any], lmms_eval_specific_kwargs: Mapping[str, str]) -> str:
    """The question, without the space around it, between the prompt's two parts."""
    return around(doc["question"].strip(), lmms_eval_specific_kwargs)


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """What was answered and what is true, for every metric the same."""
    prediction, truth = results[0].lower().strip(), doc["answer"].lower().strip()
    value = {"prediction": prediction, "ground_truth": truth, "score": float(prediction == truth)}
    names = ("pope_accuracy", "pope_precision", "pope_recall", "pope_f1_score", "pope_yes_ratio")
    return {**dict.fromkeys(names, value), "parsed": prediction in ("yes", "no")}


def accuracy(values: Values) -> float:
    """The right answers among all."""
    return fmean(value["score"] for value in values) if values else 0.0


def precision(values: Values) -> float:
    """Of the answers yes those that are right."""
    return _ratio(_count(values, "yes", "yes"), _count(values, "no", "yes"))


def recall(values: Values) -> float:
    """Of the objects that are there, those answered with yes; answers that are neither yes nor no are left out."""
    return _ratio(_count(values, "yes", "yes"), _count(values, "yes", "no"))


def f1_score(values: Values) -> float:
    """The harmonic mean of precision and recall."""
    both = precision(values) + recall(values)
    return 2 * precision(values) * recall(values) / both if both else 0.0


def yes_ratio(values: Values) -> float:
    """How many questions are to be answered with yes: this tells of the questions, not of the model."""
    truths = [value["ground_truth"] for value in values]
    return _ratio(truths.count("yes"), truths.count("no"))


def _count(values: Values, truth: str, prediction: str) -> int:
    return sum((value["ground_truth"], value["prediction"]) == (truth, prediction) for value in values)


def _ratio(hits: int, misses: int) -> float:
    return hits / (hits + misses) if hits + misses else 0.0
