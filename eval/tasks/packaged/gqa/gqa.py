"""GQA (arXiv 1902.09506): the pictures, which the data set keeps apart from the questions."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vtc.eval.tasks.packaged.shared import picture

if TYPE_CHECKING:
    from datasets import Dataset

HUB = "lmms-lab-encoder/GQA"
QUESTIONS, PICTURES = "testdev_balanced_instructions", "testdev_balanced_images"


def process_docs(docs: "Dataset") -> "Dataset":
    """Rows from the hub with their pictures, which are a configuration of their own there; local rows as they are."""
    if docs.info.config_name != QUESTIONS:
        return docs
    from datasets import concatenate_datasets, load_dataset

    pictures = load_dataset(HUB, PICTURES, split="testdev")
    row = {name: number for number, name in enumerate(pictures["id"])}
    shown = pictures.select([row[name] for name in docs["imageId"]]).select_columns("image")
    return concatenate_datasets([docs, shown], axis=1)


def doc_to_visual(doc: Mapping[str, Any]) -> list[Any]:
    """The row's own picture, or else the path of the file that its `imageId` names, as GQA's archive has them."""
    return picture.doc_to_visual(doc) if "image" in doc else [f"{doc['imageId']}.jpg"]
