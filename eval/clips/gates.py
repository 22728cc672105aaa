"""Measures the packaged clip model against the gates for shipping: `python -m vtc.eval.clips.gates --n 2700`.

The gates are those of `vtc.eval.embedded.gates`; blank is a grey clip.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np

from vtc.cuda import outputs
from vtc.eval import clips
from vtc.eval.embedded.gates import main


def answer(model, processor, samples: Sequence[clips.ClipSample], blank: bool = False) -> list[str]:
    """Greedy answers of the model to one batch of questions; `blank`: shown mid-grey frames."""
    shown = [np.full_like(sample.frames, 128) if blank else sample.frames for sample in samples]
    texts = [clips.prompt(processor, sample.question) for sample in samples]
    inputs = processor(videos=shown, text=texts, padding=True).to(model.device, model.dtype)
    out = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    return processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


if __name__ == "__main__":
    sys.exit(outputs.run(lambda: main(clips, answer), "python -m vtc.eval.clips.gates"))
