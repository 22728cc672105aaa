"""MVBench (arXiv 2311.17005): accuracy of one option of each of 20 kinds of questions about videos."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from vtc.eval.tasks.packaged.shared.vqa_accuracy import strip_punctuation

#: An answer that begins with its letter and a full stop, and goes on in the same line.
BEGINS = re.compile(r"^([A-E])\.\s*(.+)$", re.IGNORECASE)
LETTER = re.compile(r"\b([A-E])\b", re.IGNORECASE)


def doc_to_visual(doc: Mapping[str, Any], lmms_eval_specific_kwargs: Mapping[str, str]) -> list[str]:
    """The video, or the folder of its frames, below the folder of the videos that this kind of question is about."""
    return [f"{lmms_eval_specific_kwargs['videos']}/{doc['video']}"]


def doc_to_text(doc: Mapping[str, Any], lmms_eval_specific_kwargs: Mapping[str, str]) -> str:
    """The question, its options under letters in brackets, and what is asked for."""
    options = "".join(f"({chr(ord('A') + number)}) {option}\n" for number, option in enumerate(doc["candidates"]))
    return f"Question:{doc['question']}\nOption:\n{options}{lmms_eval_specific_kwargs['post_prompt']}"


def read_letter(answer: str) -> str | None:
    """The letter at the beginning with a full stop behind it, else the first that stands by itself, in either case."""
    begins = BEGINS.match(answer.strip())
    if begins:
        return begins[1].upper()
    text = strip_punctuation(answer.replace("\n", " ").replace("\t", " ").strip())
    for mark in "'\")(":
        text = text.strip(mark)
    found = LETTER.search(text)
    return found[1].upper() if found else None


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """Right where the letter is that of the answer."""
    right = next((chr(ord("A") + n) for n, option in enumerate(doc["candidates"]) if option == doc["answer"]), None)
    said = read_letter(results[0])
    value = {"pred_answer": results[0], "score": float(said is not None and said == right)}
    return {"mvbench_accuracy": value, "parsed": said is not None}


def accuracy(values: Sequence[Mapping[str, Any]]) -> float:
    """The right ones among the answers that are not empty, in %."""
    answered = [value["score"] for value in values if value["pred_answer"] != ""]
    return 100 * sum(answered) / len(answered) if answered else 0.0
