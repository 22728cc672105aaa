"""Qwen-VL and its like: one packed sequence of patches, 2 × 2 merging, attention windows in Qwen2.5-VL."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from vtc.adapters.generic import Adapter
from vtc.method.patches import Picture
from vtc.tower.features import Features

#: Deviation of the channels of the pictures that CLIP was trained on, by which its processors divide.
_CLIP = (0.26862954, 0.26130258, 0.27577711)


class QwenVLAdapter(Adapter):
    """The tower's patches come in groups of merge² that make one token; Qwen2.5-VL permutes the groups by window."""

    families: ClassVar[tuple[str, ...]] = (
        "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "glm4v", "glm4v_moe", "qwen3_5", "qwen3_5_moe",
    )  # fmt: skip
    follows_patches: ClassVar[bool] = True
    shows_pixels: ClassVar[bool] = True

    @property
    def mergers(self) -> tuple[nn.Module, ...]:
        """The merger, and those of DeepStack."""
        return (self.tower.merger, *getattr(self.tower, "deepstack_merger_list", ()))

    def patches(self, features: Features, shape: tuple[int, int], tokens: list[int] | None = None) -> list[Tensor]:
        """Groups of patches that stand together, in the order of the tower's windows."""
        tokens = self.token_counts(features, shape) if tokens is None else tokens
        cell, count = self.tower.spatial_merge_size**2, shape[0] * shape[1]
        if count != cell * sum(tokens):
            raise ValueError(
                f"{self.family}: {count} patches of the vision tower do not make {sum(tokens)} visual "
                f"tokens of {cell} each; choose a method that does not read the tower, such as 'divprune'"
            )
        rows = torch.arange(count).view(-1, cell)
        if hasattr(self.tower, "window_size"):
            rows = rows[torch.argsort(self._window_index(features)).cpu()]
        return list(rows.split(tokens))

    def pictures(self, features: Features, pixels: dict[str, Tensor]) -> tuple[Picture, ...]:
        """What each encoded image or video shows, in cells of merge² patches.

        Args:
            features: the call that makes the features.
            pixels: the real numbers that it was given.

        Raises:
            ValueError: none of them has a row for each patch.
        """
        grids, merge = self._thw(features), self.tower.spatial_merge_size
        assert grids is not None  # else there would be no features
        counts = grids.prod(dim=1).tolist()
        rows = [value.flatten(0, -2) for value in pixels.values() if value.dim() > 1]
        found = [each for each in rows if len(each) == sum(counts)]
        if len(found) != 1:
            told = ", ".join(f"{name} {tuple(value.shape)}" for name, value in pixels.items())
            raise ValueError(f"{self.family}: which of {told} has a row for each of {sum(counts)} patches is not known")
        deviation = (0.5,) * 3 if self.family.startswith("qwen3") else _CLIP
        return tuple(
            Picture(part.reshape(t, h // merge, w // merge, merge**2, len(deviation), -1), deviation)
            for part, (t, h, w) in zip(found[0].split(counts), grids.tolist())
        )

    def _window_index(self, features: Features) -> Tensor:
        """The tower's order of merged tokens: that of its attention windows."""
        from transformers import vision_utils

        grids = self._thw(features)
        assert grids is not None  # else there would be no features

        index = vision_utils.get_vision_window_index(
            grids,
            spatial_merge_size=self.tower.spatial_merge_size,
            window_size=self.tower.window_size,
            patch_size=self.tower.patch_size,
        )
        return torch.as_tensor(index[0])


class ErnieVLAdapter(QwenVLAdapter):
    """ERNIE 4.5 VL: the same groups of patches, made into tokens outside of the tower."""

    families: ClassVar[tuple[str, ...]] = ("ernie4_5_vl_moe",)
    follows_patches: ClassVar[bool] = False

    @property
    def mergers(self) -> tuple[nn.Module, ...]:
        """None within the tower."""
        return ()
