"""Video-LLaVA: one tower for images and one for videos; every frame of a video brings its CLS token along."""

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vtc.adapters.cells import runs_by_row
from vtc.adapters.finding import block_of_hidden_state, has_cls, longest_list
from vtc.adapters.generic import Adapter
from vtc.model.layout import Grid
from vtc.tower.features import Features


class VideoLlavaAdapter(Adapter):
    """Each frame of a video makes a CLS token, which stands for no place in it, and one token per patch.

    All frames of a video stand in one unbroken run of placeholders; two videos that touch are taken for one. Both
    towers are of one shape. Images come without their CLS token, as in LLaVA.
    """

    families: ClassVar[tuple[str, ...]] = ("video_llava",)
    frame_front: ClassVar[int] = 1

    def __init__(self, model: nn.Module):
        super().__init__(model)
        composite: Any = self.parts.composite
        self.tower = composite.image_tower
        blocks = longest_list(self.tower)
        self.parts = replace(
            self.parts,
            blocks=blocks,
            twins=(longest_list(composite.video_tower),),
            has_cls=has_cls(self.tower),
            feature_layer=max(block_of_hidden_state(layer, len(blocks)) for layer in self.feature_layers),
        )

    def _split(self, mask: Tensor, features: Features, ids: Tensor | None) -> list[tuple[int, Tensor]]:
        """Videos by their runs, since their features come by the frame."""
        if features.kind == "image":
            return super()._split(mask, features, ids)
        return runs_by_row(mask)

    def grids(self, features: Features, index: int, tokens: int) -> tuple[Grid, ...]:
        """Square frames, those of videos each behind its CLS token."""
        if features.kind == "image":
            return super().grids(features, index, tokens)
        config: Any = self.parts.composite.config
        side = config.vision_config.image_size // config.vision_config.patch_size
        return (Grid(0, tokens // (side**2 + 1), side, side, front=self.frame_front),)

    def patches(self, features: Features, shape: tuple[int, int], tokens: list[int] | None = None) -> list[Tensor]:
        """Patches in raster order, in videos behind the CLS token of their frame, which is none."""
        if features.kind == "image":
            return super().patches(features, shape, tokens)
        frames, per_frame = shape
        rows = torch.arange(frames * per_frame).view(frames, per_frame)
        rows = torch.cat([torch.full((frames, 1), -1), rows], dim=1).view(-1, 1)
        return list(rows.split([per_frame + 1] * frames if tokens is None else tokens))
