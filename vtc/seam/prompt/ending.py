"""Where prompts end, as far as somebody tells: `vtc.prompt_length`, `generate`, or the labels of training.

What stands behind a prompt (drafts, tokens that were generated before, an answer whose likelihood is asked for) has no
part in what a method decides.
"""

import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from vtc.calls.generate import inputs_given
from vtc.model.layout import Layout
from vtc.tower.prompt import Prompt

#: The label of a token that no loss is asked of.
IGNORED = -100


class PromptEnding(threading.local):
    """What is known in this thread of where prompts end."""

    def __init__(self) -> None:
        self._told: list[list[int]] = []
        self._generating: list[int | None] = []
        self._warned = False

    # ---------------------------------------------------------------- who tells

    @contextmanager
    def told(self, length: object) -> Iterator[None]:
        """While open, prompts are of this length; see `vtc.prompt_length`."""
        self._told.append(_lengths(length))
        try:
            yield
        finally:
            self._told.pop()

    def begin(self, args: tuple, kwargs: dict[str, Any]) -> None:
        """Called when `generate` begins."""
        self._generating.append(None)

    def see_inputs(self, output: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        """Called with what `generate` found to be its prompt."""
        given = inputs_given(output)
        if given is not None and self._generating:
            self._generating[-1] = given.shape[1]

    def end(self) -> None:
        """Called when `generate` has ended, also when it failed."""
        self._generating.pop()

    # ---------------------------------------------------------------- what they told

    def of(self, prompt: Prompt, layout: Layout, past: int) -> list[int] | None:
        """How many of the tokens of a call, padding among them, are the prompt.

        Args:
            prompt: what was seen of the call.
            layout: its images.
            past: tokens before the call.

        Returns:
            One for each row; None where nobody tells, or nothing stands behind any.

        Raises:
            ValueError: other rows than the call has, or a prompt that ends in front of a visual token.
            RuntimeError: `generate` runs, and its prompt was not seen.
        """
        batch, length = layout.shape
        if self._told:
            ends = [end - past for end in (self._told[-1] * batch if len(self._told[-1]) == 1 else self._told[-1])]
            self._check(ends, layout, past)
        elif self._generating:
            if (end := self._generating[-1]) is None:
                raise RuntimeError(
                    "vtc: generate runs, and where its prompt ends was not seen, so drafts could not be told from it; "
                    "run `vtc doctor`, or tell it by vtc.prompt_length(model, length)"
                )
            ends = [end - past] * batch
        elif prompt.labels is not None:
            ends = self._labelled(prompt.early.read(prompt.labels), layout)
        else:
            return None
        ends = [min(end, length) for end in ends]
        return None if min(ends) == length else ends

    def _check(self, ends: list[int], layout: Layout, past: int) -> None:
        if len(ends) != layout.shape[0]:
            raise ValueError(
                f"vtc.prompt_length was given {len(ends)} lengths for {layout.shape[0]} rows; give one for each, or "
                "one for all rows"
            )
        for image in layout.images:
            if ends[image.row] <= (last := int(image.positions[-1])):
                raise ValueError(
                    f"vtc.prompt_length says that the prompt of row {image.row} has {ends[image.row] + past} tokens, "
                    f"and token {last + past} is a visual one; count padding and visual tokens, as input_ids has them"
                )

    def _labelled(self, labels: Tensor, layout: Layout) -> list[int]:
        """Prompts end in front of the first label; in rows where that stands before a picture, at the row's end.

        Raises:
            ValueError: there is not one label for each token.
        """
        length = layout.shape[1]
        if tuple(labels.shape) != tuple(layout.shape):
            raise ValueError(
                f"labels of shape {tuple(labels.shape)} for tokens of shape {tuple(layout.shape)} don't tell where the "
                "prompt ends; give one for each token, or tell it by vtc.prompt_length(model, length)"
            )
        wanted = labels != IGNORED
        first = torch.where(wanted.any(dim=1), wanted.to(torch.uint8).argmax(dim=1), length).tolist()
        for image in layout.images:
            if first[image.row] <= int(image.positions[-1]):
                first[image.row] = length
                self._warn(image.row)
        return first

    def _warn(self, row: int) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"vtc: labels of row {row} begin in front of a visual token, so they don't tell where its prompt ends, "
                f"and its last token ranks the visual ones; set those of the prompt to {IGNORED}, or tell it by "
                "vtc.prompt_length(model, length)",
                UserWarning,
                stacklevel=2,
            )


def _lengths(length: object) -> list[int]:
    """What `vtc.prompt_length` was given, as a list.

    Raises:
        TypeError, ValueError: it is no length.
    """
    way_out = "give the number of tokens of the prompt, padding among them, such as prompt_ids.shape[1], or one a row"
    given: Any = length.tolist() if isinstance(length, Tensor) else length
    lengths: Sequence[Any] = given if isinstance(given, list | tuple) else [given]
    if not all(type(one) is int for one in lengths):
        raise TypeError(f"length={length!r} holds something that is no whole number; {way_out}")
    if not lengths or min(lengths) < 1:
        raise ValueError(f"length={length!r} is no length of a prompt; {way_out}")
    return list(lengths)
