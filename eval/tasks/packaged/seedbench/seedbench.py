"""SEED-Bench (arXiv 2307.16125): accuracy of the option's letter, over all, the pictures and the videos."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from vtc.eval.tasks.packaged.shared.options import lettered
from vtc.eval.tasks.packaged.shared.picture import around, in_rgb


def doc_to_visual(doc: Mapping[str, Any]) -> list[Any]:
    """The picture, or the frames of the video as pictures, each in RGB or a path."""
    return [in_rgb(image) for image in doc["image"]]


def doc_to_text(doc: Mapping[str, Any], lmms_eval_specific_kwargs: Mapping[str, str]) -> str:
    """The question and its four options under their letters."""
    options = lettered([doc[f"choice_{each}"] for each in "abcd"])
    return around(f"{doc['question']}\n{options}", lmms_eval_specific_kwargs)


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """Right where the answer's first character is the letter, in either case, whatever follows it."""
    first = results[0].strip()[:1].upper()
    value = {"prediction": first, "score": float(first == doc["answer"].strip().upper())}
    return {"seed_all": value, f"seed_{doc['data_type']}": value, "parsed": first in tuple("ABCD")}


def accuracy(values: Sequence[Mapping[str, Any]]) -> float:
    """The right answers among all."""
    return fmean(value["score"] for value in values) if values else 0.0
