"""Rows and media of a task: from a local folder, or from a hub by `datasets`."""

import csv
import functools
import hashlib
import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from PIL import Image

from vtc.eval.cli.errors import InputError
from vtc.eval.media.images import open_image, open_repeated
from vtc.eval.tasks.config import TaskConfig
from vtc.eval.tasks.task import Shown

#: Endings of files with rows, in the order in which they are looked for.
ENDINGS = ("parquet", "jsonl", "json", "csv", "tsv")
VIDEOS = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".gif")


@dataclass
class Rows:
    """Rows of a split.

    Attributes:
        size: how many.
        plain: row number i, its pictures left alone.
        whole: the same with pictures as PIL images, where they come with the rows.
        fingerprint: names the very rows.
        folders: where files that rows name are looked for; asked when the first is.
    """

    size: int
    plain: Callable[[int], dict[str, Any]]
    whole: Callable[[int], dict[str, Any]]
    fingerprint: str
    folders: Callable[[], Sequence[Path]]
    _index: dict[str, list[Path]] | None = field(default=None, repr=False)

    def open(self, shown: Any, frames: int) -> Shown:
        """A picture or video that a row has, or names.

        Args:
            shown: a PIL image, {"bytes", "path"}, or a path.
            frames: how many of a video.

        Raises:
            InputError: there is no such file, or it can't be read.
        """
        if isinstance(shown, Image.Image):
            return shown.convert("RGB")
        if isinstance(shown, Mapping) and shown.get("bytes"):
            return open_image(io.BytesIO(shown["bytes"]))
        path = self._find(str(shown["path"] if isinstance(shown, Mapping) else shown))
        if path.is_dir():
            return _frames(path, frames)
        return open_repeated(path, frames) if path.suffix.lower() in VIDEOS else open_image(path)

    def _find(self, name: str) -> Path:
        """The file, or folder of frames, of that path; else the one below the folders whose path ends so.

        A video may have another ending than the row says.
        """
        folders = self.folders()
        for folder in folders:
            if (exact := folder / name).exists():
                return exact
        if self._index is None:
            self._index = {}
            for folder in folders:
                for file in sorted(folder.rglob("*")):
                    self._index.setdefault(file.stem, []).append(file)
        wanted = PurePath(*(part for part in PurePath(name).parts if part not in ("..", ".", "/")))
        alike = [
            file for file in self._index.get(wanted.stem, []) if _ends(file.with_suffix(""), wanted.with_suffix(""))
        ]
        found = [file for file in alike if file.suffix == wanted.suffix] or [
            file for file in alike if {file.suffix.lower(), wanted.suffix.lower()} <= set(VIDEOS)
        ]
        if len(found) != 1:
            told = f"{len(found)} files end so" if found else "there is none"
            looked = ", ".join(repr(str(folder)) for folder in folders)
            raise InputError(f"file {name!r} is looked for below {looked}, but {told}; put it right there")
        return found[0]


def _ends(path: PurePath, end: PurePath) -> bool:
    return path.parts[-len(end.parts) :] == end.parts


def _frames(folder: Path, frames: int) -> np.ndarray:
    """Frames of a video that is a folder of pictures, in the order of their names, at even distances.

    Raises:
        InputError: there is none, or one can't be read.
    """
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not files:
        raise InputError(f"video {str(folder)!r} is a folder without pictures; put its frames there")
    which = np.linspace(0, len(files) - 1, frames).round().astype(int)
    return np.stack([np.asarray(open_image(files[index])) for index in which])


def load_rows(config: TaskConfig, data: Path | None) -> Rows:
    """The rows of a task's split.

    Args:
        config: the task.
        data: local folder that holds a folder for the task, or is one; None: `dataset_path`, a folder or on a hub.

    Raises:
        InputError: there are no rows; says what to put where.
    """
    path, split = config.get("dataset_path"), config.get("test_split") or config.get("validation_split")
    if data is None:
        beside = [folder for folder in (config.file.parent / path, Path(path)) if folder.is_dir()]
        if not beside:
            return _from_hub(config, path, split)
        folders = beside[:1]
    else:
        if not data.is_dir():
            raise InputError(f"argument --data: {str(data)!r} is no folder; give one with the tasks' data")
        folders = [folder for folder in (data / config.name, data / path.split("/")[-1], data) if folder.is_dir()]
    for folder in folders:
        if files := _files(folder, config.get("dataset_name"), split):
            return _from_files(config, folder, files)
    wanted = f"{split}.jsonl, {split}.parquet or data/{split}-*.parquet"
    looked = ", ".join(repr(str(folder)) for folder in folders)
    raise InputError(
        f"argument --data: no rows of task {config.name!r} (split {split!r}) in {looked}; download {path!r} into "
        f"{str((data or folders[0]) / config.name)!r}, with {wanted} in it"
    )


