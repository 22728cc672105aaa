"""The functions that bundled.yaml names."""

from PIL import Image


def pictures(doc):
    """What the question is about."""
    return [Image.open(doc["image"]).convert("RGB")]


def text(doc, lmms_eval_specific_kwargs=None):
    """What is asked."""
    return doc["question"]


def score(doc, results):
    """Whether the answer is right."""
    return {"exact_match": float(results[0].strip().lower() == doc["answer"].lower())}
