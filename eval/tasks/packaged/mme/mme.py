"""MME (arXiv 2306.13394): accuracy and accuracy+ of pairs of yes/no questions.

Ten categories make up the perception score, four the cognition score.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from vtc.eval.tasks.packaged.shared.picture import around

#: The categories that make up the perception score; all others are cognition.
PERCEPTION = (
    *("existence", "count", "position", "color", "posters"),
    *("celebrity", "scene", "landmark", "artwork", "OCR"),
)
#: What the data set's questions end with; any prompt of ours takes its place.
OWN_PROMPT = " Please answer yes or no."


def doc_to_text(doc: Mapping[str, Any], lmms_eval_specific_kwargs: Mapping[str, str]) -> str:
    """The question between the prompt's two parts; with an empty prompt it keeps its own."""
    question = doc["question"].strip()
    if lmms_eval_specific_kwargs["pre_prompt"] or lmms_eval_specific_kwargs["post_prompt"]:
        question = question.replace(OWN_PROMPT, "")
    return around(question, lmms_eval_specific_kwargs)


def read_yes_no(answer: str) -> str | None:
    """`yes` or `no` where one of them stands within the first four characters, or y or n alone; None elsewhere."""
    text = answer.lower().strip().replace(".", "")
    if text == "y" or "yes" in text[:4]:
        return "yes"
    if text == "n" or "no" in text[:4]:
        return "no"
    return None


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """Whether the answer is the right one of yes and no, under the score that the category counts for."""
    read, right = read_yes_no(results[0]), read_yes_no(doc["answer"])
    name = "mme_perception_score" if doc["category"] in PERCEPTION else "mme_cognition_score"
    value = {"question_id": doc["question_id"], "category": doc["category"], "score": float(read == right)}
    return {name: value, "parsed": read is not None}


def score(values: Sequence[Mapping[str, Any]]) -> float:
    """The sum over the categories of accuracy (%) and accuracy+ (%), up to 200 each.

    Accuracy is over the questions, accuracy+ over the pictures: those with both questions right. A picture of which one
    question alone was asked (`--limit` cut the pair, or the other one failed) counts for accuracy only.
    """
    by_category: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for value in values:
        by_category[value["category"]][value["question_id"]].append(value["score"])
    return sum(_accuracy(pictures.values()) + _accuracy_plus(pictures.values()) for pictures in by_category.values())


def _accuracy(pictures: Iterable[list[float]]) -> float:
    return 100 * fmean(each for scores in pictures for each in scores)


def _accuracy_plus(pictures: Iterable[list[float]]) -> float:
    # The bootstrap draws pictures with replacement, and one drawn k times has 2k scores: it counts as k pairs.
    pairs = [(len(scores) // 2, all(scores)) for scores in pictures]
    total = sum(count for count, _ in pairs)
    return 100 * sum(count for count, both in pairs if both) / total if total else 0.0
