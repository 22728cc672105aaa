"""Video-MME (arXiv 2405.21075): accuracy of multiple choice about videos from seconds to an hour long, no subtitles."""

from collections.abc import Mapping, Sequence
from typing import Any

from vtc.eval.tasks.packaged.shared.free_choice import read_choice

LETTERS = ("A", "B", "C", "D")
INSTRUCTION = (
    "Select the best answer to the following multiple-choice question based on the video and the subtitles. Respond "
    "with only the letter (A, B, C, or D) of the correct option."
)


def doc_to_visual(doc: Mapping[str, Any]) -> list[str]:
    """The video's file."""
    return [f"data/{doc['videoID']}.mp4"]


def doc_to_text(doc: Mapping[str, Any], lmms_eval_specific_kwargs: Mapping[str, str]) -> str:
    """Instruction, question and options; with `format: qwen3_vl` as that model was trained."""
    kwargs, options = lmms_eval_specific_kwargs, "\n".join(doc["options"])
    if kwargs.get("format") == "qwen3_vl":
        return f"{kwargs['pre_prompt']}{doc['question']}\nOptions:\n{options}\n{kwargs['post_prompt']}"
    return f"{INSTRUCTION}\n{doc['question']}\n{options}\n{kwargs.get('post_prompt', 'The best answer is:')}"


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """Right where the letter that is meant is the answer's."""
    said = read_choice(results[0], LETTERS)
    value = {"duration": doc["duration"], "pred_answer": said, "score": float(said == doc["answer"])}
    return {"videomme_perception_score": value, "parsed": said is not None}


def accuracy(values: Sequence[Mapping[str, Any]]) -> float:
    """The right answers among all, in %."""
    return 100 * sum(value["score"] for value in values) / len(values) if values else 0.0
