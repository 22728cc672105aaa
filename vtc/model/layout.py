"""Where in the sequence the visual tokens of each image or video are, and the grid behind them."""

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """A T × H × W block of the visual tokens of one image, in raster order.

    Attributes:
        start: index of the first token within the image.
        t, h, w: frames, rows, columns.
        row_end: separator tokens (newlines) after each row.
        end: separator tokens after the whole block.
        front: separator tokens in front of each frame (a frame's CLS token, which stands for no place in it).
        kind: "image" (the whole picture), "thumbnail" (an overview beside tiles), "tiles" (the joined tiles), "tile"
            (one of several that are not joined), "video".
    """

    start: int
    t: int
    h: int
    w: int
    row_end: int = 0
    end: int = 0
    kind: str = "image"
    front: int = 0

    #: Whether rows and columns can be read.
    known: ClassVar[bool] = True

    def __len__(self) -> int:
        return self.t * self.frame + self.end

    def places(self) -> Tensor:
        """LongTensor [N]: the tokens of its cells, in raster order."""
        return self.tokens().flatten()

    def moved(self, start: int) -> "Grid":
        """The same grid, from another token on."""
        return replace(self, start=start)

    @property
    def is_video(self) -> bool:
        """Whether it is a video's, be it of one frame."""
        return self.kind == "video" or self.t > 1

    @property
    def frame(self) -> int:
        """Tokens from the start of one frame to that of the next."""
        return self.front + self.h * (self.w + self.row_end)

    def tokens(self) -> Tensor:
        """LongTensor [T, H, W]: index within the image of the token of each cell (separators left out)."""
        frames = self.start + self.front + torch.arange(self.t) * self.frame
        rows = torch.arange(self.h) * (self.w + self.row_end)
        return frames[:, None, None] + rows[:, None] + torch.arange(self.w)


@dataclass(frozen=True)
class UnknownGrid(Grid):
    """Tokens of which nobody told how they lie. Who asks for rows, columns or the frames of a video is refused.

    Attributes:
        family: for the sentence.
        still: whether they are of a picture, which is one frame.
    """

    family: str = ""
    still: bool = True
    known: ClassVar[bool] = False

    @classmethod
    def of(cls, tokens: int, family: str, kind: str) -> "UnknownGrid":
        """All `tokens` of a picture or, by `kind`, a video."""
        return cls(0, 1, 1, tokens, kind=kind, family=family, still=kind == "image")

    def __getattribute__(self, name: str) -> Any:
        own = object.__getattribute__(self, "__dict__")
        if name in ("h", "w", "frame", "tokens") or (name == "t" and not own["still"]):
            raise ValueError(
                f"{own['family']}: how the {own['w']} tokens of a picture lie in rows and columns is not known, as "
                "neither its call nor the model's config tells; where its features were made elsewhere, give what "
                "tells it beside mm_encoder_outputs (image_grid_thw, video_grid_thw, image_sizes) or give the pixels, "
                "or use a method that reads no grid, such as 'divprune'"
            )
        return object.__getattribute__(self, name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UnknownGrid) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash(tuple(vars(self).values()))

    def __repr__(self) -> str:
        return f"UnknownGrid({len(self)} tokens from {self.start} on)"

    def __len__(self) -> int:
        return vars(self)["w"]

    def places(self) -> Tensor:
        """LongTensor [N]: all of its tokens."""
        return torch.arange(self.start, self.start + len(self))

    def moved(self, start: int) -> Grid:
        """The same from another token on."""
        return UnknownGrid(start, 1, 1, len(self), kind=self.kind, family=self.family, still=self.still)


@dataclass(frozen=True)
class VisualInput:
    """One image or video in the sequence.

    Attributes:
        row: row of the batch.
        kind: "image" or "video".
        positions: LongTensor [N] on the CPU: places in the row, ascending (separators of mistral3 may sit between).
        grids: the blocks that make up the N tokens, in order.
        origin: which of the encoded images it is (beams show one image in several rows).
    """

    row: int
    kind: str
    positions: Tensor
    grids: tuple[Grid, ...]
    origin: int = 0

    def __len__(self) -> int:
        return len(self.positions)

    def separators(self) -> Tensor:
        """BoolTensor [N]: True at newline and CLS tokens, which stand for no place in the picture."""
        mask = torch.ones(len(self), dtype=torch.bool)
        for grid in self.grids:
            mask[grid.places()] = False
        return mask


@dataclass(frozen=True)
class Layout:
    """The visual tokens of one forward pass.

    Attributes:
        shape: (batch, length) of the sequence that was given.
        images: every image and video, row by row, in order.
        samples: LongTensor [B, L] on the CPU: the sample of its row that each token belongs to, ascending; None: a row
            is a sample.
    """

    shape: tuple[int, int]
    images: tuple[VisualInput, ...] = field(default=())
    samples: Tensor | None = None

    def sample_of(self, row: int, places: Tensor) -> tuple[int, int]:
        """(row, sample within it) that tokens at some places of a row belong to."""
        return row, 0 if self.samples is None else int(self.samples[row, places[0]])

    def owners(self) -> list[tuple[int, int]]:
        """(row, sample within it) of every sample."""
        counts = [1] * self.shape[0] if self.samples is None else (self.samples.max(dim=1).values + 1).tolist()
        return [(row, sample) for row, count in enumerate(counts) for sample in range(count)]

    def end_of(self, row: int, sample: int) -> int:
        """The place behind the last token of a sample."""
        if self.samples is None:
            return self.shape[1]
        return int((self.samples[row] <= sample).sum())

    def tokens_per_row(self) -> list[int]:
        """Visual tokens in each row of the batch."""
        counts = [0] * self.shape[0]
        for image in self.images:
            counts[image.row] += len(image)
        return counts
