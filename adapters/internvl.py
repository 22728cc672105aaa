"""InternVL: the tiles of one image stand in one unbroken run of placeholders."""

from typing import Any, ClassVar

from vtc.adapters.cells import runs_by_row
from vtc.adapters.generic import Adapter
from vtc.adapters.grids import tile_grids
from vtc.model.layout import Grid
from vtc.tower.features import Features


class InternVLAdapter(Adapter):
    """All tiles of an image count together, thumbnail included."""

    families: ClassVar[tuple[str, ...]] = ("internvl",)
    image_is_run: ClassVar[bool] = True
    follows_patches: ClassVar[bool] = True

    def grids(self, features: Features, index: int, tokens: int) -> tuple[Grid, ...]:
        """A grid for each tile."""
        return tile_grids(self.parts.composite.config, self.cell, tokens) or self.unknown_grid(features, tokens)

    def token_counts(self, features: Features, shape: tuple[int, int]) -> list[int]:
        """Lengths of the runs of placeholders in the prompt."""
        if features.ids is None:
            raise ValueError(
                f"{self.family}: how many tiles an image has is told by the prompt, which a reducer needs to know "
                "before the tower runs; call the whole model with input_ids, or use a selector"
            )
        config: Any = self.parts.composite.config
        return [len(run) for _, run in runs_by_row(features.ids.cpu() == config.image_token_id)]
