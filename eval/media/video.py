"""Frames of a video file, read by decord, whose wrong answers are found out.

decord numbers a file's frames by its index, and for one of them jumps to the key frame before it. That goes wrong in
three ways, none of which it tells: packets that an edit list hides (of a file that was cut without encoding it anew)
count, but are never decoded; behind a jump to an open group (HEVC) some frames are missing; of transport and program
streams the first group is. The first is reckoned with, the second looked for and gone around, the third refused.
"""

import math
import operator
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

#: What decord puts in front of its messages: the time, the place in its source, the file.
_PLACE = re.compile(r"\[[\d:]+\] \S+:\d+: |\[[^]]*\] ?")


@dataclass(frozen=True)
class Video:
    """Frames of a video.

    Attributes:
        frames: uint8 array [F, H, W, 3], RGB, turned as the file says.
        times: seconds at which they are shown, to the millisecond: the file's time stamps, or the frame's number over
            `fps` where they make no sense; None where that makes none either.
        fps: the file's mean frame rate; None where it is missing, 0 or NaN.
        count: frames that the file has, as far as it can be read.
    """

    frames: np.ndarray
    times: tuple[float, ...] | None
    fps: float | None
    count: int


def read(path: str | os.PathLike[str], frames: int = 8, start: float | None = None, end: float | None = None) -> Video:
    """Frames at even distances, the first and the last among them.

    Memory grows with the frames that are asked for, not with the file. So does time, and with the distance of the key
    frames, where jumps to them can be trusted; else the file is decoded from its beginning.

    Args:
        path: the file, in any format that decord's FFmpeg reads.
        frames: how many; all there are where the file has fewer.
        start: seconds; frames that are shown before are left out.
        end: seconds; frames that are shown after are left out.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: decord is not installed.
        ValueError: it is no video, or a frame can't be decoded, or an argument is out of range.
        TypeError: `frames` is no whole number.
    """
    wanted = _whole_number(frames)
    file = Path(path)
    reader = _open(file)
    hidden, times, fps = _clock(reader)
    count = len(reader) - hidden
    part = _between(file, np.arange(count), times, start, end)
    chosen = part[np.linspace(0, len(part) - 1, min(wanted, len(part))).round().astype(int)].tolist()
    pictures = np.stack(_decode(file, reader, hidden, chosen))
    return Video(pictures, None if times is None else tuple(times[chosen].tolist()), fps, count)


def seconds(path: str | os.PathLike[str]) -> float | None:
    """How long a video is, from its index; nothing is decoded. None where it tells no times.

    Raises:
        FileNotFoundError, ImportError, ValueError: as `read`.
    """
    hidden, times, fps = _clock(reader := _open(Path(path)))
    if times is None:
        return None
    return float(times[-1]) + (1 / fps if fps else 0.0) if len(reader) > hidden else 0.0


def _whole_number(frames: int) -> int:
    if isinstance(frames, bool) or not hasattr(frames, "__index__"):
        raise TypeError(f"frames is {frames!r}; give a whole number of at least 1")
    if frames < 1:
        raise ValueError(f"frames is {frames!r}; give a whole number of at least 1")
    return operator.index(frames)


def _open(file: Path) -> Any:
    """The file's reader, with an index of it."""
    try:
        import decord
    except ImportError as error:
        raise ImportError('videos are read by decord, which is missing; run: pip install "vtc[video]"') from error
    if not file.exists():
        raise FileNotFoundError(f"video {str(file)!r} does not exist; check the path")
    if not file.is_file() or not file.stat().st_size:
        raise ValueError(f"video {str(file)!r} is {'empty' if file.is_file() else 'no file'}; give a video file")
    if _is_stream(file):
        raise ValueError(
            f"video {str(file)!r} is an MPEG transport or program stream, whose first frames decord loses; "
            "pack it anew, without loss, by: ffmpeg -i FILE -c copy whole.mp4"
        )
    try:
        # An absolute path is never taken for a protocol. Where a frame is lost decord repeats another: here it raises.
        reader = decord.VideoReader(str(file.resolve()), fault_tol=1e-9)
        reader.get_frame_timestamp([0])
        return reader
    except (RuntimeError, AssertionError, IndexError, decord.DECORDError) as error:
        if "cannot find video stream" in str(error):
            raise ValueError(f"video {str(file)!r} has no frames that decord can read; give another") from None
        reason = f" ({_reason(error)})" if isinstance(error, decord.DECORDError) else ""
        raise ValueError(
            f"video {str(file)!r} can't be opened{reason}: it is no video, or cut off or damaged; give a whole one"
        ) from None


