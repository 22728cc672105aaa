"""SmolVLM and Idefics3: the tiles of a picture stand one behind the other, with marks between them."""

from dataclasses import replace
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vtc.adapters.cells import runs
from vtc.adapters.generic import Adapter
from vtc.adapters.grids import tile_grids
from vtc.calls.composite import MERGING, PLACEHOLDERS
from vtc.model.layout import Grid, Layout, UnknownGrid
from vtc.tower.features import Features
from vtc.tower.prompt import Prompt


class SmolVLMAdapter(Adapter):
    """All tiles of a picture count together, the view of the whole included; frames of a video are pictures.

    Which tiles belong together is read from the ids (`pictures`). Without them, where the model is given embeddings,
    every tile counts as a picture. Pictures that only pad the batch make no features, so no token stands for one.
    """

    families: ClassVar[tuple[str, ...]] = ("smolvlm", "idefics3")
    fills_in: ClassVar[tuple[str, ...]] = (PLACEHOLDERS, MERGING)
    image_is_run: ClassVar[bool] = True
    follows_patches: ClassVar[bool] = True

    @property
    def projector(self) -> nn.Module:
        """What is behind the shuffle that puts the patches of a token together."""
        return self._composite.connector.modality_projection

    @property
    def _composite(self) -> Any:
        return self.parts.composite

    def layout(self, prompt: Prompt, shape: tuple[int, int]) -> Layout:
        """Pictures of a call, with a grid for each tile."""
        layout = super().layout(prompt, shape)
        return replace(layout, images=tuple(replace(i, grids=tiles(i.positions, self.family)) for i in layout.images))

    def grids(self, features: Features, index: int, tokens: int) -> tuple[Grid, ...]:
        """A square for each tile: all are of one size."""
        return tile_grids(self._composite.config, self.cell, tokens) or self.unknown_grid(features, tokens)

    def _split(self, mask: Tensor, features: Features, ids: Tensor | None) -> list[tuple[int, Tensor]]:
        """The pictures of each row, told by the ids; else its tiles."""
        if ids is None:
            return super()._split(mask, features, ids)
        rows = zip((row.nonzero().flatten() for row in mask), ids.tolist())
        return [(row, picture) for row, (places, text) in enumerate(rows) for picture in pictures(places, text)]

    def token_counts(self, features: Features, shape: tuple[int, int]) -> list[int]:
        """Tokens of each picture, told by the prompt.

        Raises:
            ValueError: the ids were not seen.
        """
        if features.ids is None:
            raise ValueError(
                f"{self.family}: which tiles make a picture is told by the prompt, which a reducer needs to know "
                "before the tower runs; call the whole model with input_ids, or use a selector"
            )
        ids, config = features.ids.cpu(), self._composite.config
        return [len(places) for _, places in self._split(ids == config.image_token_id, features, ids)]


class GraniteDoclingAdapter(SmolVLMAdapter):
    """The same tiles and marks; which patches a token is made of is measured, and reducers do not run."""

    families: ClassVar[tuple[str, ...]] = ("granite_docling",)
    follows_patches: ClassVar[bool] = False

    @property
    def projector(self) -> None:  # type: ignore[override]
        """None: what merges the patches stands inside the tower."""
        return None


def pictures(places: Tensor, ids: list[int]) -> list[Tensor]:
    """The placeholders of a row, picture by picture.

    What the processor writes for a picture that it cut into R × C tiles, and for one that it left whole:

        (<fake> <row_r_col_c> tile, C times, and a line break) R times, a line break <fake> <global-img> view <fake>
        <fake> <global-img> view <fake>

    What ids its marks have only the tokenizer knows, and some are several tokens. But the one that opens every tile is
    also the one that closes a view: that behind the last placeholder of the row. Between two tiles of a picture it
    stands once, between two pictures at least twice. Lines of tiles are of one length, with the view in one of its own;
    what does not read so, each of its tiles counts alone.

    Args:
        places: LongTensor [N]: of the placeholders, ascending.
        ids: of the row.

    Returns:
        LongTensors, a picture each; tiles without anything between them are taken for one.
    """
    found = runs(places)
    behind = int(places[-1]) + 1 if len(places) else 0
    mark = ids[behind] if found and behind < len(ids) else -1
    groups: list[list[Tensor]] = [[tile] for tile in found[:1]]
    breaks: list[list[int]] = [[]]  # tiles of each group that begin a line
    for before, tile in pairwise(found):
        between = ids[int(before[-1]) + 1 : int(tile[0])]
        if between.count(mark) != 1 or between[-1] == mark:
            groups.append([])
            breaks.append([])
        elif between[0] != mark:
            breaks[-1].append(len(groups[-1]))
        groups[-1].append(tile)
    return [
        picture
        for group, lines in zip(groups, breaks)
        for picture in ([torch.cat(group)] if _is_cut(len(group), lines) else group)
    ]


def _is_cut(tiles: int, breaks: list[int]) -> bool:
    """Whether `tiles` with lines that begin at 0 and at `breaks` are lines of one length and a view."""
    lines = {end - start for start, end in pairwise([0, *breaks])}
    return len(lines) == 1 and breaks[-1] == tiles - 1


def tiles(places: Tensor, family: str) -> tuple[Grid, ...]:
    """A grid for each tile of a picture with tokens at `places` [N]; the last of several is the view of the whole."""
    grids: list[Grid] = []
    found = runs(places)
    for number, tile in enumerate(found, 1):
        side = round(len(tile) ** 0.5)
        kind = "image" if len(found) == 1 else "tile" if number < len(found) else "thumbnail"
        square = (
            Grid(0, 1, side, side, kind=kind)
            if side * side == len(tile)
            else UnknownGrid.of(len(tile), family, "image")
        )
        grids.append(square.moved(sum(map(len, grids))))
    return tuple(grids)
