"""AI2D (arXiv 1603.07396): accuracy of the option's letter."""

import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

from vtc.eval.tasks.packaged.shared.options import letter, lettered
from vtc.eval.tasks.packaged.shared.picture import around

LEADING_LETTER = re.compile(r"([A-Z])\.")
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def doc_to_text(doc: Mapping[str, Any], lmms_eval_specific_kwargs: Mapping[str, str]) -> str:
    """The question and its options under their letters."""
    if lmms_eval_specific_kwargs["prompt_format"] == "mcq_xcomposer":
        asked = f"{doc['question']}\nContext: N/A\n{lettered(doc['options'], between=' ')}"
    else:
        asked = f"{doc['question']}\n{lettered(doc['options'])}"
    return around(asked, lmms_eval_specific_kwargs)


def doc_to_target(doc: Mapping[str, Any]) -> str:
    """The right option's letter."""
    return letter(int(doc["answer"]))


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """Right where the answer is the letter alone, but for case and punctuation, or begins with `X.`."""
    answer = results[0].strip()
    leading = LEADING_LETTER.match(answer)
    read = leading.group(1) if leading else answer.translate(NO_PUNCTUATION).upper()
    options = [letter(index) for index in range(len(doc["options"]))]
    return {"exact_match": float(read == doc_to_target(doc)), "parsed": read in options}
