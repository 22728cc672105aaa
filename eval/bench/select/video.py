"""Random stand-ins for a model that is shown a video, with frames as LLaVA-OneVision has them: 14 × 14 tokens.

Features are those of a still picture with noise, over which a square of 7 × 7 tokens moves by one token a frame; every
16 frames both change. So most tokens repeat the frame before, and a video of 64 frames has 12544 tokens. The tower is
that of images; it sees frames of 28 × 28 patches, of which 2 × 2 make a token by their mean.
"""

import math
from typing import ClassVar

import torch
from torch import Tensor

from vtc.eval.bench.select.scene import WIDTH, CropPlan, Scene
from vtc.method.visual_tokens import Crops, Projection
from vtc.model.layout import Grid

#: Frames from one cut to the next.
SHOT = 16
#: Noise in each frame: the cosine of two frames' tokens at one place is 1 / (1 + NOISE²), 0.92.
NOISE = 0.3


class VideoScene(Scene):
    """One video of `frames` frames, between 10 and 20 text tokens.

    Args:
        frames: T.
        device: as for an image.

    Class attributes:
        side: tokens along a side of a frame; half of it, rounded up, is the side of what moves.
        patches: along a side of a token.
    """

    kind: ClassVar[str] = "video"
    counted: ClassVar[str] = "frames"
    warm_up: ClassVar[int] = 2
    side: ClassVar[int] = 14
    patches: ClassVar[int] = 2

    @classmethod
    def of_frames(cls, tokens: int, patches: int = 2) -> type["VideoScene"]:
        """The same with frames of so many tokens, a square number, each of patches × patches."""
        return type(cls.__name__, (cls,), {"side": math.isqrt(tokens), "patches": patches})

    def __init__(self, frames: int, device: torch.device):
        super().__init__(frames * self.side**2, device)
        self.frames = frames
        self.crops = CropPlan(frames, self.patches * self.side)

    @property
    def grids(self) -> tuple[Grid, ...]:
        """One grid, without newlines."""
        return (Grid(0, self.frames, self.side, self.side),)

    def of_tokens(self, values: Tensor, prefix: int) -> Tensor:
        """Values of the tower's rows [T, prefix + P, ...] as values of the video's tokens [1, N, ...]: means."""
        cells = values[:, prefix:].unflatten(1, (self.side, self.patches, self.side, self.patches))
        return cells.mean(dim=(2, 4)).reshape(1, self.tokens, *values.shape[2:])

    def features(self) -> Tensor:
        """Tensor [1, N, D]: a still picture, a square that moves over it, noise, and cuts."""
        side, moving = self.side, (self.side + 1) // 2
        video = NOISE * self.random(self.frames, side, side, WIDTH)
        for frame in range(self.frames):
            if frame % SHOT == 0:
                picture, square = self.random(side, side, WIDTH), self.random(moving, moving, WIDTH)
            shown, start = picture.clone(), frame % (side - moving + 1)
            shown[start : start + moving, start : start + moving] = square
            video[frame] += shown
        return video.view(1, self.tokens, WIDTH)

    def token_crops(self) -> Crops:
        """The frame of each token."""
        place = torch.arange(self.tokens)
        return Crops(place // self.side**2, place % self.side**2, self.frames, (self.side, self.side))

    def projection(self, prefix: int) -> Projection | None:
        """None where several patches make a token."""
        return super().projection(prefix) if self.patches == 1 else None
