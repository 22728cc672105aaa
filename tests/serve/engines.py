"""Engines of vLLM in this process, what they are asked, and what transformers answers under `vtc.patch`."""

import functools
import gc
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.update(  # of which an engine's own processes are given others
    {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        **{name: value for name, value in os.environ.items() if name.startswith("VLLM_")},
    }
)

import checkpoints
import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.video_utils import VideoMetadata

import vtc

NEW = 8


@functools.cache
def folder(name: str) -> Path:
    """The family's checkpoint."""
    return checkpoints.save(name, Path(tempfile.mkdtemp(prefix="vtc-serve-")) / name)


@functools.cache
def model(name: str) -> Any:
    return AutoModelForImageTextToText.from_pretrained(folder(name), dtype=torch.float32).eval()


@functools.cache
def processor(name: str) -> Any:
    return AutoProcessor.from_pretrained(folder(name))


# ---------------------------------------------------------------- what is asked


@dataclass(frozen=True)
class Shown:
    """A picture or video of noise.

    Attributes:
        kind: "image" or "video".
        seed: of the noise.
        height, width: in pixels.
        frames: of a video.
    """

    kind: str
    seed: int
    height: int
    width: int
    frames: int = 1

    @property
    def pixels(self) -> np.ndarray:
        shape = (self.frames, self.height, self.width, 3) if self.kind == "video" else (self.height, self.width, 3)
        return np.random.default_rng(self.seed).integers(0, 255, shape, dtype=np.uint8)

    @property
    def value(self) -> Any:
        return Image.fromarray(self.pixels) if self.kind == "image" else self.pixels


@dataclass(frozen=True)
class Ask:
    """One request.

    Attributes:
        parts: text, pictures and videos, in order.
        keep: the request's own budget; None: the engine's.
        uuids: names of the pictures in place of their hashes.
    """

    parts: tuple[str | Shown, ...]
    keep: float | int | None = None
    uuids: tuple[str, ...] = ()

    @property
    def shown(self) -> list[Shown]:
        return [part for part in self.parts if isinstance(part, Shown)]

    def of(self, kind: str) -> list[Shown]:
        return [part for part in self.shown if part.kind == kind]

    def text(self, name: str) -> str:
        content = [
            {"type": "text", "text": part} if isinstance(part, str) else {"type": part.kind} for part in self.parts
        ]
        return processor(name).apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


def picture(seed: int, height: int = 112, width: int = 112) -> Shown:
    return Shown("image", seed, height, width)


def video(seed: int, frames: int = 4, height: int = 160, width: int = 128) -> Shown:
    """So high that its grid reaches as far as its time: behind others transformers puts text elsewhere than vLLM."""
    return Shown("video", seed, height, width, frames)


def metadata(shown: Shown) -> dict[str, Any]:
    frames = shown.frames
    return {"fps": 2.0, "duration": frames / 2, "total_num_frames": frames, "frames_indices": list(range(frames))}


# ---------------------------------------------------------------- what is right


@functools.cache
def right(name: str, ask: Ask, spec: str | None, new: int = NEW) -> tuple[int, ...]:
    """The tokens that transformers generates for a request, compressed by `vtc.patch` under a spec."""
    inputs = encoded(name, ask)
    if spec is None:
        made = model(name).generate(**inputs, max_new_tokens=new, min_new_tokens=new, do_sample=False)
    else:
        with vtc.patched(model(name), spec):
            made = model(name).generate(**inputs, max_new_tokens=new, min_new_tokens=new, do_sample=False)
    return tuple(made[0, inputs["input_ids"].shape[1] :].tolist())


def encoded(name: str, ask: Ask) -> Any:
    """What transformers' processor makes of a request."""
    more: dict[str, Any] = {}
    if images := ask.of("image"):
        more["images"] = [each.value for each in images]
    if videos := ask.of("video"):
        more["videos"] = [each.value for each in videos]
        if "qwen" in name:
            more["video_metadata"] = [VideoMetadata(**metadata(each)) for each in videos]
            more["do_sample_frames"] = False
    return processor(name)(text=[ask.text(name)], return_tensors="pt", **more)


