"""Questions with their answers, as `transformers.Trainer` and `trl.SFTTrainer` take them."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from vtc.eval.models import Loaded
from vtc.eval.tasks.task import Question, Task


class Answered(Dataset):
    """The questions of a task, each made when it is looked at.

    Args:
        task: the questions; one has a single picture.
    """

    def __init__(self, task: Task):
        self.task = task

    def __len__(self) -> int:
        return self.task.size

    def __getitem__(self, index: int) -> Question:
        return self.task.get(index)


class Collator:
    """Makes a batch of questions, padded on the left; labels are -100 but for the answer's tokens and the end token.

    Args:
        loaded: the model's processor is asked.
    """

    def __init__(self, loaded: Loaded):
        self.loaded = loaded

    def __call__(self, questions: Sequence[Question]) -> dict[str, Any]:
        """The model's inputs, `labels` among them, a LongTensor [B, L]."""
        processor = self.loaded.processor
        answers = [f" {question.answer}{processor.tokenizer.eos_token}" for question in questions]
        texts = [self.loaded.prompt(question.text) + answer for question, answer in zip(questions, answers)]
        images = [list(question.shown()) for question in questions]
        inputs = processor(images=images, text=texts, padding=True, return_tensors="pt")
        labels = torch.full_like(inputs["input_ids"], -100)
        for row, answer in enumerate(answers):
            length = len(processor.tokenizer(answer, add_special_tokens=False)["input_ids"])
            labels[row, -length:] = inputs["input_ids"][row, -length:]
        return {**inputs, "labels": labels}


def beginning(processor: Any) -> Any:
    """A copy whose chat template writes the token that begins a text: trl lets the tokenizer add none.

    Without it, the model would learn from texts that begin otherwise than those that it is asked.
    """
    written = copy.copy(processor)
    written.chat_template = processor.tokenizer.bos_token + processor.chat_template
    return written


def conversations(task: Task) -> Any:
    """A `datasets.Dataset` of the questions in trl's form: `images`, and `prompt` and `completion` as messages."""
    from datasets import Dataset as Table

    rows = []
    for question in map(task.get, range(task.size)):
        asked = [{"type": "image"}, {"type": "text", "text": question.text}]
        answered = [{"type": "text", "text": question.answer}]
        rows.append(
            {
                "images": list(question.shown()),
                "prompt": [{"role": "user", "content": asked}],
                "completion": [{"role": "assistant", "content": answered}],
            }
        )
    return Table.from_list(rows)
