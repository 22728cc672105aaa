"""A picture of what a method kept: kept patches bright, dropped ones dim, merged ones outlined."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageEnhance
from torch import Tensor

from vtc.tracing import ImageTrace

DIM, OUTLINE, SMALLEST_SIDE, GAP = 0.25, (240, 180, 40), 448, 8


def seen_by_model(image: Image.Image, inputs: dict[str, Any], processor: Any) -> list[Image.Image]:
    """The crops that the tower got, as pictures; the whole image where its input is not made of crops.

    Args:
        image: the picture that was asked about.
        inputs: the processor's output for it.
        processor: tells mean and deviation.
    """
    return as_pictures(inputs.get("pixel_values"), getattr(processor, "image_processor", None)) or [image]


def as_pictures(pixels: Any, maker: Any) -> list[Image.Image]:
    """What `maker` made [..., 3, H, W] of pictures, as pictures again; none where it is something else."""
    if not isinstance(pixels, Tensor) or pixels.dim() not in (4, 5) or pixels.shape[-3] != 3:
        return []
    pixels = pixels.detach().float().cpu().flatten(0, -4)
    if getattr(maker, "do_normalize", False):
        mean, deviation = (torch.tensor(getattr(maker, name)).view(3, 1, 1) for name in ("image_mean", "image_std"))
        pixels = pixels * deviation + mean
    array = (pixels.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(crop) for crop in array]


@dataclass(frozen=True)
class View:
    """A picture, or a frame of a video, as the model saw it.

    Attributes:
        picture: what it saw.
        tokens: LongTensor [H, W]: the tokens, as the trace numbers them, of the patches that it falls into.
        trace: tells what became of them.
        time: seconds at which a frame is shown; None where unknown.
    """

    picture: Image.Image
    tokens: Tensor
    trace: ImageTrace
    time: float | None = None

    def kept(self, layer: int = -1) -> int:
        """How many of its tokens enter decoder `layer`; -1: after the last removal."""
        return int(torch.isin(self.tokens, self.trace.kept(layer)).sum())

    def merged(self, layer: int = -1) -> int:
        """How many of its tokens went into others that enter decoder `layer`."""
        into = self.trace.merged_into(layer)
        if into is None:
            return 0
        return int(((into[self.tokens] >= 0) & ~torch.isin(self.tokens, self.trace.kept(layer))).sum())

    def marked(self, layer: int = -1) -> Image.Image:
        """The picture with its patches marked, as they are in front of decoder `layer`."""
        view, (height, width) = self.picture, self.tokens.shape
        kept, into = set(self.trace.kept(layer).tolist()), self.trace.merged_into(layer)
        made = ImageEnhance.Brightness(view).enhance(DIM)
        draw = ImageDraw.Draw(made)
        columns = [round(i * view.width / width) for i in range(width + 1)]
        rows = [round(i * view.height / height) for i in range(height + 1)]
        for y, line in enumerate(self.tokens.tolist()):
            for x, token in enumerate(line):
                box = columns[x], rows[y], columns[x + 1], rows[y + 1]
                if token in kept:
                    made.paste(view.crop(box), box[:2])
                elif into is not None and into[token] >= 0:
                    draw.rectangle((box[0] + 1, box[1] + 1, box[2] - 2, box[3] - 2), outline=OUTLINE)
        return made


def view_of_picture(crops: Sequence[Image.Image], trace: ImageTrace) -> View:
    """The model's view of a picture, enlarged where it is small.

    Args:
        crops: from `seen_by_model`; where there are several (tiles with a thumbnail), it is the thumbnail.
        trace: of that picture.
    """
    grids = trace.source.grids
    number = next((i for i, grid in enumerate(grids) if grid.kind == "thumbnail"), len(grids) - 1)
    view = _enlarged(crops[number] if len(crops) == len(grids) else crops[0])
    return View(view, grids[number].tokens()[0], trace)


def draw_kept(view: View) -> Image.Image:
    """A view beside the same view with its patches marked."""
    picture = view.picture
    both = Image.new("RGB", (2 * picture.width + GAP, picture.height), "white")
    both.paste(picture, (0, 0))
    both.paste(view.marked(), (picture.width + GAP, 0))
    return both


def _enlarged(view: Image.Image) -> Image.Image:
    factor = max(1, -(-SMALLEST_SIDE // min(view.size)))
    return view.resize((view.width * factor, view.height * factor), Image.Resampling.BICUBIC)
