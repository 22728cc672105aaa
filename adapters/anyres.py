"""Families that cut an image into tiles and pack them with a thumbnail and newline rows: llava_next, llava_onevision.

How the packing goes (unpadding, newlines, scaling down) is the family's own code. Instead of repeating it, it is
asked: the recorded packing call is made again with scores, or with the coordinates of each patch, in place of
features. What comes out at a token is then that token's score or place, and NaN marks the newlines.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor

from vtc.adapters.generic import Adapter
from vtc.layout import Grid
from vtc.recorded import Features


class AnyresAdapter(Adapter):
    """LLaVA-NeXT and LLaVA-OneVision: tiles, thumbnail, newline rows."""

    families: ClassVar[tuple[str, ...]] = ("llava_next", "llava_onevision", "llava_next_video")

    def grids(self, features: Features, index: int, tokens: int) -> tuple[Grid, ...]:
        """Thumbnail and tiles of an image, from where the packing puts each patch."""
        if features.packing is None:
            return super().grids(features, index, tokens)
        crops = self._packed_features(features)[index]
        count, patches = crops.shape[:2]
        side = round(patches**0.5)
        if count == 1:
            return (Grid(0, 1, side, side, end=tokens - patches),)
        rows = self._rows(features, index, tokens - patches)
        return (
            Grid(0, 1, side, side, kind="thumbnail"),
            Grid(patches, 1, len(rows), rows[0] - 1, row_end=1, kind="tiles"),
        )

    def _rows(self, features: Features, index: int, tokens: int) -> list[int]:
        """Lengths of the rows of tiles, newline included."""
        crops = [torch.zeros(*crop.shape[:2], 1) for crop in self._packed_features(features)]
        values = self._pack(features, crops)[index][-tokens:, 0]
        ends = values.isnan().nonzero().flatten() + 1
        return ends.diff(prepend=ends.new_zeros(1)).tolist()

    def to_tokens(self, values: Tensor, features: Features, tokens: list[int]) -> list[Tensor]:
        """Scores through the family's own packing."""
        if features.packing is None:
            return super().to_tokens(values, features, tokens)
        if self.parts.has_cls:
            values = values[:, 1:]
        parts = values[..., None].split([len(crops) for crops in self._packed_features(features)])
        return [packed[:, 0] for packed in self._pack(features, list(parts))]

    @staticmethod
    def _packed_features(features: Features) -> list[Tensor]:
        """What was packed: for each image, Tensor [crops, P, D]."""
        assert features.packing is not None
        args, kwargs = features.packing
        return list(args[0] if args else kwargs["image_features"])

    def _pack(self, features: Features, crops: list[Tensor]) -> list[Tensor]:
        """The recorded packing call on other `crops` ([crops, P, C] per image), with NaN for the newline."""
        assert features.packing is not None
        args, kwargs = features.packing
        newline = torch.full((crops[0].shape[-1],), float("nan"), device=crops[0].device)
        kwargs = {**kwargs, "image_newline": newline}
        if args:
            args = (crops, *args[1:])
        else:
            kwargs["image_features"] = crops
        original: Any = type(self.parts.composite).pack_image_features  # type: ignore[attr-defined]
        packed = original(self.parts.composite, *args, **kwargs)
        return list(packed[0] if isinstance(packed, tuple) else packed)
