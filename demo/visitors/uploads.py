"""Files that visitors send: looked at by content, read in a process of their own, then removed."""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from vtc.demo.jobs.inference import Media
from vtc.demo.visitors.limits import Limits
from vtc.eval.cli.errors import InputError
from vtc.eval.media import video as video_file
from vtc.eval.media.video import Video


@dataclass(frozen=True)
class Format:
    """A kind of file that is read.

    Attributes:
        name: for people.
        kind: "image" or "video".
        pillow: Pillow's name of it.
        endings: that such a file may have.
    """

    name: str
    kind: str
    pillow: str = ""
    endings: tuple[str, ...] = ()


_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")
_VIDEOS = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi")
#: What a file starts with -> what it is. Nothing else is opened: no SVG, no playlist, no archive.
SIGNATURES = (
    (re.compile(rb"\x89PNG\r\n\x1a\n"), Format("PNG", "image", "PNG", _PICTURES)),
    (re.compile(rb"\xff\xd8\xff"), Format("JPEG", "image", "JPEG", _PICTURES)),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), Format("WebP", "image", "WEBP", _PICTURES)),
    (re.compile(rb"GIF8[79]a"), Format("GIF", "image", "GIF", _PICTURES)),
    (re.compile(rb"BM.{4}\0{4}.{2}\0\0", re.DOTALL), Format("BMP", "image", "BMP", _PICTURES)),
    (
        re.compile(rb"....(ftyp(?!heic|heix|mif1|msf1|avif|avis)|moov|mdat|wide)", re.DOTALL),
        Format("MP4", "video", "", _VIDEOS),
    ),
    (re.compile(rb"\x1a\x45\xdf\xa3"), Format("WebM or Matroska", "video", "", _VIDEOS)),
    (re.compile(rb"RIFF....AVI ", re.DOTALL), Format("AVI", "video", "", _VIDEOS)),
)
_READ = "PNG, JPEG, WebP, GIF, BMP pictures and MP4, MOV, WebM, MKV, AVI videos are read"


def read_upload(path: Path, limits: Limits, frames: int) -> Media:
    """What an uploaded file shows; the file is removed, whatever it is.

    Args:
        path: the upload.
        limits: what is allowed.
        frames: that are taken of a video.

    Raises:
        InputError: it is too large, no picture or video, not what its ending says, or damaged.
    """
    if not path.is_file():
        raise InputError("the upload is gone; send it again")
    try:
        return _read(path, display_name(path.name), limits, frames)
    finally:
        path.unlink(missing_ok=True)


def display_name(name: str) -> str:
    """A file's name as it is shown and put into commands: no path, no control or quoting characters, not long."""
    stem, ending = os.path.splitext(re.split(r"[\\/]", name)[-1])
    stem = re.sub(r"[^\w .()+-]|^[.-]+", "_", stem)[:60].strip() or "upload"
    return stem + re.sub(r"[^\w.]", "", ending)[:8]


def sniff(head: bytes) -> Format | None:
    """What a file is by its first bytes; None for anything that is not read here."""
    return next((each for signature, each in SIGNATURES if signature.match(head)), None)


def _read(path: Path, name: str, limits: Limits, frames: int) -> Media:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(64)
    except OSError:
        raise InputError("the upload is gone; send it again") from None
    if size > limits.file_bytes:
        raise InputError(f"{name!r} has {size / 2**20:.1f} MiB; at most {limits.file_bytes / 2**20:g} are read")
    if not size:
        raise InputError(f"{name!r} is empty; give a picture or a video")
    found = sniff(head)
    if found is None:
        raise InputError(f"{name!r} is no picture or video that is read here; {_READ}")
    ending = os.path.splitext(name)[1].lower()
    if ending not in found.endings:
        raise InputError(
            f"{name!r} ends in {ending or 'nothing'!r} but holds {found.name}; name it *{found.endings[0]}, or give "
            "the file that you meant"
        )
    header, pixels = _decoded(path, name, found, limits, frames)
    array = np.frombuffer(pixels, np.uint8).reshape(header["shape"])
    if found.kind == "image":
        return Media(Image.fromarray(array), name)
    times = header["times"]
    video = Video(array, None if times is None else tuple(times), header["fps"], header["count"])
    return Media(video, name)


def _decoded(path: Path, name: str, found: Format, limits: Limits, frames: int) -> tuple[dict, bytes]:
    arguments = {
        "file": str(path.resolve()),
        "kind": found.kind,
        "formats": [found.pillow],
        "frames": frames,
        "pixels": limits.pixels if found.kind == "image" else limits.frame_pixels,
        "seconds": limits.seconds,
        "memory": limits.decode_bytes,
        "cpu_s": limits.decode_seconds,
        "video_file": video_file.__file__,
    }
    script = Path(__file__).with_name("reader.py")
    try:
        done = subprocess.run(
            [sys.executable, "-I", str(script), json.dumps(arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=limits.decode_seconds,
            env={"MALLOC_ARENA_MAX": "2", "OMP_NUM_THREADS": "1", "PATH": os.defpath},
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise InputError(f"{name!r} takes longer than {limits.decode_seconds} s to read; make it smaller") from None
    line, _, pixels = done.stdout.partition(b"\n")
    if done.returncode or not line:
        raise InputError(f"{name!r} can't be read, it broke what reads it; give another file")
    header = json.loads(line)
    if "refused" in header:
        raise InputError(f"{name!r} can't be read: {header['refused']}")
    return header, pixels
