"""Families whose towers mix, resample or reorder patches in ways that no rule here follows from patch to visual token.

llama4's CLS token stands last; video_llama_3 and minicpmv4_6 merge in windows of their own; aria asks the tower with
learned queries; gemma4, granite4_vision and lfm2_vl make another number of tokens than patches allow.
"""

from dataclasses import replace
from typing import ClassVar

from torch import nn

from vtc.adapters.generic import Adapter


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
    )

    #: Of these, llama4 and granite4_vision make the features of all tiles as one list of tokens.
    _runs: ClassVar[tuple[str, ...]] = ("llama4", "granite4_vision")

    @property
    def image_is_run(self) -> bool:  # type: ignore[override]
        """Whether the features do not tell where an image ends."""
        return self.family in self._runs

    def __init__(self, model: nn.Module):
        super().__init__(model)
        self.parts = replace(self.parts, mapped=False)
