"""The embedded benchmark: questions about small made-up pictures, and a small LLaVA trained to answer them.

```python
from vtc.eval import embedded

model, processor = embedded.load()
for sample in embedded.benchmark(9):
    inputs = processor(images=sample.image, text=embedded.prompt(processor, sample.question), return_tensors="pt")
    answer = processor.decode(model.generate(**inputs)[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True)
    print(sample.group, sample.question, answer, embedded.is_correct(answer, sample))
```
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .sample import GROUPS, SPLITS, Sample, is_correct

if TYPE_CHECKING:
    import torch
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

__all__ = ["GROUPS", "SPLITS", "Sample", "benchmark", "is_correct", "load", "path", "prompt"]


def path() -> Path:
    """The packaged `from_pretrained` folder."""
    return Path(__file__).parent / "weights"


def load(
    dtype: torch.dtype | str | None = None, device: str | torch.device = "cpu", attn_implementation: str | None = None
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Loads the packaged model, in eval mode, and its processor.

    Args:
        dtype: Float type of the weights (stored as float16); None is float32.
        device: Where the model goes.
        attn_implementation: As in transformers; None is transformers' own choice.
    """
    from transformers import AutoProcessor

    from .model import load_packaged

    return load_packaged(path(), dtype, device, attn_implementation), AutoProcessor.from_pretrained(path())


def prompt(processor: LlavaProcessor, question: str) -> str:
    """The text for the processor: the question in the model's chat template, with one image placeholder."""
    content = [{"type": "image"}, {"type": "text", "text": question}]
    messages: list[dict] = [{"role": "user", "content": content}]
    return processor.apply_chat_template(messages, add_generation_prompt=True)


def benchmark(n: int, split: str = "test", seed: int = 0) -> Sequence[Sample]:
    """The first `n` questions of a split; each is made when it is looked at.

    Question `i` depends on `(split, seed, i)` alone. The groups take turns, so every prefix is balanced.

    Args:
        n: Number of questions, at least 0.
        split: "train", "validation" or "test"; no digit sample, photograph, font or seed is in two of them.
        seed: Another seed gives other questions; not negative.

    Raises:
        ValueError: A number is negative or the split is unknown.
        TypeError: A number is not an int.
    """
    from .samples import Benchmark, make_sample

    return Benchmark(n, split, seed, make_sample)
