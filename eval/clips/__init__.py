"""The clip benchmark: questions about short made-up videos, and a small LLaVA-OneVision trained to answer them.

```python
from vtc.eval import clips

model, processor = clips.load()
for sample in clips.benchmark(6):
    inputs = processor(videos=[sample.frames], text=[clips.prompt(processor, sample.question)])
    answer = processor.decode(model.generate(**inputs)[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True)
    print(sample.group, sample.question, answer, clips.is_correct(answer, sample))
```
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vtc.eval.embedded.sample import SPLITS, is_correct

from .sample import FRAMES, GROUPS, ClipSample

if TYPE_CHECKING:
    import torch
    from transformers import LlavaOnevisionForConditionalGeneration

    from .processor import ClipProcessor

__all__ = ["FRAMES", "GROUPS", "SPLITS", "ClipSample", "benchmark", "is_correct", "load", "path", "prompt"]


def path() -> Path:
    """The packaged folder: weights, config, tokenizer, image processor."""
    return Path(__file__).parent / "weights"


def load(
    dtype: torch.dtype | str | None = None,
    device: str | torch.device = "cpu",
    attn_implementation: str | None = None,
    frames: int = FRAMES,
) -> tuple[LlavaOnevisionForConditionalGeneration, ClipProcessor]:
    """Loads the packaged model, in eval mode, and its processor.

    It was trained on clips of 8 frames. Of longer ones it is told positions in proportion (linear scaling of its rotary
    embedding), so that a clip's last frame stands where the last of 8 would.

    Args:
        dtype: Float type of the weights (stored as float16); None is float32.
        device: Where the model goes.
        attn_implementation: As in transformers; None is transformers' own choice.
        frames: Of the clips that it will be shown.
    """
    from vtc.eval.embedded.model import load_packaged

    from .model import config_for
    from .processor import ClipProcessor

    model = load_packaged(path(), dtype, device, attn_implementation, config_for(path(), frames))
    return model, ClipProcessor.from_pretrained(path())


def prompt(processor: ClipProcessor, question: str) -> str:
    """The text for the processor: the question in the model's chat template, with one video placeholder."""
    content = [{"type": "video"}, {"type": "text", "text": question}]
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


def benchmark(n: int, split: str = "test", seed: int = 0, frames: int = FRAMES) -> Sequence[ClipSample]:
    """The first `n` questions of a split; each is made when it is looked at.

    Question `i` depends on `(split, seed, i)` alone. The groups take turns, so every prefix is balanced.

    Args:
        n: Number of questions, at least 0.
        split: "train", "validation" or "test"; no photograph or random stream is in two of them.
        seed: Another seed gives other questions; not negative.
        frames: Of each clip: the same clips and questions, seen more or less often.

    Raises:
        ValueError: A number is negative or the split is unknown.
        TypeError: A number is not an int.
    """
    from vtc.eval.embedded.samples import Benchmark

    from .samples import make_sample

    return Benchmark(n, split, seed, partial(make_sample, frames=frames))
