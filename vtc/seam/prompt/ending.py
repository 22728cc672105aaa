"""Where prompts end, as far as somebody tells: `vtc.prompt_length`, `generate`, or the labels of training.

What stands behind a prompt (drafts, tokens that were generated before, an answer whose likelihood is asked for) has no
part in what a method decides.
"""

import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

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

    def knows(self, prompt: Prompt) -> bool:
        """Whether anybody tells where the prompts of a call end."""
        return bool(self._told or self._generating) or prompt.labels is not None

    def of(self, prompt: Prompt, layout: Layout, past: int) -> dict[tuple[int, int], int] | None:
        """The places in a call where prompts end.

        Args:
            prompt: what was seen of the call.
            layout: its images.
            past: tokens before the call.

        Returns:
            (row, sample within it) -> place; None where nobody tells, or nothing stands behind any.

        Raises:
            ValueError: other rows than the call has, or a prompt that ends in front of a visual token.
            RuntimeError: `generate` runs, and its prompt was not seen.
        """
        whole = {owner: layout.end_of(*owner) for owner in layout.owners()}
        if self._told:
            told = dict(zip(whole, [end - past for end in self._for_rows(layout)]))
            _check_pictures(told, layout, past)
        elif self._generating:
            if (end := self._generating[-1]) is None:
                raise RuntimeError(
                    "vtc: generate runs, and where its prompt ends was not seen, so drafts could not be told from it; "
                    "run `vtc doctor`, or tell it by vtc.prompt_length(model, length)"
                )
            told = dict.fromkeys(whole, end - past)
        elif prompt.labels is not None:
            told = self._labelled(prompt.early.read(prompt.labels), layout, whole)
        else:
            return None
        ends = {owner: min(told[owner], end) for owner, end in whole.items()}
        return None if ends == whole else ends

    def _for_rows(self, layout: Layout) -> list[int]:
        """The lengths that were told, one for each row of a call."""
        lengths, batch = self._told[-1], layout.shape[0]
        if layout.samples is not None:
            raise ValueError(
                "vtc.prompt_length tells one prompt in a row, and a row of this call has several samples; give labels, "
                "which tell each, or a row to each sample"
            )
        if len(lengths) not in (1, batch):
            raise ValueError(
                f"vtc.prompt_length was given {len(lengths)} lengths for {batch} rows; give one for each, or one for "
                "all rows"
            )
        return lengths * batch if len(lengths) == 1 else lengths

    def _labelled(
        self, labels: Tensor, layout: Layout, whole: dict[tuple[int, int], int]
    ) -> dict[tuple[int, int], int]:
        """Prompts end in front of the first label; where that stands before a picture, with their row or sample.

        Raises:
            ValueError: there is not one label for each token.
        """
        if tuple(labels.shape) != tuple(layout.shape):
            raise ValueError(
                f"labels of shape {tuple(labels.shape)} for tokens of shape {tuple(layout.shape)} don't tell where the "
                "prompt ends; give one for each token, or tell it by vtc.prompt_length(model, length)"
            )
        ends, begin = {}, 0
        for (row, sample), end in whole.items():
            begin = begin if sample else 0
            wanted = (labels[row, begin:end] != IGNORED).nonzero()
            ends[row, sample] = begin + int(wanted[0]) if len(wanted) else end
            begin = end
        for image in layout.images:
            owner = layout.sample_of(image.row, image.positions)
            if ends[owner] <= int(image.positions[-1]):
                ends[owner] = whole[owner]
                self._warn(image.row)
        return ends

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


def _check_pictures(ends: dict[tuple[int, int], int], layout: Layout, past: int) -> None:
    """Refuse a prompt that ends in front of a visual token.

    Raises:
        ValueError: it does.
    """
    for image in layout.images:
        if ends[image.row, 0] <= (last := int(image.positions[-1])):
            raise ValueError(
                f"vtc.prompt_length says that the prompt of row {image.row} has {ends[image.row, 0] + past} tokens, "
                f"and token {last + past} is a visual one; count padding and visual tokens, as input_ids has them"
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
