"""Families that cut an image into tiles and pack them with a thumbnail and newline rows: llava_next, llava_onevision.

How the packing goes (unpadding, newlines, scaling down) is the family's own code. Instead of repeating it, it is
asked: the recorded packing call is made again with scores, or with the coordinates of each patch, in place of
features. What comes out at a token is then that token's score or place, and NaN marks the newlines.
"""

import math
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from vtc.adapters.generic import Adapter
from vtc.calls.composite import IMAGE_SIZES, PACKING, PICTURES_PER_ROW, PackingCall, packing_arguments
from vtc.model.layout import Grid
from vtc.tower.features import Features


class AnyresAdapter(Adapter):
    """LLaVA-NeXT and LLaVA-OneVision: tiles, thumbnail, newline rows."""

    families: ClassVar[tuple[str, ...]] = ("llava_next", "llava_onevision", "llava_next_video")
    projects_rows: ClassVar[bool] = True
    follows_patches: ClassVar[bool] = True

    def grids(self, features: Features, index: int, tokens: int) -> tuple[Grid, ...]:
        """Thumbnail and tiles of an image, from where the packing puts each patch; the frames of a video."""
        side = self._side
        if self._pools(features):
            pooled = self._pooled_side
            frames = tokens // pooled**2
            whole = features.shape[0] in (0, frames * features.images) and tokens - frames * pooled**2 in (0, 1)
            grid = Grid(0, frames, pooled, pooled, end=tokens - frames * pooled**2)
            return (grid,) if whole else self.unknown_grid(features, tokens)
        features = self._with_packing(features)
        if features.packing is None or self._tokens(features)[index : index + 1] != [tokens]:
            return self.unknown_grid(features, tokens)
        count = self._crops(features)[index]
        patches = side * side
        if count == 1:
            return (Grid(0, 1, side, side, end=tokens - patches),)
        rows = self._rows(features, index, tokens - patches)
        return (
            Grid(0, 1, side, side, kind="thumbnail"),
            Grid(patches, 1, len(rows), rows[0] - 1, row_end=1, kind="tiles"),
        )

    def _split(self, mask: Tensor, features: Features, ids: Tensor | None) -> list[tuple[int, Tensor]]:
        """As elsewhere; some releases put the newline behind a video when its features have been made (until 5.19)."""
        if features.kind == "video" and sum(features.sizes) + len(features.sizes) == int(mask.sum()):
            features = replace(features, sizes=[size + 1 for size in features.sizes])
        return super()._split(mask, features, ids)

    def _with_packing(self, features: Features) -> Features:
        """With the packing as the family will call it, where it was not seen, and the call tells the sizes."""
        if features.packing is not None or features.arguments.get(IMAGE_SIZES) is None:
            return features
        return replace(features, packing=((), self._packing_arguments(features.arguments)))

    def _tokens(self, features: Features) -> list[int]:
        """Tokens of each packed image."""
        return list(map(len, self._pack(features, self._blank(features))))

    def _blank(self, features: Features) -> list[Tensor]:
        """Crops of zeros for each image."""
        return [torch.zeros(count, self._side**2, 1) for count in self._crops(features)]

    @property
    def _pooled_side(self) -> int:
        """Tokens along a side of a pooled frame."""
        config: Any = self.parts.composite.config
        if getattr(config, "spatial_pool_mode", None) == "conv":
            return self._side // config.spatial_pool_stride
        return math.isqrt(self._pool(torch.zeros(1, self._side**2, 1)).shape[1])

    @property
    def _side(self) -> int:
        """Patches along a side of a crop."""
        config: Any = self.parts.composite.config
        return config.vision_config.image_size // config.vision_config.patch_size

    def _rows(self, features: Features, index: int, tokens: int) -> list[int]:
        """Lengths of the rows of tiles, newline included."""
        values = self._pack(features, self._blank(features))[index][-tokens:, 0]
        ends = values.isnan().nonzero().flatten() + 1
        return ends.diff(prepend=ends.new_zeros(1)).tolist()

    def to_tokens(self, values: Tensor, features: Features, tokens: list[int]) -> list[Tensor]:
        """Values through the family's own packing, those of videos through its own pooling of frames."""
        if features.packing is None and not self._pools(features):
            return super().to_tokens(values, features, tokens)
        if self.parts.has_cls:
            values = values[:, 1:]
        rows = values.reshape(*values.shape[:2], -1)
        if self._pools(features):
            pooled = self._pool(rows).unflatten(0, (len(tokens), -1)).flatten(1, 2)
            newline = pooled.new_full((tokens[0] - pooled.shape[1], pooled.shape[2]), float("nan"))
            return [torch.cat([video, newline]).view(-1, *values.shape[2:]) for video in pooled]
        packed = self._pack(features, list(rows.split(self._crops(features))))
        return [image.view(-1, *values.shape[2:]) for image in packed]

    def _pools(self, features: Features) -> bool:
        """Whether these are frames of videos, which are scaled down by half or so."""
        return features.kind == "video" and features.packing is None

    def _pool(self, frames: Tensor) -> Tensor:
        """The family's own pooling of frames, [F, P, C] -> [F, S, C]."""
        composite: Any = self.parts.composite
        if hasattr(composite, "apply_pooling"):
            return composite.apply_pooling(frames)
        if composite.config.spatial_pool_mode == "conv":
            raise ValueError(
                f"{self.family} pools video frames by a learned convolution, through which scores can't be followed; "
                "use a method that does not read the tower, such as 'divprune'"
            )
        return composite.vision_resampler(frames)

    def patches(self, features: Features, shape: tuple[int, int], tokens: list[int] | None = None) -> list[Tensor]:
        """Patches by number through the family's own packing; those that unpadding cuts off make no token."""
        if self._pools(features):
            raise ValueError(
                f"{self.family} pools the frames of a video behind the tower, where a reducer inside it can't follow; "
                "use a selector such as 'divprune'"
            )
        features = self._with_packing(features)
        numbers = torch.arange(shape[0] * shape[1], dtype=torch.float64).view(*shape, 1)
        packed = self._pack(features, list(numbers.split(self._crops(features))))
        if any((image % 1 > 0).any() for image in packed):
            raise ValueError(
                f"{self.family} scales the tokens of so large an image down behind the tower, so that its patches "
                "can't be followed; give a smaller image, or use a method that does not read the tower: 'divprune'"
            )
        return [image.nan_to_num(-1.0).long() for image in packed]

    def _crops(self, features: Features) -> list[int]:
        """Crops of each image."""
        assert features.packing is not None
        call = PackingCall(*features.packing)
        if call.features is not None:
            return [len(crops) for crops in call.features]
        from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

        config: Any = self.parts.composite.config
        sizes, counts = call.sizes, features.arguments.get(PICTURES_PER_ROW)
        tiled = [True] * len(sizes) if counts is None else [n == 1 for n in counts for _ in range(n)]
        side, pinpoints = config.vision_config.image_size, config.image_grid_pinpoints
        return [image_size_to_num_patches(size, pinpoints, side) if t else 1 for size, t in zip(sizes, tiled)]

    @property
    def _packing_method(self) -> Any:
        return getattr(type(self.parts.composite), PACKING)

    def _packing_arguments(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The arguments with which the family will pack the features, but for the features and the newline."""
        return packing_arguments(self._packing_method, self.parts.composite.config, arguments)

    def _pack(self, features: Features, crops: list[Tensor]) -> list[Tensor]:
        """The recorded packing call on other `crops` ([crops, P, C] per image), with NaN for the newline."""
        assert features.packing is not None
        call = PackingCall(*features.packing)
        call.newline = torch.full((crops[0].shape[-1],), float("nan"), device=crops[0].device, dtype=crops[0].dtype)
        call.features = crops
        packed = self._packing_method(self.parts.composite, *call.given[0], **call.named)
        return list(packed[0] if isinstance(packed, tuple) else packed)
