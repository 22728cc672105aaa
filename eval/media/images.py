"""Opening picture and video files."""

import dataclasses
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from vtc.eval.cli.errors import InputError
from vtc.eval.media.video import Video, read


def open_image(path: Path | BinaryIO) -> Image.Image:
    """The picture in a file as RGB, turned as the file says, read to its last byte.

    Raises:
        InputError: the file is missing, truncated, or not a picture; names it.
    """
    try:
        with Image.open(path) as file:
            return ImageOps.exif_transpose(file).convert("RGB")
    except FileNotFoundError:
        raise InputError(f"image {str(path)!r} does not exist; check the path") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"image {str(path)!r} can't be read ({error}); give a whole PNG, JPEG or similar") from None


def open_video(path: Path, frames: int) -> Video:
    """Frames of a video file, at even distances.

    Raises:
        InputError: the file is missing, damaged, or no video, or what reads it is not installed; names it.
    """
    try:
        return read(path, frames)
    except (OSError, ValueError, ImportError) as error:
        raise InputError(str(error)) from None


def as_video(frames: np.ndarray) -> Video:
    """Frames [F, H, W, 3] whose times are unknown."""
    return Video(frames, None, None, len(frames))


def open_repeated(path: Path, frames: int) -> Video:
    """As `open_video`, but always so many frames: those of a shorter video are repeated, so that it fits into a batch.

    Raises:
        InputError: as `open_video`.
    """
    video = open_video(path, frames)
    if len(video.frames) == frames:
        return video
    which = np.linspace(0, len(video.frames) - 1, frames).round().astype(int)
    times = None if video.times is None else tuple(video.times[index] for index in which)
    return dataclasses.replace(video, frames=video.frames[which], times=times)