def kept_tokens(name: str, ask: Ask, spec: str) -> tuple[int, int]:
    """(tokens of the prompt, visual tokens that are removed), as the suite's own trace tells."""
    inputs = encoded(name, ask)
    with vtc.patched(model(name), spec), torch.no_grad():
        model(name)(**inputs)
        trace = vtc.trace(model(name))
    before, after = int(trace.original_tokens.sum()), int(trace.tokens_per_layer[0].sum())
    return inputs["input_ids"].shape[1], before - after


# ---------------------------------------------------------------- the engine


@dataclass
class Engine:
    """A running one.

    Attributes:
        name: of the family.
        llm: vLLM's.
    """

    name: str
    llm: Any
    answers: list[Any] = field(default_factory=list)

    def ask(self, asks: Sequence[Ask], new: int = NEW) -> list[tuple[int, ...]]:
        """Send requests at once.

        Returns:
            The tokens of each; `answers` has vLLM's outputs.
        """
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=new, min_tokens=new, temperature=0, ignore_eos=True)
        self.answers = self.llm.generate([self._prompt(ask) for ask in asks], params, use_tqdm=False)
        return [tuple(answer.outputs[0].token_ids) for answer in self.answers]

    def _prompt(self, ask: Ask) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for kind in ("image", "video"):
            values = [each.value for each in ask.of(kind)]
            if kind == "video" and "qwen" in self.name:
                told = {"video_backend": "opencv", "do_sample_frames": False}
                values = [(each.pixels, {**metadata(each), **told}) for each in ask.of(kind)]
            if values:
                data[kind] = values
        prompt: dict[str, Any] = {"prompt": ask.text(self.name), "multi_modal_data": data}
        if ask.keep is not None:
            prompt["mm_processor_kwargs"] = {"vtc_keep": ask.keep}
        if ask.uuids:
            prompt["multi_modal_uuids"] = {"image": list(ask.uuids)}
        return prompt

    @property
    def cached(self) -> list[int]:
        """Of each answer, the tokens of its prompt that the prefix cache had."""
        return [answer.num_cached_tokens for answer in self.answers]

    @property
    def prompts(self) -> list[list[int]]:
        """The ids of each answer's prompt."""
        return [list(answer.prompt_token_ids) for answer in self.answers]

    @property
    def runner(self) -> Any:
        """The engine's model runner."""
        return self.llm.llm_engine.model_executor.driver_worker.worker.model_runner

    def counter(self, name: str) -> float:
        """One of vLLM's own counters."""
        return sum(metric.value for metric in self.llm.get_metrics() if metric.name == name)


@contextmanager
def engine(name: str, spec: str | None = None, **options: Any) -> Iterator[Engine]:
    """An engine for a family, closed afterwards.

    Args:
        name: of the family.
        spec: for `hf_overrides`; None: vLLM as it is.
        **options: of `vllm.LLM`.
    """
    from vllm import LLM

    kinds = {"image": 3, "video": 2} if name in VIDEO_FAMILIES else {"image": 3}
    defaults = {
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 1024,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 1024,
        "block_size": 32,  # so that short prompts show a hit of the prefix cache
        "num_gpu_blocks_override": 256,
        "disable_log_stats": False,
        "limit_mm_per_prompt": kinds,
    }
    overrides = {} if spec is None else {"hf_overrides": {"vtc": spec}}
    gc.freeze()  # the engine collects garbage many times, through all that was imported, and would let go of this
    gc.unfreeze = lambda: None  # type: ignore[assignment]
    llm = LLM(**{"model": str(folder(name)), **defaults, **overrides, **options})
    try:
        yield Engine(name, llm)
    finally:
        llm.llm_engine.engine_core.shutdown()


FAMILIES = tuple(checkpoints.FAMILIES)
MROPE = tuple(name for name in FAMILIES if name.startswith("qwen"))
VIDEO_FAMILIES = ("llava_onevision", *MROPE, "internvl")


def known_classes() -> None:
    """Let the registry look at classes in this process: by itself it starts a process for each, ten seconds long."""
    from vllm import ModelRegistry
    from vllm.model_executor.models.registry import _RegisteredModel
    from vllm.plugins import load_general_plugins

    from vtc.serve.architectures import ARCHITECTURES, PREFIX, pruned, stock

    load_general_plugins()
    for architecture in ARCHITECTURES:
        ModelRegistry.models[architecture] = _RegisteredModel.from_model_cls(stock(architecture))
        ModelRegistry.models[PREFIX + architecture] = _RegisteredModel.from_model_cls(pruned(architecture))
