"""What turns clips and questions into the clip model's inputs. Needs no torchvision, as transformers' own would."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import BatchFeature, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from vtc.eval.embedded import tokenizer as pictures
from vtc.eval.embedded.scenes import PATCH, SIZE

from .questions import new_words

VIDEO = "<video>"
CHAT_TEMPLATE = pictures.CHAT_TEMPLATE.replace("'image'", "'video'").replace("<image>", VIDEO)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The embedded model's tokenizer, with the words of questions about clips and `<video>` behind its own."""
    tokenizer = pictures.build_tokenizer(new_words(), (VIDEO,))
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


class ClipProcessor:
    """Processor for videos of LLaVA-OneVision: frames through the PIL image processor, placeholders by frame count.

    Args:
        tokenizer: with `<video>` among its tokens.
        image_processor: for single frames.
        tokens_per_frame: visual tokens that a frame makes after pooling.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        image_processor: CLIPImageProcessorPil,
        tokens_per_frame: int = (SIZE // PATCH // 2) ** 2,
    ) -> None:
        self.tokenizer, self.image_processor, self.tokens_per_frame = tokenizer, image_processor, tokens_per_frame

    def __call__(
        self,
        videos: Sequence[np.ndarray] | None = None,
        text: Sequence[str] | str = "",
        padding: bool = False,
        return_tensors: str = "pt",
    ) -> BatchFeature:
        """Inputs of the model.

        Args:
            videos: One array of frames, uint8 [F, H, W, 3], for each `<video>` in the texts, in order; F alike.
            text: One prompt or several.
            padding: Pad to the longest prompt, on the tokenizer's side.
            return_tensors: As in transformers.

        Returns:
            `input_ids`, `attention_mask`, and `pixel_values_videos` [videos, F, 3, 224, 224].

        Raises:
            ValueError: Videos and placeholders don't match, or videos differ in their number of frames.
        """
        texts = [text] if isinstance(text, str) else list(text)
        clips = list(videos or ())
        wanted = sum(one.count(VIDEO) for one in texts)
        if wanted != len(clips):
            raise ValueError(f"videos holds {len(clips)} videos, but text has {wanted} {VIDEO}; give one for each")
        if len({len(clip) for clip in clips}) > 1:
            counts = [len(clip) for clip in clips]
            raise ValueError(f"videos have {counts} frames; the model takes equally many of each in one call")
        frames = iter(clips)
        expanded = []
        for one in texts:
            first, *rest = one.split(VIDEO)
            expanded.append(first + "".join(VIDEO * self._tokens(next(frames)) + part for part in rest))
        inputs = dict(self.tokenizer(expanded, padding=padding, return_tensors=return_tensors))
        inputs.pop("token_type_ids", None)
        if clips:
            pictures_ = self.image_processor(
                [frame for clip in clips for frame in clip], input_data_format="channels_last", return_tensors="pt"
            )
            inputs["pixel_values_videos"] = pictures_["pixel_values"].unflatten(0, (len(clips), -1))
        return BatchFeature(inputs, tensor_type=return_tensors)

    def _tokens(self, clip: np.ndarray) -> int:
        return len(clip) * self.tokens_per_frame + 1  # and a newline behind the last frame

    @property
    def chat_template(self) -> str:
        """The tokenizer's."""
        return self.tokenizer.chat_template

    def apply_chat_template(self, messages: list[dict], tokenize: bool = False, **arguments: Any) -> Any:
        """The prompt of a conversation, as text unless `tokenize` is set."""
        return self.tokenizer.apply_chat_template(messages, tokenize=tokenize, **arguments)

    def decode(self, *arguments: Any, **named: Any) -> Any:
        """As the tokenizer's."""
        return self.tokenizer.decode(*arguments, **named)

    def batch_decode(self, *arguments: Any, **named: Any) -> list[str]:
        """As the tokenizer's."""
        return self.tokenizer.batch_decode(*arguments, **named)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the tokenizer's and the image processor's files."""
        self.tokenizer.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> ClipProcessor:
        """Reads them again."""
        return cls(PreTrainedTokenizerFast.from_pretrained(folder), CLIPImageProcessorPil.from_pretrained(folder))


def build_processor() -> ClipProcessor:
    """A fresh processor."""
    side = {"height": SIZE, "width": SIZE}
    return ClipProcessor(build_tokenizer(), CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size=side))
