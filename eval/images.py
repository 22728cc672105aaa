"""Opening picture and video files."""

from pathlib import Path

from PIL import Image

from vtc.eval.errors import InputError
from vtc.eval.video_file import Video, read


def open_image(path: Path) -> Image.Image:
    """The picture in a file as RGB, read to its last byte.

    Raises:
        InputError: the file is missing, truncated, or not a picture; names it.
    """
    try:
        with Image.open(path) as file:
            return file.convert("RGB")
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
