"""Where the original LLaVA package puts the patches of images when it prepares a prompt.

How `prepare_inputs_labels_for_multimodal` expands placeholders, packs tiles, pads and truncates is the package's own
code. Instead of repeating it, it is asked: the call is made with the numbers of patches in place of features, and what
comes out at a place is the patch that stands there.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from vtc.calls.prepare import PrepareCall
from vtc.model.layout import Grid
from vtc.tower.features import Features

_NEWLINE, _TEXT = -1, -2  # tokens of images count from 1, a text id i is _TEXT - i, and padding is 0


@dataclass
class Prepared(Features):
    """The features of one prepared prompt, and where its patches went.

    Attributes:
        image: LongTensor [B, L]: which of the call's images a place belongs to; -1 at text and padding.
        patch: LongTensor [B, L]: which patch stands there (crop · P + patch of the crop, CLS not counted); -1 at
            newlines, CLS tokens, text and padding.
        text_ids: LongTensor [B, L]: ids of the text, 0 elsewhere.
        crops: crops of each image.
        per_crop: P, patches of a crop.
        labels: LongTensor [B, L]; None where the call had none.
    """

    image: Tensor = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.long))
    patch: Tensor = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.long))
    text_ids: Tensor = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.long))
    crops: list[int] = field(default_factory=list)
    per_crop: int = 0
    labels: Tensor | None = None

    @classmethod
    def of(cls, composite: nn.Module, call: PrepareCall, per_crop: int, cls_tokens: int) -> "Prepared":
        """Make the call with numbers.

        Args:
            composite: the model.
            call: how its prompt is prepared.
            per_crop: P, patches of a crop.
            cls_tokens: tokens in front of those of the patches, of each crop.
        """
        crops, tokens = _crops(call.images), per_crop + cls_tokens
        number = call.replayed(_Numbers(composite, tokens), _emptied(call.images))[..., 0]
        crop, patch = (number - 1) // tokens, (number - 1) % tokens - cls_tokens
        of_image = torch.arange(len(crops)).repeat_interleave(torch.tensor(crops))
        image = torch.where(number > 0, of_image[crop.clamp(min=0)], -1)
        place = torch.arange(number.shape[1]).expand_as(number)  # a newline belongs to the image in front of it
        image = image.gather(1, place.masked_fill(number == _NEWLINE, 0).cummax(dim=1).values)
        patch = torch.where((number > 0) & (patch >= 0), crop * per_crop + patch, -1)
        text_ids = torch.where(number <= _TEXT, _TEXT - number, 0)
        images = len(crops)
        return cls("image", images=images, image=image, patch=patch, text_ids=text_ids, crops=crops, per_crop=per_crop)

    def tail(self, rows: int, length: int) -> "Prepared":
        """The same for the last `length` places, each row repeated to make `rows`, as `generate` does for beams."""
        repeats, start = rows // len(self.image), self.image.shape[1] - length
        image, patch, text_ids = (
            x[:, start:].repeat_interleave(repeats, dim=0) for x in (self.image, self.patch, self.text_ids)
        )
        return replace(self, image=image, patch=patch, text_ids=text_ids, labels=None)

    def spans(self) -> Iterator[tuple[int, int, Tensor]]:
        """(row, image, its places LongTensor [N]) of every image in the sequence, row by row."""
        for row, image in enumerate(self.image):
            for index in image[image >= 0].unique_consecutive().tolist():
                yield row, index, (image == index).nonzero().flatten()

    def patches_of(self, index: int) -> Tensor:
        """LongTensor [N]: the patch behind each token of an image, -1 at newlines and CLS; all if it isn't shown."""
        where = (self.image == index).any(dim=1).nonzero().flatten()
        if len(where):
            return self.patch[where[0]][self.image[where[0]] == index]
        first = sum(self.crops[:index]) * self.per_crop
        return torch.arange(first, first + self.crops[index] * self.per_crop)


