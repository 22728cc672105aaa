"""Reads one upload in a process of its own, with little memory and time: what it contains may be hostile.

Run as a script, by `uploads`, in an interpreter that imports nothing of this package: `reader.py JSON`, whose keys are
the arguments of `read`. It writes a line of JSON and the pixels to stdout. Whatever happens here, the demo goes on.
"""

import importlib.util
import json
import sys
from typing import Any


def read(
    file: str,
    kind: str,
    formats: list[str],
    frames: int,
    pixels: int,
    seconds: float,
    memory: int,
    cpu_s: int,
    video_file: str,
) -> tuple[dict[str, Any], bytes]:
    """The header and uint8 pixels of a picture [H, W, 3] or a video [F, H, W, 3].

    Args:
        file: the upload.
        kind: "image" or "video".
        formats: of Pillow that are tried.
        frames: of a video.
        pixels: of a picture or frame at most.
        seconds: of a video at most.
        memory: bytes that this process may take.
        cpu_s: seconds that it may compute.
        video_file: path of the module that reads videos.
    """
    _confine(memory, cpu_s)
    return _picture(file, formats, pixels) if kind == "image" else _video(file, frames, pixels, seconds, video_file)


def _confine(memory: int, cpu_s: int) -> None:
    try:
        import resource
    except ImportError:  # not a Unix
        return
    for what, most in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CPU, cpu_s), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(what)[1]
        resource.setrlimit(what, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # it writes no file


def _picture(file: str, formats: list[str], pixels: int) -> tuple[dict[str, Any], bytes]:
    from PIL import Image, ImageOps

    Image.MAX_IMAGE_PIXELS = None  # asked here, before anything is decoded
    try:
        with Image.open(file, formats=formats) as opened:
            _check_size(*opened.size, pixels)
            picture = ImageOps.exif_transpose(opened).convert("RGB")
    except Refused:
        raise
    except Exception as error:
        raise Refused(f"it is damaged or cut off ({_first_line(error)}); give a whole picture") from error
    return {"shape": [picture.height, picture.width, 3]}, picture.tobytes()


def _video(file: str, frames: int, pixels: int, seconds: float, video_file: str) -> tuple[dict[str, Any], bytes]:
    spec = importlib.util.spec_from_file_location("video_file", video_file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["video_file"] = module
    spec.loader.exec_module(module)
    try:
        length = module.seconds(file)
        if length is not None and length > seconds:
            raise Refused(f"it lasts {length:.0f} s; at most {seconds:.0f} s are read, cut it")
        first = module.read(file, 1).frames
        _check_size(first.shape[2], first.shape[1], pixels)
        video = module.read(file, frames)
    except ImportError as error:
        raise Refused(str(error)) from error
    except (ValueError, OSError) as error:
        raise Refused(_first_line(error).replace(f"video {file!r}", "it")) from error
    header = {"shape": list(video.frames.shape), "times": video.times, "fps": video.fps, "count": video.count}
    return header, video.frames.tobytes()


def _check_size(width: int, height: int, most: int) -> None:
    if width * height > most:
        raise Refused(f"it is {width} x {height} pixels; at most {most / 1e6:g} million are read, make it smaller")


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__


class Refused(Exception):
    """What is wrong with the upload."""


def main() -> None:
    """Read what the arguments say."""
    try:
        header, pixels = read(**json.loads(sys.argv[1]))
    except Refused as error:
        header, pixels = {"refused": str(error)}, b""
    except MemoryError:
        header, pixels = {"refused": "reading it takes too much memory; make it smaller"}, b""
    sys.stdout.buffer.write(json.dumps(header).encode() + b"\n")
    sys.stdout.buffer.write(pixels)


if __name__ == "__main__":
    main()
