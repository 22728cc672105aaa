"""Random stand-ins for a model that is shown a video, with frames as LLaVA-OneVision has them: 14 × 14 tokens.

Features are those of a still picture with noise, over which a square of 7 × 7 tokens moves by one token a frame; every
16 frames both change. So most tokens repeat the frame before, and a video of 64 frames has 12544 tokens. The tower is
that of images; it sees frames of 28 × 28 patches, of which 2 × 2 make a token by their mean.
"""

from typing import ClassVar

import torch
from torch import Tensor

from vtc.eval.bench.select.scene import WIDTH, CropPlan, Scene
from vtc.method.visual_tokens import Crops, Projection
from vtc.model.layout import Grid

#: Tokens along a side of a frame, and patches along a side of a token.
SIDE, PATCHES = 14, 2
#: Tokens along a side of what moves; frames from one cut to the next.
MOVING, SHOT = 7, 16
#: Noise in each frame: the cosine of two frames' tokens at one place is 1 / (1 + NOISE²), 0.92.
NOISE = 0.3


class VideoScene(Scene):
    """One video of `frames` frames, between 10 and 20 text tokens.

    Args:
        frames: T.
        device: as for an image.
    """

    kind: ClassVar[str] = "video"
    counted: ClassVar[str] = "frames"
    warm_up: ClassVar[int] = 2

    def __init__(self, frames: int, device: torch.device):
        super().__init__(frames * SIDE**2, device)
        self.frames = frames
        self.crops = CropPlan(frames, PATCHES * SIDE)

    @property
    def grids(self) -> tuple[Grid, ...]:
        """One grid, without newlines."""
        return (Grid(0, self.frames, SIDE, SIDE),)

    def of_tokens(self, values: Tensor, prefix: int) -> Tensor:
        """Values of the tower's rows [T, prefix + P, ...] as values of the video's tokens [1, N, ...]: means."""
        cells = values[:, prefix:].unflatten(1, (SIDE, PATCHES, SIDE, PATCHES))
        return cells.mean(dim=(2, 4)).reshape(1, self.tokens, *values.shape[2:])

    def features(self) -> Tensor:
        """Tensor [1, N, D]: a still picture, a square that moves over it, noise, and cuts."""
        video = NOISE * self.random(self.frames, SIDE, SIDE, WIDTH)
        for frame in range(self.frames):
            if frame % SHOT == 0:
                picture, square = self.random(SIDE, SIDE, WIDTH), self.random(MOVING, MOVING, WIDTH)
            shown, start = picture.clone(), frame % (SIDE - MOVING + 1)
            shown[start : start + MOVING, start : start + MOVING] = square
            video[frame] += shown
        return video.view(1, self.tokens, WIDTH)

    def token_crops(self) -> Crops:
        """The frame of each token."""
        place = torch.arange(self.tokens)
        return Crops(place // SIDE**2, place % SIDE**2, self.frames, (SIDE, SIDE))

    def projection(self, prefix: int) -> Projection | None:
        """None: four patches make a token."""
        return None
