"""What a run has done, as it goes: one line a batch, on the disk before the next one starts."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from vtc.eval.cli.arguments import say
from vtc.eval.cli.errors import InputError
from vtc.eval.results.folder import lock
from vtc.eval.results.records import Line

_NAME = re.compile(r"journal-(\d+)\.jsonl")


class Journal:
    """The lines of one process of a run; only this process writes them.

    A line that was torn, by a kill or a full disk, is cut off when the file is opened, or written over. Where nothing
    can be written, lines are held in memory, and tried again with each that follows.

    Args:
        folder: of the run.
        number: of the process.

    Attributes:
        lost: lines that are not on the disk.

    Raises:
        InputError: the file is in use by another process, or can't be written.
    """

    def __init__(self, folder: Path, number: int = 0):
        self.path = folder / f"journal-{number}.jsonl"
        self.lost: list[Line] = []
        self._said = False
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise InputError(
                f"argument --output: {str(self.path)!r} can't be written ({error.strerror}); give another folder"
            ) from None
        if not lock(self._file):
            os.close(self._file)
            raise InputError(
                f"argument --output: {str(folder)!r} is in use by another run; wait for it or give another"
            )
        content = self.path.read_bytes()
        self._end = _whole(content)[1]
        if b"\n" in content[self._end :]:
            self.close()
            raise InputError(
                f"argument --output: {str(self.path)!r} has lines that are no JSON from byte {self._end} on, which "
                "no run writes: it was changed by hand; put it right, or give another folder"
            )

    def append(self, line: Line) -> None:
        """Put a line on the disk, and those before it that could not be."""
        self.lost.append(line)
        content = "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in self.lost).encode()
        try:
            os.ftruncate(self._file, self._end)
            _write(self._file, content, self._end)
            os.fsync(self._file)
        except OSError as error:
            if not self._said:
                say(
                    f"vtc eval: {str(self.path)!r} can't be written ({error.strerror}); going on, "
                    "and trying again after every batch"
                )
                self._said = True
            return
        self._end += len(content)
        self.lost.clear()

    def close(self) -> None:
        """Let others use the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def read(folder: Path) -> dict[int, Line]:
    """The whole lines of all processes, by batch in order; of two that did the same batch the first counts."""
    found: dict[int, Line] = {}
    for file in sorted(folder.glob("journal-*.jsonl"), key=_number):
        for line in _whole(file.read_bytes())[0]:
            found.setdefault(line["batch"], line)
    return dict(sorted(found.items()))


def busy(folder: Path, number: int) -> bool:
    """Whether process `number` still has its journal."""
    path = folder / f"journal-{number}.jsonl"
    if not path.exists():
        return False
    with path.open("rb") as file:
        return not lock(file.fileno())


def _number(file: Path) -> int:
    match = _NAME.fullmatch(file.name)
    return int(match[1]) if match else -1


def _write(file: int, content: bytes, offset: int) -> None:
    while content:
        written = os.pwrite(file, content, offset)
        content, offset = content[written:], offset + written


def _whole(content: bytes) -> tuple[Sequence[Line], int]:
    """Lines up to the first torn one, and where the last of them ends."""
    found, end = [], 0
    for line in content.splitlines(keepends=True):
        try:
            if not line.endswith(b"\n"):
                break
            found.append(json.loads(line))
        except ValueError:
            break
        end += len(line)
    return found, end
