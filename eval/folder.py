"""The output folder of a run: its config, and the lines that a resume goes on from."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vtc.eval.errors import InputError
from vtc.eval.records import BatchRecord, SampleRecord

try:
    import fcntl
except ImportError:  # not on this system: two runs at once in one folder go unnoticed
    fcntl = None  # type: ignore[assignment]

CONFIG, SAMPLES, BATCHES = "config.json", "samples.jsonl", "batches.jsonl"


class RunFolder:
    """Where a run writes. Made by `RunFolder.open`.

    A batch's samples are on the disk before its line in `batches.jsonl` is, and that line makes it done. Whatever
    stands behind the last batch that is done, a torn line or whole ones, is cut off when the folder is opened.

    Attributes:
        path: the folder.
        config: the fingerprint that tells this run from others.
        batches: records of the batches that are done, in order.
    """

    def __init__(self, path: Path, config: Mapping[str, Any]):
        self.path, self.config = path, dict(config)
        self._lock = _lock(path)
        self.batches: list[BatchRecord] = _cut(path / BATCHES, _whole_lines(path / BATCHES))
        done = {record["batch"] for record in self.batches}
        samples = _cut(path / SAMPLES, [line for line in _whole_lines(path / SAMPLES) if line[0]["batch"] in done])
        if len(samples) != sum(record["samples"] for record in self.batches):
            raise InputError(
                f"argument --output: {str(path / SAMPLES)!r} lost lines that {BATCHES} counts; "
                "it was changed by hand; give another folder"
            )

    @classmethod
    def check(cls, path: Path, config: Mapping[str, Any]) -> None:
        """Refuse a folder that is not this run's, without touching it.

        Raises:
            InputError: another run's config, other files, or a file in the folder's place.
        """
        if not path.exists():
            return
        if not path.is_dir():
            raise InputError(f"argument --output: {str(path)!r} is a file; give a folder")
        if not (path / CONFIG).is_file():
            if others := sorted(file.name for file in path.iterdir() if not file.name.endswith(".tmp")):
                raise InputError(
                    f"argument --output: {str(path)!r} holds {others[0]!r} and no {CONFIG}; give a new or empty folder"
                )
            return
        try:
            written = json.loads((path / CONFIG).read_text())
        except (OSError, ValueError) as error:
            raise InputError(
                f"argument --output: {str(path / CONFIG)!r} can't be read ({error}); give another folder"
            ) from None
        for key in {**config, **written}:
            if written.get(key) != config.get(key):
                raise InputError(
                    f"argument --output: {str(path)!r} holds another run: its {key} is {written.get(key)!r}, "
                    f"this run's is {config.get(key)!r}; give another folder, or the same arguments to resume"
                )

    @classmethod
    def open(cls, path: Path, config: Mapping[str, Any]) -> "RunFolder":
        """Create the folder, or go on in it.

        Raises:
            InputError: it is not this run's, is in use, or can't be written.
        """
        cls.check(path, config)
        try:
            path.mkdir(parents=True, exist_ok=True)
            if not (path / CONFIG).exists():
                write_atomically(path / CONFIG, json.dumps(config, indent=2) + "\n")
        except OSError as error:
            raise InputError(
                f"argument --output: {str(path)!r} can't be written ({error}); give another folder"
            ) from None
        return cls(path, config)

    def append(self, samples: Sequence[SampleRecord], record: BatchRecord) -> None:
        """Put one batch on the disk."""
        _append(self.path / SAMPLES, samples)
        _append(self.path / BATCHES, [record])
        self.batches.append(record)

    def samples(self) -> list[SampleRecord]:
        """All samples of the batches that are done, in order."""
        return [entry for entry, _ in _whole_lines(self.path / SAMPLES)]

    def close(self) -> None:
        """Let others use the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file that is there whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _lock(path: Path) -> int | None:
    if fcntl is None:
        return None
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise InputError(
            f"argument --output: {str(path)!r} is in use by another run; wait for it or give another"
        ) from None
    return handle


def _append(path: Path, entries: Iterable[Mapping[str, Any]]) -> None:
    with path.open("ab") as file:
        file.write("".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries).encode())
        file.flush()
        os.fsync(file.fileno())


def _whole_lines(path: Path) -> list[tuple[Any, int]]:
    """Entries of a JSONL file up to the first torn one, each with the offset of its end."""
    found, end = [], 0
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else []:
        try:
            entry = json.loads(line)
        except ValueError:
            break
        if not line.endswith(b"\n"):
            break
        end += len(line)
        found.append((entry, end))
    return found


def _cut(path: Path, lines: Sequence[tuple[Any, int]]) -> list[Any]:
    """Cut a file off behind the last of `lines`; returns their entries."""
    end = lines[-1][1] if lines else 0
    if path.exists() and path.stat().st_size > end:
        os.truncate(path, end)
    return [entry for entry, _ in lines]
