"""The folder where commands of the pages run, and the names that their Python blocks find there."""

import json
import re
from pathlib import Path
from typing import Any

import torch
from code_blocks import ROOT, document
from PIL import Image
from video_files import ffmpeg

import vtc
from vtc.eval import clips, embedded
from vtc.eval.cli import main

#: The task of its own that a page tells how to write.
TASK = ROOT / "docs" / "extending" / "task.md"


def build(folder: Path) -> None:
    """Make what pages name: `photo.jpg`, `clip.mp4`, what `PLACEHOLDERS` stand for, and a run.

    The folders: `model` (of `save_pretrained`), `pictures` and `clips` (each with questions.jsonl), `my_tasks` (that of
    `docs/extending/task.md`, as `signs` and as `mine`), `my_data`, and `runs/first`.
    """
    folder.mkdir()
    model, processor = embedded.load()
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    samples = embedded.benchmark(2)
    samples[0].image.save(folder / "photo.jpg")
    _film(folder / "clip.mp4")
    for kind, name, files in (("image", "pictures", _pictures(samples)), ("video", "clips", {"0.mp4": "star"})):
        (folder / name).mkdir()
        lines = [{kind: file, "question": "What moves?", "answer": answer} for file, answer in files.items()]
        (folder / name / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for number, sample in enumerate(samples):
        sample.image.save(folder / "pictures" / f"{number}.png")
    (folder / "clips" / "0.mp4").write_bytes((folder / "clip.mp4").read_bytes())
    _task(folder)
    run = [
        "eval",
        "--methods",
        "none,divprune",
        "--keep",
        "0.25",
        "--limit",
        "2",
        "--output",
        str(folder / "runs/first"),
    ]
    assert main(run) == 0


def given() -> dict[str, Any]:
    """The bundled model, a prompt, and the prompt with an answer behind it."""
    model, processor = embedded.load()
    sample = embedded.benchmark(1)[0]
    inputs = processor(images=sample.image, text=embedded.prompt(processor, sample.question), return_tensors="pt")
    answer = processor.tokenizer(sample.answer, return_tensors="pt", add_special_tokens=False).input_ids
    whole = torch.cat([inputs.input_ids, answer], dim=1)
    names = {"vtc": vtc, "model": model, "processor": processor, "sample": sample, "inputs": inputs}
    names |= {"prompt_ids": inputs.input_ids, "prompt_and_answer": whole, "mask": torch.ones_like(whole)}
    return names | {"pixels": inputs.pixel_values}


def _pictures(samples: Any) -> dict[str, str]:
    return {f"{number}.png": sample.answer for number, sample in enumerate(samples)}


def _film(file: Path) -> None:
    """A clip of the benchmark as a video file."""
    frames = clips.benchmark(1)[0].frames
    size = f"{frames.shape[2]}x{frames.shape[1]}"
    source = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", "8", "-i", "-")
    ffmpeg(*source, "-pix_fmt", "yuv420p", file, data=frames.tobytes())


def _task(folder: Path) -> None:
    """The page's task and data for it."""
    blocks = {each.region.lexemes.get("language"): str(each.parsed) for each in document(TASK)}
    (folder / "my_tasks").mkdir()
    (folder / "my_tasks" / "signs.py").write_text(blocks["python"])
    for name in ("signs", "mine"):
        text = re.sub(r"^task: \w+", f"task: {name}", blocks["yaml"], flags=re.M)
        (folder / "my_tasks" / f"{name}.yaml").write_text(text.replace("my_signs", name))
        data = folder / "my_data" / name
        data.mkdir(parents=True)
        Image.new("RGB", (60, 40), "white").save(data / "0.png")
        row = {"image": "0.png", "question": "What does the sign say?", "answer": "stop", "country": "none"}
        (data / "test.jsonl").write_text(json.dumps(row) + "\n")
