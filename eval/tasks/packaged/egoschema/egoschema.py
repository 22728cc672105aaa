"""EgoSchema (arXiv 2308.09126): accuracy of one of five options about what a wearer of a camera does.

lmms-eval draws a letter where none can be read; here such an answer is wrong, and told.
"""

from collections.abc import Mapping, Sequence
from typing import Any

LETTERS = ("A", "B", "C", "D", "E")


def doc_to_visual(doc: Mapping[str, Any]) -> list[str]:
    """The video's file."""
    return [f"videos/{doc['video_idx']}.mp4"]


def doc_to_text(doc: Mapping[str, Any], lmms_eval_specific_kwargs: Mapping[str, str]) -> str:
    """The question and its options, which bring their letters along, between the prompt's two parts."""
    question = "\n".join([doc["question"], *doc["option"]])
    return f"{lmms_eval_specific_kwargs['pre_prompt']}{question}{lmms_eval_specific_kwargs['post_prompt']}"


def read_option(answer: str, options: Sequence[str]) -> int | None:
    """The number of the option: of the letters in brackets, before a space or a full stop the one that comes first.

    Without any, an answer of more than five words is searched for the options' own texts. A letter's place is where it
    stands last.
    """
    for mark in ",.!?;:'":
        answer = answer.strip(mark)
    text = f" {answer} "
    marked = [
        form.format(letter) for form in ("({})", "{} ", "{}.") for letter in LETTERS if form.format(letter) in text
    ]
    if marked:
        return LETTERS.index(min(marked, key=text.rfind).strip("(). "))
    lowered, texts = text.lower(), [option.strip().lower() for option in options]
    inside = [each for each in texts if each in lowered] if len(text.split()) > 5 else []
    return texts.index(min(inside, key=lowered.rfind)) if inside else None


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """Right where the option is the answer's."""
    said = read_option(results[0], doc["option"])
    return {"score": float(str(said) == str(doc["answer"])), "parsed": said is not None}