class _Numbers:
    """Stands for the model in the call: the same to ask, but crops and text are encoded as numbers [.., 1]."""

    device = torch.device("cpu")
    image_newline = torch.tensor([_NEWLINE])

    def __init__(self, composite: nn.Module, tokens: int):
        self._composite = composite
        self._tokens = tokens

    def __getattr__(self, name: str) -> Any:
        return getattr(self._composite, name)

    @property
    def model(self) -> "_Numbers":
        return self

    def get_model(self) -> "_Numbers":
        return self

    def embed_tokens(self, ids: Tensor) -> Tensor:
        return _TEXT - ids[..., None]

    def encode_images(self, images: Tensor) -> Tensor:
        return torch.arange(1, len(images) * self._tokens + 1).view(len(images), self._tokens, 1)


def grids_of(patch: Tensor, per_crop: int, joined: bool) -> tuple[Grid, ...]:
    """The grids of an image.

    Args:
        patch: LongTensor [N]: the patch behind each token, negative at newlines and CLS.
        per_crop: patches of a crop.
        joined: whether tiles are joined to one picture, behind a thumbnail.

    Returns:
        Squares of single crops; thumbnail and tiles; where an image was cut off, its unbroken runs of patches.
    """
    side = round(per_crop**0.5)
    crops = (patch[patch >= 0] // per_crop).unique_consecutive()
    grids: list[Grid | None] = [None]
    if joined and len(crops) > 1:
        grids = [_block(patch, 0, per_crop, side, "thumbnail"), _tiles(patch, per_crop, side)]
    elif len(crops) == len(crops.unique()):
        first = [int((patch // per_crop == crop).nonzero()[0]) for crop in crops]
        grids = [_block(patch, start, per_crop, side, "image") for start in first]
    complete = [grid for grid in grids if grid is not None]
    if len(complete) == len(grids) and sum(grid.h * grid.w for grid in complete) == int((patch >= 0).sum()):
        return tuple(complete)
    seen = (patch >= 0).tolist()
    starts = [token for token, here in enumerate(seen) if here and not (token and seen[token - 1])]
    stops = [token + 1 for token, here in enumerate(seen) if here and not any(seen[token + 1 : token + 2])]
    return tuple(Grid(start, 1, 1, stop - start) for start, stop in zip(starts, stops))


def _block(patch: Tensor, start: int, per_crop: int, side: int, kind: str) -> Grid | None:
    """The square of one crop from token `start` on; None where it isn't whole."""
    crop = patch[start : start + per_crop]
    whole = len(crop) == per_crop == side * side and bool((crop.diff() == 1).all())
    return Grid(start, 1, side, side, kind=kind) if whole else None


def _tiles(patch: Tensor, per_crop: int, side: int) -> Grid | None:
    """The joined tiles behind a thumbnail: rows of one length, with newlines or without; None where they aren't."""
    rest = patch[per_crop:]
    ends = (rest < 0).nonzero().flatten() + 1
    below = (rest == rest[0] + side).nonzero().flatten()  # the patch under the first one tells the width
    newline = int(len(ends) > 0)
    width = int(ends[0]) if newline else int(below[0]) if len(below) else 0
    if not width or len(rest) % width or (newline and ends.tolist() != list(range(width, len(rest) + 1, width))):
        return None
    return Grid(per_crop, 1, len(rest) // width, width - newline, row_end=newline, kind="tiles")


def _crops(images: Tensor | list[Tensor]) -> list[int]:
    """Crops of each image, as the package counts them."""
    if isinstance(images, Tensor):
        return [images.shape[1] if images.dim() == 5 else 1] * len(images)
    return [image.shape[0] if image.dim() == 4 else 1 for image in images]


def _emptied(images: Any) -> Any:
    """As many crops of one pixel each."""
    if isinstance(images, Tensor):
        return torch.empty(*images.shape[:-3], 1, 1, 1)
    return [_emptied(image) for image in images]
