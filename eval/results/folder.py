"""The output folder of a run, and the config that tells it from others."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vtc.eval.cli.errors import InputError

try:
    import fcntl
except ImportError:  # not on this system: two runs at once in one folder go unnoticed
    fcntl = None  # type: ignore[assignment]

CONFIG = "config.json"


class RunFolder:
    """Where a run writes. Made by `RunFolder.open`.

    Attributes:
        path: the folder.
        config: the fingerprint that tells this run from others.
    """

    def __init__(self, path: Path, config: Mapping[str, Any]):
        self.path, self.config = path, dict(config)
        self._lock = os.open(path, os.O_RDONLY)
        if not lock(self._lock):
            self.close()
            raise InputError(f"argument --output: {str(path)!r} is in use by another run; wait for it or give another")

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
        made(path)
        try:
            if not (path / CONFIG).exists():
                write_json(path / CONFIG, config)
        except OSError as error:
            raise _unwritable(path, error) from None
        return cls(path, config)

    def close(self) -> None:
        """Let others use the folder."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def made(path: Path) -> None:
    """Make a folder where there is none.

    Raises:
        InputError: it can't be.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from None


def _unwritable(path: Path, error: OSError) -> InputError:
    return InputError(f"argument --output: {str(path)!r} can't be written ({error}); give another folder")


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file that is there whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, whole or not at all."""
    write_atomically(path, json.dumps(value, indent=2) + "\n")


def lock(file: int) -> bool:
    """Take an open file for this process; False where another has it. It is given back when the file is closed."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
