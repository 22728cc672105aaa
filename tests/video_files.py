"""Small video files, made by the program ffmpeg, whose frames tell their own number."""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

#: In CI a missing ffmpeg is a failure, not a reason to skip.
needs_ffmpeg = pytest.mark.skipif(
    shutil.which("ffmpeg") is None and "CI" not in os.environ,
    reason="test videos are made by the program ffmpeg: apt-get install ffmpeg",
)

#: Height and width of a frame, which shows its number as so many binary digits side by side.
HEIGHT, WIDTH, DIGITS = 48, 160, 10
FPS = 30


def ffmpeg(*arguments: str | Path, data: bytes | None = None) -> None:
    """Run it; the last argument is the file that it writes."""
    command = ["ffmpeg", "-v", "error", "-y", "-threads", "1", *map(str, arguments)]
    subprocess.run(command, input=data, check=True, timeout=60)


def numbered(file: Path, frames: int, *options: str) -> Path:
    """Write a video of numbered frames, key frames at most 32 apart, encoded as the options say."""
    numbers = np.arange(frames)[:, None] >> np.arange(DIGITS) & 1
    bright = np.where(numbers, 220, 30).astype(np.uint8).repeat(WIDTH // DIGITS, axis=1)
    pixels = np.broadcast_to(bright[:, None, :], (frames, HEIGHT, WIDTH))
    source = ("-f", "rawvideo", "-pix_fmt", "gray", "-s", f"{WIDTH}x{HEIGHT}", "-r", str(FPS), "-i", "-")
    ffmpeg(*source, "-pix_fmt", "yuv420p", "-g", "32", *options, file, data=np.ascontiguousarray(pixels).tobytes())
    return file


def numbers(frames: np.ndarray) -> list[int]:
    """The numbers that frames [F, H, W, 3] of `numbered` show."""
    middle = WIDTH // DIGITS // 2 + WIDTH // DIGITS * np.arange(DIGITS)
    return ((frames[:, HEIGHT // 2, middle, 1] > 128) << np.arange(DIGITS)).sum(axis=1).tolist()
