"""Families whose towers mix, resample or reorder patches in ways that no rule here follows from patch to visual token.

llama4's CLS token stands last; video_llama_3 and minicpmv4_6 merge in windows of their own; aria asks the tower with
learned queries, idefics2 too; gemma4, granite4_vision and lfm2_vl make another number of tokens
than patches allow; step3p7 has convolutions behind its blocks, minicpmv4_7 merges between them.
"""

from dataclasses import replace
from typing import ClassVar

from torch import nn

from vtc.adapters.generic import Adapter
from vtc.adapters.grids import tile_grids
from vtc.calls.composite import MERGING, PLACEHOLDERS
from vtc.model.layout import Grid
from vtc.tower.features import Features


class UnmappedAdapter(Adapter):
    """Everything but methods that read the tower's attention."""

    families: ClassVar[tuple[str, ...]] = (
        "llama4",
        "video_llama_3",
        "minicpmv4_6",
        "aria",
        "gemma4",
        "granite4_vision",
        "lfm2_vl",
        "idefics2",
        "minicpmv4_7",
        "step3p7",
    )
    fills_in: ClassVar[tuple[str, ...]] = (PLACEHOLDERS, MERGING)

    #: Of these, llama4 and granite4_vision make the features of all tiles as one list, idefics2 those of all pictures.
    _runs: ClassVar[tuple[str, ...]] = ("llama4", "granite4_vision", "idefics2")
    #: And these ask the tower with learned queries.
    _resampled: ClassVar[tuple[str, ...]] = ("aria", "idefics2")

    @property
    def image_is_run(self) -> bool:  # type: ignore[override]
        """Whether the features do not tell where an image ends."""
        return self.family in self._runs

    def grids(self, features: Features, index: int, tokens: int) -> tuple[Grid, ...]:
        """Squares of llama4's tiles; the tokens of a resampler lie nowhere."""
        config = self.parts.composite.config
        if self.family in self._resampled:
            return self.unknown_grid(features, tokens)
        ratio = getattr(getattr(config, "vision_config", None), "pixel_shuffle_ratio", None)
        tiles = tile_grids(config, lambda _: round(1 / ratio**2), tokens) if ratio else None
        return tiles or super().grids(features, index, tokens)

    def __init__(self, model: nn.Module):
        super().__init__(model)
        self.parts = replace(self.parts, mapped=False)
