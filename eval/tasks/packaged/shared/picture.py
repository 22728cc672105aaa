"""One picture and one question: what is shown and asked in most of the tasks about pictures."""

from collections.abc import Mapping
from typing import Any


def doc_to_visual(doc: Mapping[str, Any]) -> list[Any]:
    """The picture of a row in RGB; its path where the row names a file; nothing where the row has none."""
    return [] if doc["image"] is None else [in_rgb(doc["image"])]


def in_rgb(image: Any) -> Any:
    """The picture in RGB; a path as it is."""
    return image if isinstance(image, str) else image.convert("RGB")


def doc_to_text(doc: Mapping[str, Any], lmms_eval_specific_kwargs: Mapping[str, str]) -> str:
    """The question as it stands between the prompt's two parts."""
    return around(doc["question"], lmms_eval_specific_kwargs)


def capitalised(doc: Mapping[str, Any], lmms_eval_specific_kwargs: Mapping[str, str]) -> str:
    """The question with a capital first letter and small ones after it, between the prompt's two parts."""
    return around(doc["question"].capitalize(), lmms_eval_specific_kwargs)


def around(question: str, prompt: Mapping[str, str]) -> str:
    """The question between the prompt's two parts."""
    return f"{prompt['pre_prompt']}{question}{prompt['post_prompt']}"
