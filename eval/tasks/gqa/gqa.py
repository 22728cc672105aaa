"""GQA (arXiv 1902.09506): the pictures, which the data set keeps apart from the questions."""

from collections.abc import Mapping
from typing import Any

from vtc.eval.tasks.shared import picture


def doc_to_visual(doc: Mapping[str, Any]) -> list[Any]:
    """The row's own picture, or the path of the file named after its `imageId`."""
    return picture.doc_to_visual(doc) if "image" in doc else [f"{doc['imageId']}.jpg"]
