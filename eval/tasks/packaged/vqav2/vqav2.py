"""VQAv2 (arXiv 1612.00837): VQA accuracy, with the lighter evening out of the benchmark's own evaluation."""

from collections.abc import Mapping, Sequence
from typing import Any

from vtc.eval.tasks.packaged.shared.vqa_accuracy import leave_one_out, normalise_words, strip_punctuation


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """The answer against the `answer` of each of `doc["answers"]`, all of them normalised."""
    people = [normalise(each["answer"]) for each in doc["answers"] or []]
    return {"exact_match": leave_one_out(normalise(results[0]), people)}


def normalise(answer: str) -> str:
    """Punctuation and words evened out; unlike TextVQA's, commas and `'s` stay for these two to deal with."""
    return normalise_words(strip_punctuation(answer.replace("\n", " ").replace("\t", " ").strip()))