def _files(folder: Path, name: str | None, split: str) -> list[Path]:
    """The files of a split, all of one ending."""
    insides = [folder / name, folder / "data" / name] if name else []
    for inside in (*insides, folder, folder / "data"):
        for ending in ENDINGS:
            for pattern in (f"{split}.{ending}", f"{split}-*.{ending}", f"{split}/*.{ending}"):
                if found := sorted(inside.glob(pattern)):
                    return found
    return []


def _from_files(config: TaskConfig, folder: Path, files: Sequence[Path]) -> Rows:
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    try:
        made = _dataset(files) if files[0].suffix == ".parquet" else _listed(files)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"argument --data: {str(files[0])!r} can't be read ({error}); download it anew") from None
    return _rows(config, made, digest.hexdigest(), lambda: [folder])


def _dataset(files: Sequence[Path]) -> Any:
    return _datasets().Dataset.from_parquet([str(file) for file in files])


def _listed(files: Sequence[Path]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for file in files:
        text = file.read_text(encoding="utf-8")
        if file.suffix == ".jsonl":
            found += [json.loads(line) for line in text.split("\n") if line.strip()]
        elif file.suffix == ".json":
            found += json.loads(text)
        else:
            found += csv.DictReader(io.StringIO(text), delimiter="\t" if file.suffix == ".tsv" else ",")
    if not all(isinstance(row, dict) for row in found):
        raise ValueError("not all rows are objects")
    return found


#: Why the hub could not be reached, once that is known.
_unreachable: list[str] = []


def _missing(config: TaskConfig, path: str, reason: str) -> str:
    return (
        f"argument --data: task {config.name!r} asks data set {path!r}, which can't be had here ({reason}); "
        f"download it to FOLDER/{config.name} and give --data FOLDER"
    )


def _from_hub(config: TaskConfig, path: str, split: str) -> Rows:
    known = ("token", "revision", "data_files", "data_dir", "cache_dir")
    kwargs = {key: value for key, value in config.get("dataset_kwargs", {}).items() if key in known}
    if _unreachable:  # it tries for half a minute each time
        raise InputError(_missing(config, path, _unreachable[0]))
    try:
        made = _datasets().load_dataset(path, config.get("dataset_name"), split=split, **kwargs)
    except InputError:
        raise
    except Exception as error:  # of many kinds, all meaning that it can't be had
        reason = str(error).strip().partition("\n")[0]
        if isinstance(error, ConnectionError):
            _unreachable.append(reason)
        raise InputError(_missing(config, path, reason)) from None
    media = functools.cache(lambda: _media_of_hub(config, path, kwargs.get("revision")))
    return _rows(config, made, f"hub:{made._fingerprint}", media)


def _media_of_hub(config: TaskConfig, path: str, revision: str | None) -> list[Path]:
    """The files of a data set on the hub: as they are there, and out of its archives.

    Raises:
        InputError: they can't be had.
    """
    from huggingface_hub import constants, snapshot_download

    try:
        snapshot = Path(snapshot_download(path, repo_type="dataset", revision=revision))
        unpacked = Path(constants.HF_HOME) / "vtc-media" / path.replace("/", "--") / snapshot.name
        if not (unpacked / "done").exists():
            unpacked.mkdir(parents=True, exist_ok=True)
            for archive in sorted(snapshot.rglob("*")):
                _unpack(archive, unpacked)
            (unpacked / "done").touch()
    except Exception as error:  # of many kinds, all meaning that it can't be had
        raise InputError(_missing(config, path, str(error).strip().partition("\n")[0])) from None
    return [snapshot, unpacked]


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip or tar file; neither can write outside the folder."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as zipped:
            zipped.extractall(folder)
    elif archive.name.endswith((".tar", ".tar.gz", ".tgz")):
        with tarfile.open(archive) as tarred:
            tarred.extractall(folder, filter="data")


def _datasets() -> Any:
    try:
        import datasets
    except ImportError:
        raise InputError(
            "argument --tasks: tasks need datasets, which is not installed; pip install 'vtc[eval]'"
        ) from None
    datasets.disable_progress_bars()
    return datasets


def _rows(config: TaskConfig, made: Any, fingerprint: str, folders: Callable[[], Sequence[Path]]) -> Rows:
    process = config.get("process_docs")
    if process is not None:
        if not hasattr(made, "features"):
            columns = dict.fromkeys(key for row in made for key in row)
            made = _datasets().Dataset.from_list([dict.fromkeys(columns) | row for row in made])
        made = process(made)
    if not hasattr(made, "features"):
        rows = list(made)
        return Rows(len(rows), lambda i: dict(rows[i]), lambda i: dict(rows[i]), fingerprint, folders)
    Picture = _datasets().Image
    plain = made
    for column, feature in made.features.items():
        if isinstance(feature, Picture):  # opened when it is shown: a broken one must not stop what comes before
            plain = plain.cast_column(column, Picture(decode=False))
    return Rows(len(made), lambda i: plain[i], lambda i: made[i], fingerprint, folders)
