"""Measures the packaged model against the gates for shipping: `python -m vtc.eval.embedded.gates --n 2700`.

A group passes if the model stands at least 25 points above itself shown a blank (mid-grey) image. The whole passes
at 85 % or more over at least 2,000 held-out questions, with every group passing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from vtc.cuda import outputs
from vtc.eval import embedded

from . import Sample, prompt
from .scenes import SIZE

OVERALL, MARGIN, ENOUGH = 0.85, 0.25, 2000


def wilson(right: int, asked: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    z, p = 1.959964, right / asked
    middle, spread = p + z * z / (2 * asked), z * ((p * (1 - p) + z * z / (4 * asked)) / asked) ** 0.5
    return (middle - spread) / (1 + z * z / asked), (middle + spread) / (1 + z * z / asked)


def answer(model, processor, samples: Sequence[Sample], blank: bool = False) -> list[str]:
    """Greedy answers of the model to one batch of questions.

    Args:
        model: From `load`.
        processor: From `load`.
        samples: The batch.
        blank: Show a mid-grey image instead of each picture.
    """
    grey = Image.new("RGB", (SIZE, SIZE), (128, 128, 128))
    images = [grey if blank else sample.image for sample in samples]
    texts = [prompt(processor, sample.question) for sample in samples]
    inputs = processor(images=images, text=texts, padding=True, return_tensors="pt").to(model.device, model.dtype)
    out = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    return processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def measure(
    n: int,
    batch: int = 32,
    dtype: str = "float32",
    device: str = "cpu",
    split: str = "test",
    package: Any = embedded,
    answer: Callable[..., list[str]] = answer,
) -> dict:
    """Accuracy per group and overall, with intervals and the blind baseline, and whether the gates are passed.

    Args:
        n: Questions, at least one of each group.
        batch: Questions at once.
        dtype: Float type of the weights, a name in torch.
        device: Where the model runs.
        split: Of the benchmark.
        package: Has `load`, `benchmark`, `is_correct` and `GROUPS`.
        answer: Asks the model one batch, as `answer` here does.

    Raises:
        ValueError: Too few questions, or a batch without any.
    """
    import torch

    groups = package.GROUPS
    for name, value, least in (("n", n, len(groups)), ("batch", batch, 1)):
        if value < least:
            raise ValueError(f"{name}={value} must be at least {least}")
    model, processor = package.load(getattr(torch, dtype), device)
    right = {(g, blank): 0 for g in groups for blank in (False, True)}
    asked = dict.fromkeys(groups, 0)
    questions = package.benchmark(n, split)
    for start in range(0, n, batch):
        samples = questions[start : start + batch]
        for sample in samples:
            asked[sample.group] += 1
        for blank in (False, True):
            for sample, said in zip(samples, answer(model, processor, samples, blank), strict=True):
                right[sample.group, blank] += package.is_correct(said, sample)
        print(f"\r{min(start + batch, n)}/{n}", end="", flush=True)
    print()
    rows = {g: _row(right[g, False], right[g, True], asked[g]) for g in groups if asked[g]}
    overall = _row(sum(right[g, False] for g in groups), sum(right[g, True] for g in groups), n)
    passed = overall["accuracy"] >= OVERALL and n >= ENOUGH and all(r["above_blind"] >= MARGIN for r in rows.values())
    return {"split": split, "questions": n, "dtype": dtype, "overall": overall, "groups": rows, "passed": passed}


def _row(right: int, blind: int, asked: int) -> dict:
    low, high = wilson(right, asked)
    return {
        "questions": asked,
        "accuracy": round(right / asked, 4),
        "interval_95": [round(low, 4), round(high, 4)],
        "blind": round(blind / asked, 4),
        "above_blind": round((right - blind) / asked, 4),
    }


def table(result: dict) -> str:
    """The result as a Markdown table."""
    lines = ["| group | questions | accuracy | 95 % interval | blank image |", "|---|---|---|---|---|"]
    for name, row in [*result["groups"].items(), ("**overall**", result["overall"])]:
        low, high = (f"{100 * v:.1f}" for v in row["interval_95"])
        accuracy, blind = 100 * row["accuracy"], 100 * row["blind"]
        lines.append(f"| {name} | {row['questions']} | {accuracy:.1f} | {low} – {high} | {blind:.1f} |")
    return "\n".join(lines)


def main(package: Any = embedded, answer: Callable[..., list[str]] = answer) -> None:
    """Measures, prints the table and writes `gates.json`; `package` and `answer` as in `measure`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=2700, help="questions")
    parser.add_argument("--batch", type=int, default=32, help="questions at once")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument("--output", type=Path, default=package.path() / "gates.json")
    args = parser.parse_args()
    result = measure(args.n, args.batch, args.dtype, args.device, args.split, package, answer)
    result["command"] = f"python -m {package.__name__}.gates --n {args.n} --dtype {args.dtype} --split {args.split}"
    temporary = args.output.with_suffix(".tmp")
    temporary.write_text(json.dumps(result, indent=2) + "\n")
    os.replace(temporary, args.output)
    print(table(result))
    print("gates:", "passed" if result["passed"] else "not passed")


if __name__ == "__main__":
    sys.exit(outputs.run(main, "python -m vtc.eval.embedded.gates"))
