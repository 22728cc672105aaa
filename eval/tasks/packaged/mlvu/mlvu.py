"""MLVU (arXiv 2406.04264): accuracy of multiple choice about long videos, the mean over kinds of questions."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from vtc.eval.tasks.packaged.shared.free_choice import read_choice

LETTERS = ("A", "B", "C", "D")
#: The kinds of the development set; one without a question counts as 0.
KINDS = ("anomaly_reco", "count", "ego", "needle", "order", "plotQA", "topic_reasoning")


def doc_to_visual(doc: Mapping[str, Any]) -> list[str]:
    """The video's file."""
    return [doc["video_name"]]


def doc_to_text(doc: Mapping[str, Any], lmms_eval_specific_kwargs: Mapping[str, str]) -> str:
    """The question, which brings its options along, between the prompt's two parts."""
    return f"{lmms_eval_specific_kwargs['pre_prompt']}{doc['question']}{lmms_eval_specific_kwargs['post_prompt']}"


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """Right where the letter that is meant is the answer's."""
    said = read_choice(results[0], LETTERS)
    value = {"task_type": doc["task_type"], "pred_answer": said, "score": float(said == doc["answer"])}
    return {"mlvu_percetion_score": value, "parsed": said is not None}


def mean_over_kinds(values: Sequence[Mapping[str, Any]]) -> float:
    """Accuracy of each kind in %, and the mean of these, however many questions each has."""
    by_kind: dict[str, list[float]] = defaultdict(list)
    for value in values:
        by_kind[value["task_type"]].append(value["score"])
    return sum(100 * sum(by_kind[kind]) / len(by_kind[kind]) for kind in KINDS if by_kind[kind]) / len(KINDS)
