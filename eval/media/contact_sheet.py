"""A picture of what a method kept of a video: the frames as a contact sheet, or one after another."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vtc.eval.media.picture import GAP, View, as_pictures
from vtc.eval.media.video import Video
from vtc.tracing import ImageTrace

#: Endings of pictures that move.
MOVING = (".gif", ".webp")
#: Most frames that are drawn; of more, evenly many are left out.
MOST = 64

_WIDTH, _CAPTION, _BARS, _COLUMNS = 224, 18, 56, 4
_TEXT, _ALL, _BAR, _OTHER = (60, 60, 60), (225, 225, 225), (60, 110, 180), (157, 182, 217)


class UnknownFramesError(ValueError):
    """Which frames of the video the model's are can't be told."""


@dataclass(frozen=True)
class Panel:
    """One frame as it is drawn.

    Attributes:
        picture: dropped patches dim, kept ones bright, merged ones outlined.
        time: seconds at which it is shown; None where unknown.
        kept, given: its visual tokens with and without compression.
    """

    picture: Image.Image
    time: float | None
    kept: int
    given: int

    @property
    def caption(self) -> str:
        """Time and tokens."""
        return ("" if self.time is None else f"{self.time:.2f} s: ") + f"kept {self.kept} of {self.given}"


def draw_video(video: Video, inputs: dict[str, Any], processor: Any, traces: Sequence[ImageTrace]) -> list[Panel]:
    """A panel for each of `views_of_video`, of which it takes the arguments and what they raise."""
    return [_panel(view) for view in views_of_video(video, inputs, processor, traces)]


def views_of_video(video: Video, inputs: dict[str, Any], processor: Any, traces: Sequence[ImageTrace]) -> list[View]:
    """A view for each frame of the model: two or more sampled frames, where its tower sees so many at once.

    Args:
        video: what was asked about.
        inputs: the processor's output for it.
        processor: tells mean and deviation.
        traces: of all that the prompt shows: one video, or an image for each frame.

    Raises:
        UnknownFramesError: which frames of the video those of the model are can't be told.
    """
    grids = [(trace, tokens) for trace in traces for grid in trace.source.grids for tokens in grid.tokens()]
    count = len(video.frames)
    together = math.ceil(count / max(len(grids), 1))
    if math.ceil(count / together) != len(grids):
        raise UnknownFramesError(f"the model makes {len(grids)} frames of {count}, and which are which is unknown")
    pictures = frames_seen_by_model(video.frames, inputs, processor)
    views = []
    for index in range(0, len(grids), math.ceil(len(grids) / MOST)):
        trace, tokens = grids[index]
        frame = min(index * together, count - 1)
        time = None if video.times is None else video.times[frame]
        views.append(View(pictures[frame], tokens, trace, time))
    return views


def frames_seen_by_model(frames: np.ndarray, inputs: dict[str, Any], processor: Any) -> list[Image.Image]:
    """The frames that the tower got, as pictures; those of the file where its input is not made of frames."""
    pixels = inputs.get("pixel_values_videos", inputs.get("pixel_values"))
    maker = getattr(processor, "video_processor", getattr(processor, "image_processor", None))
    seen = as_pictures(pixels, maker)
    return seen if len(seen) == len(frames) else [Image.fromarray(frame) for frame in frames]


def _panel(view: View) -> Panel:
    picture = view.picture
    height = max(1, round(_WIDTH * picture.height / picture.width))
    view = dataclasses.replace(view, picture=picture.resize((_WIDTH, height), Image.Resampling.BICUBIC))
    return Panel(view.marked(), view.time, view.kept(), view.tokens.numel())


def save(panels: Sequence[Panel], file: Path) -> None:
    """Write a picture that moves where the file's ending says so, else the sheet.

    Raises:
        OSError: the file can't be written.
    """
    if file.suffix.lower() not in MOVING:
        sheet(panels).save(file)
        return
    first, *others = [_moving(panels, index) for index in range(len(panels))]
    times = [panel.time for panel in panels if panel.time is not None]
    seconds = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 0.5
    milliseconds = round(1000 * min(max(seconds, 0.1), 2))
    first.save(file, save_all=True, append_images=others, duration=milliseconds, loop=0)


def sheet(panels: Sequence[Panel]) -> Image.Image:
    """All panels with their captions, and below a bar for the tokens of each."""
    columns = min(len(panels), _COLUMNS if len(panels) <= 4 * _COLUMNS else 2 * _COLUMNS)
    lines = math.ceil(len(panels) / columns)
    height = panels[0].picture.height + _CAPTION + GAP
    width = columns * (_WIDTH + GAP) - GAP
    made = Image.new("RGB", (width, lines * height + _BARS), "white")
    for index, panel in enumerate(panels):
        _paste(made, panel, (index % columns * (_WIDTH + GAP), index // columns * height))
    made.paste(_bars(panels, width), (0, lines * height))
    return made


def _moving(panels: Sequence[Panel], index: int) -> Image.Image:
    """One panel with its caption, and below the bars, its own in full colour."""
    height = panels[0].picture.height + _CAPTION + GAP
    made = Image.new("RGB", (_WIDTH, height + _BARS), "white")
    _paste(made, panels[index], (0, 0))
    made.paste(_bars(panels, _WIDTH, index), (0, height))
    return made


def _paste(made: Image.Image, panel: Panel, corner: tuple[int, int]) -> None:
    made.paste(panel.picture, corner)
    below = corner[0] + 2, corner[1] + panel.picture.height + 2
    ImageDraw.Draw(made).text(below, panel.caption, fill=_TEXT, font=ImageFont.load_default(12))


def _bars(panels: Sequence[Panel], width: int, now: int | None = None) -> Image.Image:
    """Tokens kept of each panel, over all it has in grey; where `now` is given, the others are pale."""
    made = Image.new("RGB", (width, _BARS), "white")
    draw = ImageDraw.Draw(made)
    most = max(panel.given for panel in panels)
    for index, panel in enumerate(panels):
        left, right = index * width // len(panels), (index + 1) * width // len(panels) - 2
        for tokens, colour in ((panel.given, _ALL), (panel.kept, _BAR if now in (None, index) else _OTHER)):
            if tokens:
                draw.rectangle((left, _BARS - round(tokens / most * (_BARS - 2)), max(left, right), _BARS), fill=colour)
    return made
