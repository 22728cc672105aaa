"""The record of a prefill: which visual tokens were alive in front of which decoder layer, and what it cost."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vtc.model.flops import Cost, Flops
from vtc.model.layout import Layout, VisualInput
from vtc.ops.cut import Cut


@dataclass(frozen=True)
class Stage:
    """From decoder layer `first_layer` on, the tokens of `cut` are alive.

    Attributes:
        first_layer: index from 0.
        cut: from the tokens that were given to those alive here.
        into: LongTensor [B, n]: for each token of `before`, where it was merged into, -1 for none; None: none was.
        before: the tokens of the stage before.
    """

    first_layer: int
    cut: Cut
    into: Tensor | None
    before: Cut


@dataclass(frozen=True)
class ImageTrace:
    """What became of one image or video.

    Attributes:
        row: row of the batch.
        kind: "image" or "video".
        source: where its tokens were, and its grids.
    """

    row: int
    kind: str
    source: VisualInput
    _stages: tuple[Stage, ...] = field(repr=False)
    _merged: Tensor | None = field(repr=False, default=None)

    @property
    def grid(self) -> tuple[int, int, int]:
        """(T, H, W) of its main grid: the whole picture, or the joined tiles."""
        main = self.source.grids[-1]
        return main.t, main.h, main.w

    def kept(self, layer: int = -1) -> Tensor:
        """Ascending LongTensor on the CPU: tokens (indices within this image) that enter decoder `layer`.

        Args:
            layer: index from 0; -1 means after the last removal.
        """
        stage = _stage_at(self._stages, layer)
        cut = stage.cut
        alive = torch.zeros(cut.length + 1, dtype=torch.bool)
        alive[torch.where(cut.valid[self.row], cut.index[self.row], cut.length).cpu()] = True
        return alive[self.source.positions].nonzero().flatten()

    def merged_into(self, layer: int = -1) -> Tensor | None:
        """LongTensor [N]: for each token, the survivor (index within this image) that it was mixed into, -1 for none.

        None where nothing was merged. A token that went into several survivors names the one with the largest weight.
        """
        stages = [stage for stage in self._stages if layer < 0 or stage.first_layer <= layer]
        if self._merged is None and all(stage.into is None for stage in stages):
            return None
        own = torch.arange(len(self.source))
        first = torch.full_like(own, -1) if self._merged is None else self._merged.cpu()
        mixed, into = first >= 0, torch.where(first < 0, own, first)
        for stage in stages:
            if stage.into is not None:
                into = torch.where(into < 0, into, self._moved(stage)[into])
        alive = torch.isin(into, self.kept(layer)) & (mixed | (into != own))
        return into.masked_fill(~alive, -1)

    def _moved(self, stage: Stage) -> Tensor:
        """LongTensor [N]: the survivor of `stage` that each token of the image went into; itself where it did not.

        -1: it went into another image of the row.
        """
        assert stage.into is not None
        place, goes = stage.before.index[self.row].cpu(), stage.into[self.row].cpu()
        number = torch.full((stage.before.length,), -1)
        number[self.source.positions] = torch.arange(len(self.source))
        moved = torch.arange(len(self.source))
        merged = (goes >= 0) & stage.before.valid[self.row].cpu() & (number[place] >= 0)
        moved[number[place[merged]]] = number[place[goes[merged]]]
        return moved


@dataclass(frozen=True)
class Trace:
    """What the last prefill did.

    Attributes:
        spec: the methods, as a spec string.
        layout: where the visual tokens were.
        images: one `ImageTrace` for each image and video, row by row.
        tokens_per_layer: LongTensor [layers, batch]: visual tokens entering each decoder layer, merged ones counted.
        heads_per_layer: share of the attention heads that each decoder layer computes.
        selection_ms: wall time of all decisions, gathers included, in milliseconds.
        uncompressed: why nothing was removed from a call whose pictures vtc could not follow; None: it could.
    """

    spec: str
    layout: Layout
    images: tuple[ImageTrace, ...]
    tokens_per_layer: Tensor
    heads_per_layer: tuple[float, ...]
    _valid: Tensor = field(repr=False)
    _selection: Callable[[], float] = field(repr=False)
    _cost: Cost = field(repr=False)
    _revived: Callable[[], Tensor] = field(repr=False)
    uncompressed: str | None = None

    @property
    def selection_ms(self) -> float:
        """Wall time of all decisions and gathers, in milliseconds."""
        return self._selection()

    @property
    def original_tokens(self) -> Tensor:
        """LongTensor [batch]: visual tokens that were given."""
        return self.tokens_per_layer[0] if self.uncompressed else torch.tensor(self.layout.tokens_per_row())

    @property
    def text_tokens(self) -> Tensor:
        """LongTensor [batch]: text tokens of each row, padding left out."""
        return self._valid.sum(dim=1).cpu() - self.tokens_per_layer[0]

    @property
    def equivalent_tokens(self) -> Tensor:
        """Float tensor [batch]: mean over decoder layers of the visual tokens entering the layer."""
        return self.tokens_per_layer.double().mean(dim=0).float()

    @property
    def tower_rows(self) -> Tensor:
        """LongTensor [blocks]: rows (patches, CLS tokens) that enter each block of the vision tower, of all images."""
        return torch.tensor(self._cost.rows_per_block())

    @property
    def revived_tokens(self) -> Tensor:
        """LongTensor [layers, batch]: tokens that decode steps brought back so far, of methods that do."""
        return self._revived()

    def flops(self) -> Flops:
        """Prefill FLOPs of the batch, decoder and tower, with and without compression; see `vtc.model.flops`."""
        return self._cost.flops(self.tokens_per_layer, self.original_tokens, self.text_tokens, self.heads_per_layer)

    def __str__(self) -> str:
        if self.uncompressed:
            given = int(self.original_tokens.sum())
            return (
                f"vtc {self.spec}: nothing was compressed, 0 of {given or '?'} visual tokens removed, because "
                f"{self.uncompressed}"
            )
        flops = self.flops()
        original, equivalent = self.original_tokens.tolist(), self.equivalent_tokens.tolist()
        last = self.tokens_per_layer[-1].tolist()
        rows = ", ".join(
            f"{n} -> {k} visual tokens (equivalent {e:.1f})" for n, k, e in zip(original, last, equivalent)
        )
        return (
            f"vtc {self.spec}: {rows or 'no visual tokens'}\n"
            f"prefill {flops.total / 1e9:.2f} of {flops.unpatched_total / 1e9:.2f} GFLOP "
            f"(decoder x{flops.unpatched_decoder / max(flops.decoder, 1):.2f}), selection {self.selection_ms:.2f} ms"
        )


def _stage_at(stages: tuple[Stage, ...], layer: int) -> Stage:
    if layer < 0:
        return stages[-1]
    return [stage for stage in stages if stage.first_layer <= layer][-1]
