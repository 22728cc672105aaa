"""Visual instructions in LLaVA's form: pictures, what a person asks about them, and what is to be answered."""

import functools
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vtc.eval.cli.errors import InputError
from vtc.eval.media.images import open_image
from vtc.eval.tasks.benchmarks import exact_match
from vtc.eval.tasks.task import Question, Task

_FORM = (
    '{"image": "a.png", "conversations": [{"from": "human", "value": "<image>\\n…"}, {"from": "gpt", "value": "…"}]}'
)


def instructions(file: Path) -> Task:
    """The first question and answer of each conversation about one picture; conversations without one are left out.

    Args:
        file: JSON (a list) or JSONL (one a line) of objects with "image", a path beside the file, and "conversations",
            in turns: {"from": "human", "value": "<image> and a question"}, {"from": "gpt", "value": "an answer"}.

    Raises:
        InputError: no such file, or not of this form. Pictures are opened later, one by one.
    """
    if not file.is_file():
        raise InputError(f"argument --images: {str(file)!r} is no file; give JSON or JSONL of {_FORM}")
    raw = file.read_bytes()
    found = [_question(file, number, entry) for number, entry in _entries(file, raw) if "image" in entry]
    if len(found) < 2:
        raise InputError(
            f"argument --images: {str(file)!r} holds {len(found)} conversations about a picture; give two or more, one "
            "to learn from and one to be held out"
        )
    return Task("instructions", f"sha256:{hashlib.sha256(raw).hexdigest()}", len(found), found.__getitem__)


def _entries(file: Path, raw: bytes) -> Iterable[tuple[int, dict[str, Any]]]:
    """The objects of a file, numbered from 1."""
    where = f"argument --images: {str(file)!r}"
    try:
        if raw.lstrip()[:1] == b"[":
            entries = list(enumerate(json.loads(raw), 1))
        else:
            entries = [(n, json.loads(line)) for n, line in enumerate(raw.splitlines(), 1) if line.strip()]
    except ValueError as error:
        raise InputError(f"{where} is neither JSON nor JSONL ({error}); give {_FORM}") from None
    for number, entry in entries:
        if not isinstance(entry, dict):
            raise InputError(f"{where}: entry {number} is a {type(entry).__name__}, not an object; give {_FORM}")
    return entries


def _question(file: Path, number: int, entry: dict[str, Any]) -> Question:
    try:
        asked, answered = entry["conversations"][:2]
        if (asked["from"], answered["from"]) != ("human", "gpt") or asked["value"].count("<image>") > 1:
            raise ValueError
        question, answer = asked["value"].replace("<image>", "").strip(), answered["value"].strip()
        picture = file.parent / entry["image"]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise InputError(
            f"argument --images: entry {number} of {str(file)!r} is no question of a human about one picture with an "
            f"answer of gpt; give {_FORM}"
        ) from None
    score = functools.partial(exact_match, answer)
    return Question(str(entry.get("id", number)), "all", question, answer, lambda: [open_image(picture)], score)
