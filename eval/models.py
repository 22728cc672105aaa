"""Loading a model with its processor, and talking to it in its own chat template."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging

import vtc
from vtc.calls.attention import implementation
from vtc.eval import clips
from vtc.eval.cli.arguments import EMBEDDED
from vtc.eval.cli.errors import InputError
from vtc.eval.cli.machine import check_device
from vtc.eval.media.video import Video
from vtc.eval.tasks.benchmarks import BUNDLED
from vtc.eval.tasks.task import Shown
from vtc.model.adapter import adapter_class


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

    def prompt(self, question: str, kinds: Sequence[str] = ("image",)) -> str:
        """The text for the processor: what is shown, then the question, in the model's chat template if it has one.

        Args:
            question: what is asked.
            kinds: "image" or "video" for each that is shown.
        """
        if getattr(self.processor, "chat_template", None):
            content = [*({"type": kind} for kind in kinds), {"type": "text", "text": question}]
            messages = [{"role": "user", "content": content}]
            return self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        tokens = [getattr(self.processor, f"{kind}_token", f"<{kind}>") for kind in kinds]
        return "".join(f"{token}\n" for token in tokens) + f"{question}\n"

    def inputs(self, shown: Sequence[Sequence[Shown]], questions: Sequence[str]) -> dict[str, Any]:
        """What the model takes for a batch of questions, on its device.

        Args:
            shown: what each question is about, in the order in which it stands in front of it: pictures, or videos, or
                their frames alone, uint8 [F, H, W, 3]; it may be nothing.
            questions: one for each.

        Raises:
            InputError: the model's processor takes no videos, or no pictures.
        """
        texts = [self.prompt(question, [_kind(each) for each in some]) for question, some in zip(questions, shown)]
        images = [[each for each in some if _kind(each) == "image"] for some in shown]
        videos = [each for some in shown for each in some if _kind(each) == "video"]
        given = self._videos(videos) if videos else {}
        if any(images):
            given["images"] = images  # nested, for some processors want to know which question they belong to
        try:
            made = self.processor(**given, text=texts, padding=True, return_tensors="pt")
        except TypeError as error:
            kind = next((kind for kind in ("image", "video") if f"{kind}s" in given and kind in str(error)), None)
            if kind is None:
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

    def facts(self) -> dict[str, Any]:
        """What was really loaded: what no argument tells."""
        model, pictures = self.model, getattr(self.processor, "image_processor", None)
        return {
            "class": type(model).__name__,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "dtype": str(model.dtype).removeprefix("torch."),
            "attn_implementation": implementation(model.config),
            "devices": sorted({str(parameter.device) for parameter in model.parameters()}),
            "picture_size": _plain(getattr(pictures, "size", None)),
        }

    def answers(self, sequences: Tensor, inputs: dict[str, Any]) -> list[str]:
        """What `generate` added to the prompts, as text."""
        added = sequences[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in self.processor.batch_decode(added, skip_special_tokens=True)]


def _kind(shown: Shown) -> str:
    return "image" if isinstance(shown, Image.Image) else "video"


def _plain(size: Any) -> Any:
    """The size that an image processor gives pictures, as JSON knows it."""
    return {name: value for name, value in dict(size).items() if value is not None} if size else None


def _metadata(video: Video) -> dict[str, Any]:
    """What processors of transformers tell the times of frames by: a frame's number over `fps` is its time."""
    fps = video.fps or 0.0
    numbers = [round(seconds * fps) for seconds in video.times or ()]
    return {"total_num_frames": video.count, "fps": fps, "frames_indices": numbers}


def load(
    name: str,
    dtype: str | None,
    device: str,
    attn: str | None,
    kind: str = "image",
    device_map: str | None = None,
    pixels: Mapping[str, int] | None = None,
    frames: int = clips.FRAMES,
) -> Loaded:
    """Load a model.

    Args:
        name: "embedded" (the bundled model), a `from_pretrained` folder, or a hub id.
        dtype: float type of the weights; None: float32 for the embedded model, else what the folder says.
        device: "cpu", "cuda", "cuda:N".
        attn: attention implementation; None: transformers' choice.
        kind: "image" or "video": which of the bundled models.
        device_map: "auto" and the like: several devices share the model, and `device` is not looked at.
        pixels: "min_pixels" and "max_pixels" of a picture, for processors that know them, as Qwen-VL's.
        frames: of videos that the bundled model will be shown.

    Raises:
        InputError: the model, the device or the attention implementation is not there, or the processor knows no
            number of pixels.
    """
    logging.disable_progress_bar()
    check_device(device)
    chosen = getattr(torch, dtype) if dtype else None
    model: Any
    processor: Any
    try:
        if name == EMBEDDED:
            length = {"frames": frames} if kind == "video" else {}
            model, processor = BUNDLED[kind].load(chosen, device, attn, **length)
        else:
            kwargs: dict[str, Any] = {"attn_implementation": attn} if attn else {}
            kwargs |= {"device_map": device_map} if device_map else {}
            processor = AutoProcessor.from_pretrained(name)  # type: ignore[no-untyped-call]
            model = AutoModelForImageTextToText.from_pretrained(name, dtype=chosen or "auto", **kwargs)
            model = (model if device_map else model.to(device)).eval()
        _set_pixels(processor, pixels or {})
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


def _set_pixels(processor: Any, pixels: Mapping[str, int]) -> None:
    """Set the least and the most pixels of a picture, and of a frame where they are counted alike.

    Raises:
        InputError: the processor's pictures have a fixed size, or the least is more than the most.
    """
    makers: list[Any] = [getattr(processor, name, None) for name in ("image_processor", "video_processor")]
    knowing = [maker for maker in makers if "max_pixels" in _keywords(maker)]
    for name, value in pixels.items():
        if makers[0] not in knowing:
            raise InputError(
                f"argument --{name.replace('_', '-')}: {value} can't be set, {type(makers[0]).__name__} gives all "
                "pictures one size; leave it out"
            )
        for maker in knowing:
            maker.size = {
                **dict(maker.size),
                {"min_pixels": "shortest_edge", "max_pixels": "longest_edge"}[name]: value,
            }
    for maker in knowing if pixels else ():
        if maker.size["shortest_edge"] > maker.size["longest_edge"]:
            raise InputError(
                f"arguments --min-pixels, --max-pixels: at least {maker.size['shortest_edge']} and at most "
                f"{maker.size['longest_edge']} pixels of a picture leave none; give a greater --max-pixels"
            )


def _keywords(maker: Any) -> Any:
    return getattr(getattr(maker, "valid_kwargs", None), "__annotations__", ())


def versions() -> dict[str, str]:
    """Of what computes the numbers; part of what tells one run from another."""
    return {"vtc": vtc.__version__, "torch": torch.__version__, "transformers": transformers.__version__}


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
