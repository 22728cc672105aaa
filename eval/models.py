"""Loading a model with its processor, and talking to it in its own chat template."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging

from vtc.eval.arguments import EMBEDDED
from vtc.eval.benchmarks import BUNDLED
from vtc.eval.errors import InputError
from vtc.eval.video_file import Video
from vtc.registry import adapter_class

Shown = Image.Image | Video | np.ndarray


@dataclass(frozen=True)
class Loaded:
    """A model that is ready to be asked.

    Attributes:
        model: in eval mode.
        processor: of the model; pads on the left.
        decoder: the language model inside, which is what methods make faster.
        tower: the vision tower, where one was found.
    """

    model: Any
    processor: Any
    decoder: Any
    tower: nn.Module | None

    def prompt(self, question: str, kind: str = "image") -> str:
        """The text for the processor: what is shown, then the question, in the model's chat template if it has one."""
        if getattr(self.processor, "chat_template", None):
            content = [{"type": kind}, {"type": "text", "text": question}]
            messages = [{"role": "user", "content": content}]
            return self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return f"{getattr(self.processor, f'{kind}_token', f'<{kind}>')}\n{question}\n"

    def inputs(self, shown: Sequence[Shown], questions: Sequence[str], kind: str = "image") -> dict[str, Any]:
        """What the model takes for a batch of questions, on its device.

        Args:
            shown: pictures, or videos, or their frames alone, uint8 [F, H, W, 3].
            questions: one for each.
            kind: "image" or "video".

        Raises:
            InputError: the model's processor takes no videos.
        """
        texts = [self.prompt(question, kind) for question in questions]
        given = {"images": list(shown)} if kind == "image" else self._videos(shown)
        try:
            made = self.processor(**given, text=texts, padding=True, return_tensors="pt")
        except TypeError as error:
            if kind not in str(error):
                raise
            name = type(self.processor).__name__
            raise InputError(
                f"argument --model: {name} takes no {kind}s ({error}); give a model for {kind}s"
            ) from error
        return dict(made.to(self.model.device, self.model.dtype))

    def _videos(self, shown: Sequence[Any]) -> dict[str, Any]:
        """The processor's arguments for videos: frames that are not to be sampled again, and when they are shown."""
        given: dict[str, Any] = {"videos": [getattr(video, "frames", video) for video in shown]}
        if hasattr(getattr(self.processor, "video_processor", None), "do_sample_frames"):
            given["videos_kwargs"] = {"do_sample_frames": False}
            if all(isinstance(video, Video) and video.times and video.fps for video in shown):
                given["videos_kwargs"]["video_metadata"] = [_metadata(video) for video in shown]
        return given

    def answers(self, sequences: Tensor, inputs: dict[str, Any]) -> list[str]:
        """What `generate` added to the prompts, as text."""
        added = sequences[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in self.processor.batch_decode(added, skip_special_tokens=True)]


def _metadata(video: Video) -> dict[str, Any]:
    """What processors of transformers tell the times of frames by: a frame's number over `fps` is its time."""
    fps = video.fps or 0.0
    numbers = [round(seconds * fps) for seconds in video.times or ()]
    return {"total_num_frames": video.count, "fps": fps, "frames_indices": numbers}


def load(name: str, dtype: str | None, device: str, attn: str | None, kind: str = "image") -> Loaded:
    """Load a model.

    Args:
        name: "embedded" (the bundled model), a `from_pretrained` folder, or a hub id.
        dtype: float type of the weights; None: float32 for the embedded model, else what the folder says.
        device: "cpu", "cuda", "cuda:N".
        attn: attention implementation; None: transformers' choice.
        kind: "image" or "video": which of the bundled models.

    Raises:
        InputError: the model, the device or the attention implementation is not there.
    """
    logging.disable_progress_bar()
    check_device(device)
    chosen = getattr(torch, dtype) if dtype else None
    model: Any
    processor: Any
    try:
        if name == EMBEDDED:
            model, processor = BUNDLED[kind].load(chosen, device, attn)
        else:
            kwargs = {"attn_implementation": attn} if attn else {}
            model = AutoModelForImageTextToText.from_pretrained(name, dtype=chosen or "auto", **kwargs)
            model = model.to(device).eval()
            processor = AutoProcessor.from_pretrained(name)  # type: ignore[no-untyped-call]
        adapter = adapter_class(model)(model)
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).strip().partition("\n")[0]
        attention = f" with --attn {attn}" if attn else ""
        way_out = "give 'embedded' or the folder of a vision-language model of transformers"
        if isinstance(error, ImportError) and "torchvision" in str(error).lower():
            way_out = "pip install torchvision, which its processor needs"
        raise InputError(f"argument --model: {name!r} can't be loaded{attention} ({reason}); {way_out}") from error
    tokenizer = getattr(processor, "tokenizer", processor)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return Loaded(model, processor, adapter.parts.decoder, adapter.tower)


def check_device(device: str) -> None:
    """Refuse a device that torch does not know or have.

    Raises:
        InputError: names it.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"argument --device: {device!r} can't be used ({reason}); give cpu, or cuda where there is one"
        ) from None


def set_threads(name: str, threads: int | None) -> int:
    """Set torch's CPU threads, one by default for the embedded model, which is too small for more; returns them."""
    if threads is None and name == EMBEDDED:
        threads = 1
    if threads is not None:
        torch.set_num_threads(threads)
    return torch.get_num_threads()


def weights_hash(name: str, kind: str = "image") -> str:
    """What tells the weights behind a model name apart: SHA-256 of the folder's files, or the name of a hub id."""
    folder = BUNDLED[kind].path() if name == EMBEDDED else Path(name)
    if not folder.is_dir():
        return name
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.suffix in (".safetensors", ".bin", ".json", ".jinja", ".model") and file.name != "gates.json":
            digest.update(file.name.encode())
            with file.open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
    return f"sha256:{digest.hexdigest()}"
