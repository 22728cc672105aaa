"""The tasks that need no YAML: the bundled benchmarks, of pictures and of clips, and lists of one's own files."""

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

from vtc.eval import clips, embedded
from vtc.eval.cli.errors import InputError
from vtc.eval.embedded.sample import normalise
from vtc.eval.media.images import open_image, open_repeated
from vtc.eval.tasks.task import Question, Scored, Task

LIST_NAME = "questions.jsonl"

#: What --tasks may name -> what is shown.
TASKS = {"images": "image", "video": "video"}
#: What is shown -> the package of the bundled benchmark and its model.
BUNDLED: dict[str, Any] = {"image": embedded, "video": clips}


def exact_match(answer: str, prediction: str) -> Scored:
    """Right where the prediction equals the answer but for case and punctuation."""
    right = float(normalise(prediction) == normalise(answer))
    return Scored({"exact_match": right}, right, parsed=bool(prediction.strip()))


def bundled_task(kind: str, limit: int, split: str, seed: int, frames: int = clips.FRAMES) -> Task:
    """The first `limit` questions of the bundled benchmark of pictures ("image"), or of clips ("video") of `frames`."""
    package = BUNDLED[kind]
    length = {"frames": frames} if kind == "video" else {}
    samples = package.benchmark(limit, split, seed, **length)

    def get(index: int) -> Question:
        sample = samples[index]
        shown = sample.image if kind == "image" else sample.frames
        score = functools.partial(exact_match, sample.answer)
        return Question(sample.id, sample.group, sample.question, sample.answer, lambda: [shown], score)

    name = next(name for name, shows in TASKS.items() if shows == kind)
    title = f"{package.__name__.rpartition('.')[2]}/{split}"
    title += f", {frames} frames" if kind == "video" and frames != clips.FRAMES else ""
    return Task(name, title, limit, get, kind=kind)


def example(name: str) -> tuple[str, Question]:
    """A question of the bundled benchmarks: "images/5" or "video/0", numbered from 0; and what it shows.

    Raises:
        InputError: there is no such question.
    """
    task, _, number = name.partition("/")
    if task not in TASKS or not number.isdecimal() or len(number) > 4:
        raise InputError(f"example {name!r} does not exist; give e.g. images/5 or video/0")
    return TASKS[task], bundled_task(TASKS[task], int(number) + 1, "test", 0).get(int(number))


def listed_task(path: Path, limit: int, kind: str = "image", frames: int = 8) -> Task:
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
    return Task(f"{kind}s", name, len(questions), questions.__getitem__, kind=kind)


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
    answer, score = entry["answer"], functools.partial(exact_match, entry["answer"])
    read = (lambda: [open_image(shown)]) if kind == "image" else (lambda: [open_repeated(shown, frames)])
    return Question(name, group, entry["question"], answer, read, score)
