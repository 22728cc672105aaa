"""What is asked: the embedded benchmark, or a list of one's own pictures and questions."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from vtc.eval import embedded
from vtc.eval.errors import InputError
from vtc.eval.images import open_image

LIST_NAME = "questions.jsonl"


@dataclass(frozen=True)
class Question:
    """One question about one picture.

    Attributes:
        id: unique within the benchmark.
        group: what it is counted under.
        question, answer: as text; a prediction is right when it equals the answer but for case and punctuation.
        image: opens or draws the picture; raises InputError where its file can't be read.
    """

    id: str
    group: str
    question: str
    answer: str
    image: Callable[[], Image.Image]

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
    """

    name: str
    size: int
    get: Callable[[int], Question]

    def batches(self, size: int) -> list[range]:
        """The indices of each batch of at most `size` questions."""
        return [range(start, min(start + size, self.size)) for start in range(0, self.size, size)]


def embedded_benchmark(limit: int, split: str, seed: int) -> Benchmark:
    """The first `limit` questions of the embedded benchmark."""
    samples = embedded.benchmark(limit, split, seed)

    def get(index: int) -> Question:
        sample = samples[index]
        return Question(sample.id, sample.group, sample.question, sample.answer, lambda: sample.image)

    return Benchmark(f"embedded/{split}", limit, get)


def listed_benchmark(path: Path, limit: int) -> Benchmark:
    """The first `limit` lines of a JSONL file: {"image": path beside the file, "question", "answer", "group"?, "id"?}.

    Args:
        path: the file, or a folder that holds it as `questions.jsonl`.
        limit: at most so many.

    Raises:
        InputError: no such file, or a line that is not such an object. Pictures are opened later, one by one.
    """
    file = path / LIST_NAME if path.is_dir() else path
    if not file.is_file():
        raise InputError(
            f"argument --images: {str(file)!r} does not exist; give a JSONL file or a folder with {LIST_NAME}"
        )
    raw = file.read_bytes()
    lines = [(number, line) for number, line in enumerate(raw.splitlines(), 1) if line.strip()]
    questions = [_question(file, number, line) for number, line in lines[:limit]]
    if not questions:
        raise InputError(f"argument --images: {str(file)!r} holds no question; give at least one line")
    ids = [question.id for question in questions]
    if twice := [each for each in set(ids) if ids.count(each) > 1]:
        raise InputError(f"argument --images: id {twice[0]!r} is given twice in {str(file)!r}; ids must differ")
    return Benchmark(f"sha256:{hashlib.sha256(raw).hexdigest()}", len(questions), questions.__getitem__)


def _question(file: Path, number: int, line: bytes) -> Question:
    where = f"argument --images: line {number} of {str(file)!r}"
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where} is not JSON ({error}); write one object a line") from None
    for key in ("image", "question", "answer"):
        if not isinstance(entry, dict) or not isinstance(entry.get(key), str):
            raise InputError(f'{where} has no text {key!r}; write {{"image": …, "question": …, "answer": …}}')
    picture = file.parent / entry["image"]
    name, group = str(entry.get("id", number)), str(entry.get("group", "all"))
    return Question(name, group, entry["question"], entry["answer"], lambda: open_image(picture))
