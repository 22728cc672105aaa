"""ScienceQA (arXiv 2209.09513): accuracy of the option's letter."""

from collections.abc import Mapping, Sequence
from typing import Any

from vtc.eval.tasks.packaged.shared.options import letter, lettered
from vtc.eval.tasks.packaged.shared.picture import around


def doc_to_text(doc: Mapping[str, Any], lmms_eval_specific_kwargs: Mapping[str, str]) -> str:
    """The hint where there is one, the question, the options under their letters."""
    hint, question, options = doc["hint"], doc["question"], lettered(doc["choices"])
    if lmms_eval_specific_kwargs["format"] == "qwen_vl":
        return f"Context: {hint or 'N/A'}\nQuestion: {question}\nOptions: {options}\nAnswer:"
    context = f"Context: {hint}\n" if hint else ""
    return around(f"{context}{question}\n{options}", lmms_eval_specific_kwargs)


def doc_to_target(doc: Mapping[str, Any]) -> str:
    """The right option's letter."""
    return letter(doc["answer"])


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """Right where the answer is the letter alone, in either case, or begins with the capital letter and a full stop."""
    answer = results[0].strip()
    read = answer[0] if answer[:1].isupper() and answer[1:2] == "." else answer
    options = [letter(index) for index in range(len(doc["choices"]))]
    return {"exact_match": float(read.upper() == doc_to_target(doc)), "parsed": read.upper() in options}
