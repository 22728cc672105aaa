"""What `generate` calls while it works: after each token, and before it chooses one."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from vtc.demo.jobs.turns import Ticket


class Hearing(BaseStreamer):
    """Tells the answer so far after each token."""

    def __init__(self, processor: Any, heard: Callable[[str], None]):
        self._processor, self._heard = processor, heard
        self._ids: list[int] | None = None

    def put(self, value: Tensor) -> None:
        """Called with the prompt, then with each token."""
        if self._ids is None:  # the prompt
            self._ids = []
            return
        self._ids += value.flatten().tolist()
        self._heard(self._processor.decode(self._ids, skip_special_tokens=True).strip())

    def end(self) -> None:
        """Nothing is held back."""


class Checking(StoppingCriteria):
    """Leaves `generate` by an exception where the work is to end."""

    def __init__(self, ticket: Ticket):
        self._ticket = ticket

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        """Called by `generate` after each token; never stops it otherwise."""
        self._ticket.check()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


class Telling(LogitsProcessor):
    """Makes `generate` say a given answer, and notes how likely each token was."""

    def __init__(self, answer: Tensor):
        self._answer = answer
        self.logarithms: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Called before each token is chosen."""
        token = self._answer[len(self.logarithms)]
        self.logarithms.append(scores[0].float().log_softmax(-1)[token])
        told = torch.full_like(scores, float("-inf"))
        told[:, token] = 0.0
        return told