def _is_stream(file: Path) -> bool:
    """Whether it is an MPEG program stream or transport stream (packets of 188 bytes, or 192 with time codes)."""
    with file.open("rb") as content:
        head = content.read(1024)
    packets = (head[start : 5 * size : size] for start, size in ((0, 188), (4, 192)))
    return head.startswith(b"\x00\x00\x01\xba") or b"\x47" * 5 in packets


def _reason(error: Exception) -> str:
    return _PLACE.sub("", str(error)).partition("\n")[0].strip()


def _clock(reader: Any) -> tuple[int, np.ndarray | None, float | None]:
    """How many frames an edit list hides in front; seconds of the others [N], to the millisecond; frames per second."""
    rate = float(reader.get_avg_fps())
    fps = rate if math.isfinite(rate) and rate > 0 else None
    times = np.asarray(reader.get_frame_timestamp(np.arange(len(reader))), dtype=float)[:, 0].round(3)
    if np.isfinite(times).all() and (np.abs(times) < 1e9).all() and (np.diff(times) >= 0).all() and times[-1] >= 0:
        hidden = int((times < 0).sum())
        if len(times) == 1 or times[-1] > times[0]:
            return hidden, times[hidden:], fps
    return 0, None if fps is None else (np.arange(len(reader)) / fps).round(3), fps


def _between(
    file: Path, numbers: np.ndarray, times: np.ndarray | None, start: float | None, end: float | None
) -> np.ndarray:
    """Those of the frames' numbers whose times lie from `start` to `end`."""
    if start is None and end is None:
        return numbers
    if times is None:
        raise ValueError(f"video {str(file)!r} tells no times; leave start and end out")
    inside = (times >= (-math.inf if start is None else start)) & (times <= (math.inf if end is None else end))
    if not inside.any():
        raise ValueError(
            f"start is {start!r} and end {end!r}, but video {str(file)!r} has no frame in between; "
            f"its frames are shown from 0 to {times[-1]:.3f} s"
        )
    return numbers[inside]


def _decode(file: Path, reader: Any, hidden: int, chosen: list[int]) -> list[np.ndarray]:
    """The chosen frames, one at a time: on some files decord's `get_batch` never returns."""
    import decord

    keys = reader.get_key_indices()
    group = keys[1] if len(keys) > 1 else len(reader)
    number = 0
    try:
        if chosen[-1] + hidden < group or _jumps_hit(reader, group, hidden):
            pictures = []
            for number in chosen:
                # decord numbers the frames of the first group as if none of them was hidden.
                pictures.append(_pixels(reader[number if number + hidden < group else number + hidden]))
            return pictures
        reader.seek(0)
        wanted, pictures = set(chosen), []
        for number in range(chosen[-1] + 1):
            frame = reader.next()
            if number in wanted:
                pictures.append(_pixels(frame))
        return pictures
    except (RuntimeError, StopIteration, decord.DECORDError, decord.DECORDLimitReachedError) as error:
        raise ValueError(
            f"video {str(file)!r} is cut off or damaged: frame {number} can't be decoded ({_reason(error)}); "
            "save what can be read by: ffmpeg -i FILE whole.mp4"
        ) from None


def _jumps_hit(reader: Any, key: int, hidden: int) -> bool:
    """Whether a jump to the second key frame gives the frame that is found there by decoding from the beginning."""
    if hidden >= key:
        return False
    before = None
    for _ in range(key - hidden):
        before = reader.next()
    there = _pixels(reader.next())
    return np.array_equal(there, _pixels(reader[key])) and not np.array_equal(there, _pixels(before))


def _pixels(frame: Any) -> np.ndarray:
    """uint8 [H, W, 3]; decord gives an array of its own, or what a bridge that the program set makes of it."""
    picture = frame.asnumpy() if hasattr(frame, "asnumpy") else np.asarray(frame)
    height, width, _ = picture.shape
    # Rows of less than 64 pixels are padded, and decord takes the padding for more channels.
    return picture.reshape(height, -1)[:, : 3 * width].reshape(height, width, 3)
