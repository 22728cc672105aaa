"""MMBench (arXiv 2307.06281): circular accuracy by rules alone.

A question is asked once for each rotation of its options (`index` and `index` + a multiple of a million) and counts as
right where every one of these is answered right. Which option an answer means is told by rules, where the benchmark
itself asks a judge model about what its first rules leave open; `gpt_eval_score` is only the metric's name.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from vtc.eval.tasks.packaged.shared.free_choice import read_choice

if TYPE_CHECKING:
    from datasets import Dataset

#: Rotations of one question differ in their index by multiples of this.
ROTATION = 1_000_000
LETTERS = "ABCDE"
#: What may stand around a letter that is a word by itself, in the order of trying.
MARKS = (
    *(("", "."), ("", ","), ("", ":"), ("", ")"), ("", ")."), ("(", ")"), ("(", ").")),
    *((":", ""), (":", ","), (":", "."), (":", ")"), (":", ").")),
)


def process_docs(docs: "Dataset") -> "Dataset":
    """The rows with `circle`, the same number for all rotations of a question."""
    return docs.add_column("circle", [_circle(index) for index in docs["index"]])


def doc_to_text(doc: Mapping[str, Any], lmms_eval_specific_kwargs: Mapping[str, str]) -> str:
    """The hint where there is one, the question, the options under their letters."""
    options = "\n".join(f"{each}. {doc[each]}" for each in LETTERS if doc.get(each) and _given(doc[each]))
    asked = f"{doc['question']} There are several options:\n{options}".rstrip("\n")
    hint = f"{doc['hint']} " if _given(doc["hint"]) else ""
    return f"{hint}{asked}\n{lmms_eval_specific_kwargs['post_prompt']}"


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """Whether this rotation of the question is answered right."""
    # A missing option is None, or the text "nan", and that text counts as an option's here, as it does elsewhere.
    options = {each: str(doc[each]) for each in "ABCD" if not _missing(doc.get(each))}
    answer = results[0].strip()
    read = letter_by_itself(answer) or option_quoted(answer, options) or read_choice(answer, list(options))
    right = float(read == doc["answer"])
    value = {"index": doc["index"], "circle": _circle(doc["index"]), "category": doc["category"], "score": right}
    return {"gpt_eval_score": value, "parsed": read is not None}


def letter_by_itself(answer: str) -> str | None:
    """The letter that is a word of the answer, bare or with marks around it, where there is only one such."""
    words = answer.split()
    bare = [letter for letter in LETTERS if letter in words]
    may_be_article = "A" in words and len(words) > 3
    if len(bare) == 1 and not may_be_article:
        return bare[0]
    for before, after in MARKS:
        marked = [letter for letter in LETTERS if f"{before}{letter}{after}" in words]
        if len(marked) == 1:
            return marked[0]
    return None


def option_quoted(answer: str, options: Mapping[str, str]) -> str | None:
    """The letter of the option whose text the answer contains, where there is only one such."""
    quoted = [letter for letter, text in options.items() if text.lower() in answer.lower()]
    return quoted[0] if len(quoted) == 1 else None


def circular_accuracy(values: Sequence[Mapping[str, Any]]) -> float:
    """How many questions, of 100, have all their rotations right; those that were not asked don't count against it."""
    wrong = {value["circle"] for value in values if not value["score"]}
    asked = [value["circle"] for value in values if value["index"] < ROTATION]
    return 100 * fmean(circle not in wrong for circle in asked) if asked else 0.0


def _circle(index: int) -> int:
    return index % ROTATION


def _missing(value: Any) -> bool:
    return value is None or value != value


def _given(value: Any) -> bool:
    return not _missing(value) and value != "nan"
