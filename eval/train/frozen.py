"""A few numbers that are learned for a model whose own weights stay as they are: what ATP and DiffRate share."""

import argparse
from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import vtc
from vtc.eval.cli.errors import InputError
from vtc.eval.models import Loaded
from vtc.eval.results.folder import CONFIG, RunFolder
from vtc.eval.tasks.task import Question, Task
from vtc.eval.train.loop import Training, cosine

CHECKPOINT = "checkpoint.pt"
HELD_OUT, LONGEST_ANSWER = 270, 256
ASKED_AT_ONCE, ANSWER_TOKENS = 18, 8


class FrozenTraining(Training):
    """What is learned, and how far it is.

    Args:
        name: of the command.
        loaded: the model, in float32.
        learned: by its name in a checkpoint, the module whose parameters are learned.
        optimizer: of these.
        rates: of the first step and of the last, along a cosine between.
        steps: in all.

    Attributes:
        curve: what came out of each step.
        rows: of the comparison on held-out questions, as far as it is.
    """

    def __init__(
        self,
        name: str,
        loaded: Loaded,
        learned: dict[str, nn.Module],
        optimizer: torch.optim.Optimizer,
        rates: tuple[float, float],
        steps: int,
    ):
        super().__init__(name, steps, {**learned, "optimizer": optimizer})
        self.loaded, self.optimizer, self.learning_rates = loaded, optimizer, rates
        self.curve: list[dict[str, float]] = []
        self.rows: list[dict[str, Any]] = []

    @abstractmethod
    def run(self, folder: RunFolder) -> None:
        """Do the steps that are left, write what was learned, compare it, and print what came out."""

    @abstractmethod
    def gradients(self) -> dict[str, Any]:
        """Leave the gradients of a step's batch at the parameters.

        Returns:
            What the curve shows of the step: numbers, or tensors of one.
        """

    def learn(self) -> dict[str, Any]:
        """Do one step."""
        self.optimizer.param_groups[0]["lr"] = cosine(self.step, self.steps, *self.learning_rates)
        self.optimizer.zero_grad()
        numbers = self.gradients()
        self.optimizer.step()
        return numbers

    def note(self, report: dict[str, Any]) -> None:
        """Add the step to the curve."""
        numbers = {name: value.item() if isinstance(value, Tensor) else value for name, value in report.items()}
        self.curve.append({"step": self.step} | {name: round(value, 5) for name, value in numbers.items()})

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return super().state() | {"curve": self.curve, "rows": self.rows}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what a checkpoint holds."""
        super().restore(state)
        self.curve, self.rows = state["curve"], state["rows"]

    def inputs(self, questions: Sequence[Question]) -> dict[str, Any]:
        """What the model takes for questions."""
        return inputs_of(self.loaded, questions)

    def answers(self, questions: Sequence[Question]) -> Tensor:
        """LongTensor [B, A] of the answers' tokens (at most 255) and the end token, padded with -100."""
        tokenizer = self.loaded.processor.tokenizer
        texts = [question.answer for question in questions]
        rows = [tokenizer(text, add_special_tokens=False)["input_ids"][: LONGEST_ANSWER - 1] for text in texts]
        ended = [torch.tensor([*row, tokenizer.eos_token_id]) for row in rows]
        return torch.nn.utils.rnn.pad_sequence(ended, True, -100).to(self.loaded.model.device)


def learn_in_folder(args: argparse.Namespace, config: dict[str, Any], begin: Callable[[], FrozenTraining]) -> None:
    """Learn, or go on learning, in --output.

    Args:
        args: of the command; has `output` and `resume`.
        config: tells this run from others.
        begin: makes the training, before anything is written.

    Raises:
        InputError: the folder is another run's, or --resume has nothing to go on with.
    """
    output: Path = args.output
    RunFolder.check(output, config)
    if args.resume and not (output / CONFIG).exists():
        raise InputError(f"argument --resume: {str(output)!r} holds no run; leave --resume out to begin one")
    training = begin()
    folder = RunFolder.open(output, config)
    try:
        training.run(folder)
    finally:
        folder.close()


def inputs_of(loaded: Loaded, questions: Sequence[Question]) -> dict[str, Any]:
    """What a model takes for questions."""
    return loaded.inputs([question.shown() for question in questions], [question.text for question in questions])


def ask(loaded: Loaded, task: Task, spec: str, costs: Callable[[Any], Sequence[float]]) -> tuple[float, list[float]]:
    """Ask a patched model all questions of a task.

    Args:
        loaded: the model.
        task: the questions.
        spec: what the model is patched with.
        costs: of the `vtc.trace` of a batch, numbers that are summed.

    Returns:
        The share of right answers, and the sums.
    """
    right, sums = 0, None
    with vtc.patched(loaded.model, spec):
        for batch in task.batches(ASKED_AT_ONCE):
            questions = [task.get(index) for index in batch]
            inputs = inputs_of(loaded, questions)
            said = loaded.model.generate(**inputs, max_new_tokens=ANSWER_TOKENS, do_sample=False, num_beams=1)
            answers = loaded.answers(said, inputs)
            right += sum(bool(question.score(answer).correct) for question, answer in zip(questions, answers))
            found = [float(cost) for cost in costs(vtc.trace(loaded.model))]
            sums = found if sums is None else [total + cost for total, cost in zip(sums, found)]
    return right / task.size, sums or []
