"""Running examples as a reader does, and what the compressed model answers when asked by itself."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import vtc
from vtc.eval import embedded

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def run(name: str, **environment: str) -> list[str]:
    """What a script prints, line by line."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / name],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment},
        capture_output=True,
        text=True,
        cwd=EXAMPLES.parent,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout.splitlines()


@functools.cache
def right(spec: str, questions: int) -> int:
    """Of the first questions of the bundled benchmark, how many are answered rightly; each is asked by itself."""
    model, processor = embedded.load()
    found = 0
    with vtc.patched(model, spec):
        for sample in embedded.benchmark(questions):
            text = embedded.prompt(processor, sample.question)
            inputs = processor(images=sample.image, text=text, return_tensors="pt")
            made = model.generate(**inputs, max_new_tokens=4, do_sample=False)
            said = processor.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            found += embedded.is_correct(said, sample)
    return found
