"""LongVideoBench (arXiv 2407.15754): accuracy of up to five options about videos of up to an hour, without subtitles.

lmms-eval draws a letter where none can be read; here such an answer is wrong, and told.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

#: What answers begin with; the first letter is looked for in what is left.
PHRASES = (
    *("The best answer is", "The correct answer is", "The answer is", "The answer"),
    *("The best option is", "The correct option is", "Best answer:", "Best option:"),
)
#: The data set's word for an option that is not there.
NO_OPTION = "N/A"


def doc_to_visual(doc: Mapping[str, Any]) -> list[str]:
    """The video's file."""
    return [f"videos/{doc['video_path']}"]


def doc_to_text(doc: Mapping[str, Any], lmms_eval_specific_kwargs: Mapping[str, str]) -> str:
    """The question and its options under letters, between the prompt's two parts."""
    options = [option for number in range(5) if (option := doc.get(f"option{number}")) != NO_OPTION]
    lines = [f"{chr(ord('A') + number)}. {option}" for number, option in enumerate(options)]
    question = "\n".join([doc["question"], *lines])
    return f"{lmms_eval_specific_kwargs['pre_prompt']}{question}\n{lmms_eval_specific_kwargs['post_prompt']}"


def read_letter(answer: str) -> str | None:
    """The first capital from A to E behind what answers begin with."""
    text = answer.strip()
    for phrase in PHRASES:
        text = text.replace(phrase, "")
    found = re.search(r"[ABCDE]", text)
    return found[0] if found else None


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """Right where the letter is the answer's."""
    said = read_letter(results[0])
    return {"lvb_acc": float(said == chr(ord("A") + doc["correct_choice"])), "parsed": said is not None}


def accuracy(values: Sequence[float]) -> float:
    """The right answers among all, to five digits, as lmms-eval rounds."""
    return round(sum(values) / len(values), 5) if values else 0.0
