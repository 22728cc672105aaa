"""What is asked: a bundled benchmark, of pictures or of clips, or a list of one's own files and questions."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vtc.eval import clips, embedded
from vtc.eval.errors import InputError
from vtc.eval.images import open_image, open_repeated
from vtc.eval.video_file import Video

LIST_NAME = "questions.jsonl"

#: What --tasks may name -> what is shown.
TASKS = {"images": "image", "video": "video"}
#: What is shown -> the package of the bundled benchmark and its model.
BUNDLED: dict[str, Any] = {"image": embedded, "video": clips}


@dataclass(frozen=True)
class Question:
    """One question about one picture or video.

    Attributes:
        id: unique within the benchmark.
        group: what it is counted under.
        question, answer: as text; a prediction is right when it equals the answer but for case and punctuation.
        shown: opens or draws the picture, opens the video, or draws its frames, uint8 [F, H, W, 3]; raises InputError
            where the file can't be read.
    """

    id: str
    group: str
    question: str
    answer: str
    shown: Callable[[], Image.Image | Video | np.ndarray]

    def is_correct(self, prediction: str) -> bool:
        """Whether `prediction` answers the question."""
        return embedded.is_correct(prediction, self)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Benchmark:
    """A list of questions, each made when it is looked at.

    Attributes:
        name: what goes into the fingerprint of a run: it names the very questions.
        size: how many there are.
        get: question number i.
        kind: "image" or "video": what is shown.
    """

    name: str
    size: int
    get: Callable[[int], Question]
    kind: str = "image"

    def batches(self, size: int) -> list[range]:
        """The indices of each batch of at most `size` questions."""
        return [range(start, min(start + size, self.size)) for start in range(0, self.size, size)]


def bundled_benchmark(kind: str, limit: int, split: str, seed: int) -> Benchmark:
    """The first `limit` questions of the bundled benchmark of pictures ("image") or of clips ("video")."""
    package = BUNDLED[kind]
    samples = package.benchmark(limit, split, seed)

    def get(index: int) -> Question:
        sample = samples[index]
        shown = sample.image if kind == "image" else sample.frames
        return Question(sample.id, sample.group, sample.question, sample.answer, lambda: shown)

    return Benchmark(f"{package.__name__.rpartition('.')[2]}/{split}", limit, get, kind)


def listed_benchmark(path: Path, limit: int, kind: str = "image", frames: int = 8) -> Benchmark:
    """The first `limit` lines of a JSONL file: {"image": path beside the file, "question", "answer", "group"?, "id"?}.

    Args:
        path: the file, or a folder that holds it as `questions.jsonl`.
        limit: at most so many.
        kind: "image", or "video", where lines name a "video".
        frames: how many are taken of each video; those of a shorter one are repeated.

    Raises:
        InputError: no such file, or a line that is not such an object. Pictures are opened later, one by one.
    """
    option = f"--{kind}s"
    file = path / LIST_NAME if path.is_dir() else path
    if not file.is_file():
        raise InputError(
            f"argument {option}: {str(file)!r} does not exist; give a JSONL file or a folder with {LIST_NAME}"
        )
    raw = file.read_bytes()
    lines = [(number, line) for number, line in enumerate(raw.splitlines(), 1) if line.strip()]
    questions = [_question(file, number, line, kind, frames) for number, line in lines[:limit]]
    if not questions:
        raise InputError(f"argument {option}: {str(file)!r} holds no question; give at least one line")
    ids = [question.id for question in questions]
    if twice := [each for each in set(ids) if ids.count(each) > 1]:
        raise InputError(f"argument {option}: id {twice[0]!r} is given twice in {str(file)!r}; ids must differ")
    name = f"sha256:{hashlib.sha256(raw).hexdigest()}" + (f", {frames} frames" if kind == "video" else "")
    return Benchmark(name, len(questions), questions.__getitem__, kind)


def _question(file: Path, number: int, line: bytes, kind: str, frames: int) -> Question:
    where = f"argument --{kind}s: line {number} of {str(file)!r}"
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where} is not JSON ({error}); write one object a line") from None
    for key in (kind, "question", "answer"):
        if not isinstance(entry, dict) or not isinstance(entry.get(key), str):
            raise InputError(f'{where} has no text {key!r}; write {{"{kind}": …, "question": …, "answer": …}}')
    shown = file.parent / entry[kind]
    name, group = str(entry.get("id", number)), str(entry.get("group", "all"))
    read = (lambda: open_image(shown)) if kind == "image" else (lambda: open_repeated(shown, frames))
    return Question(name, group, entry["question"], entry["answer"], read)
