"""Qwen-VL and its like: one packed sequence of patches, 2 × 2 merging, attention windows in Qwen2.5-VL."""

from typing import ClassVar

import torch
from torch import Tensor

from vtc.adapters.generic import Adapter
from vtc.recorded import Features


class QwenVLAdapter(Adapter):
    """The tower's patches come in groups of merge² that make one token; Qwen2.5-VL permutes the groups by window."""

    families: ClassVar[tuple[str, ...]] = (
        "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "glm4v", "glm4v_moe", "qwen3_5", "qwen3_5_moe",
    )  # fmt: skip

    def to_tokens(self, values: Tensor, features: Features, tokens: list[int]) -> list[Tensor]:
        """Mean over the patches of each token, in raster order."""
        cell = self.tower.spatial_merge_size**2
        if values.numel() != cell * sum(tokens):
            raise ValueError(
                f"{self.family}: {values.numel()} patches of the vision tower do not make {sum(tokens)} visual "
                f"tokens of {cell} each; choose a method that does not read the tower, such as 'divprune'"
            )
        merged = values.flatten().view(-1, cell).mean(dim=1)
        if hasattr(self.tower, "window_size"):
            merged = merged[torch.argsort(self._window_index(features)).to(merged.device)]
        return list(merged.split(tokens))

    def _window_index(self, features: Features) -> Tensor:
        """The tower's order of merged tokens: that of its attention windows."""
        from transformers import vision_utils

        grid = features.arguments.get(f"{features.kind}_grid_thw")
        if grid is None:
            grid = next(a for a in features.arguments["args"] if not a.is_floating_point())
        index = vision_utils.get_vision_window_index(
            grid,
            spatial_merge_size=self.tower.spatial_merge_size,
            window_size=self.tower.window_size,
            patch_size=self.tower.patch_size,
        )
        return torch.as_tensor(index[0])
