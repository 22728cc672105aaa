"""The vision tower's patches at one block, as an encoder reducer sees them."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from vtc import ops
from vtc.attention.scores import split_sequences

_CHUNK = 256


@dataclass(frozen=True)
class Picture:
    """The pixels of one image or video, as its processor left them, in the cells that make its visual tokens.

    Attributes:
        cells: Tensor [T, H, W, cell, C, p]: p values of each of C channels of each patch of a cell.
        deviation: what the processor that was published with the family divides each channel in [0, 1] by.
    """

    cells: Tensor
    deviation: tuple[float, ...]


@dataclass(frozen=True)
class Patches:
    """G sequences (crops, images) of the tower at one block: U units of `cell` patches each, maybe behind a CLS.

    The tower's rows are CLS, if there is one, then unit 0's patches, unit 1's and so on: P = prefix + U · cell in all.
    In front of a block (`acts` "entry") there is no attention yet: d is 0.

    Attributes:
        block: index of the tower block from 0.
        stage: how many times the method was called before in this pass.
        stages: how many times it is called in all.
        start: units that the sequence had before the first call.
        target: units that must be left after the last call.
        hidden: Tensor [G, U, cell, D]: the block's input, its output, or its residual stream in front of the MLP.
        query, key, value: Tensor [G, H, P, d] of the block's attention; keys and values repeated to H heads.
        scaling: factor of the attention's logits.
        sizes: Tensor [G, U]: how many original units each stands for.
        prefix: 1 where row 0 is the CLS token, else 0.
        bias: Tensor [G, P], added to the logits of each key, or None.
        segments: LongTensor [G, P]: rows attend within their segment only (attention windows); None: to all.
        memory: the method's own store; tensors [G, U, ...] in it are cut together with the units.
        depth: blocks of the tower.
        tokens: LongTensor [G, U]: the visual token of its image that each unit makes; -1 where it makes none.
        pictures: for methods with `sees_pixels`, of each sequence what it shows; its cells in raster order are the
            image's visual tokens.
    """

    block: int
    stage: int
    stages: int
    start: int
    target: int
    hidden: Tensor
    query: Tensor
    key: Tensor
    value: Tensor
    scaling: float
    sizes: Tensor
    prefix: int = 0
    bias: Tensor | None = None
    segments: Tensor | None = None
    memory: dict[str, Tensor] = field(default_factory=dict)
    depth: int = 24
    tokens: Tensor | None = None
    pictures: tuple[Picture, ...] = ()

    @property
    def units(self) -> int:
        """U, the units present."""
        return self.hidden.shape[1]

    @property
    def has_cls(self) -> bool:
        """Whether there is a CLS token."""
        return self.prefix > 0

    @property
    def last(self) -> bool:
        """Whether the method is not called again in this pass."""
        return self.stage == self.stages - 1

    def of_units(self, values: Tensor) -> Tensor:
        """Values per row [G, P, ...] to values per unit [G, U, ...]: CLS left out, mean over a unit's patches."""
        values = values[:, self.prefix :]
        return values.unflatten(1, (self.units, -1)).mean(dim=2)

    @property
    def keys(self) -> Tensor:
        """Attention keys [G, U, H, d] of the units, in float32."""
        return self.of_units(self.key.float().transpose(1, 2))

    @property
    def values(self) -> Tensor:
        """Attention values [G, U, H, d] of the units, in float32."""
        return self.of_units(self.value.float().transpose(1, 2))

    def cls_attention(self) -> Tensor:
        """Attention probability [G, U] from the CLS token to each unit, mean over heads.

        Raises:
            ValueError: the tower has no CLS token.
        """
        if not self.has_cls:
            raise ValueError("this vision tower has no CLS token; use Patches.received()")
        return self.of_units(self.attend(self.query[:, :, :1]).mean(dim=1)[:, 0])

    def received(self) -> Tensor:
        """Mean attention probability [G, U] that each unit receives, over all heads and all rows (CLS included)."""
        if self.segments is None:
            whole = ops.AttentionArguments(self.query, self.key, self.scaling, self._walls(slice(None), None))
            return self.of_units(ops.attention_received(whole))
        images, heads, rows, _ = self.query.shape
        total = torch.zeros(images, rows, device=self.query.device)
        for inside, _, attention in self._chunks():
            total[inside] += attention.sum(dim=(1, 2))
        return self.of_units(total / (heads * rows))

    def importance(self) -> Tensor:
        """`cls_attention` where there is a CLS token, else `received`: [G, U]."""
        return self.cls_attention() if self.has_cls else self.received()

    def vote(self, signal: Tensor) -> Tensor:
        """One vote by attention, s ← Aᵀ s for each head: every row gives its signal to the rows that it attends to.

        Works through the rows in chunks, so that memory stays O(chunk · P).

        Args:
            signal: Tensor [G, H, P].

        Returns:
            Tensor [G, H, P].
        """
        result = torch.zeros_like(signal)
        for inside, asking, attention in self._chunks():
            result[inside] += (signal[inside, :, None, asking] @ attention)[:, :, 0]
        return result

    def attend(self, query: Tensor, segments: Tensor | None = None) -> Tensor:
        """Attention probabilities of some queries, in float32.

        Args:
            query: Tensor [G, H, R, d].
            segments: LongTensor [G, R]: the segment of each; None: they attend to all rows.

        Returns:
            Tensor [G, H, R, P].
        """
        walls = self._walls(slice(None), segments)
        return ops.attention_rows(ops.AttentionArguments(query, self.key, self.scaling, walls))

    def only(self, units: Tensor) -> "Patches":
        """These units (LongTensor [G, M]) alone, CLS kept: attention among them is normalised anew."""
        cell = self.hidden.shape[2]
        rows = (units[:, :, None] * cell + torch.arange(cell, device=units.device)).flatten(1) + self.prefix
        rows = torch.cat([torch.zeros_like(rows[:, :1]).expand(-1, self.prefix), rows], dim=1)

        def of_rows(x: Tensor) -> Tensor:
            return x.gather(2, rows[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))

        return replace(
            self,
            hidden=take(self.hidden, units),
            query=of_rows(self.query),
            key=of_rows(self.key),
            value=of_rows(self.value),
            sizes=take(self.sizes, units),
            bias=None if self.bias is None else take(self.bias, rows),
            segments=None if self.segments is None else take(self.segments, rows),
            memory={name: take(value, units) for name, value in self.memory.items()},
            tokens=None if self.tokens is None else take(self.tokens, units),
        )

    def _chunks(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """(some sequences, some of their rows, attention probabilities [g, H, R, P] of these), for all in turn."""
        first = 0
        for query, key in split_sequences(self.query, self.key, _CHUNK):
            inside, first = slice(first, first + len(query)), first + len(query)
            for start in range(0, query.shape[2], _CHUNK):
                asking = slice(start, start + _CHUNK)
                segments = None if self.segments is None else self.segments[inside, asking]
                walls = self._walls(inside, segments)
                some = ops.AttentionArguments(query[:, :, asking], key, self.scaling, walls)
                yield inside, asking, ops.attention_rows(some)

    def _walls(self, inside: slice, segments: Tensor | None) -> Tensor | None:
        """What is added to the logits of queries of `segments` [g, R]: the keys' bias, -inf outside of the segment."""
        bias = self.bias[inside, None, None, :].float() if self.bias is not None else None
        if self.segments is None or segments is None:
            return bias
        apart = (segments[:, :, None] != self.segments[inside, None, :])[:, None]
        wall = torch.zeros(apart.shape, device=apart.device).masked_fill_(apart, float("-inf"))
        return wall if bias is None else bias + wall


def take(values: Tensor, index: Tensor) -> Tensor:
    """Rows `index` [G, M] of `values` [G, N, ...]."""
    shape = (*index.shape, *values.shape[2:])
    return values.gather(1, index.reshape(*index.shape, *[1] * (values.dim() - 2)).expand(shape))
