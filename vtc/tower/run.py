"""A reducer's run through the vision tower: once it has decided, every later block gets fewer rows.

A tower's rows are either a batch of sequences of equal length (crops of CLIP and its like) or one packed sequence of
all images (Qwen-VL). Both are kept as *entries* of rows here: one entry for each sequence, or one for everything.
"""

import functools
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vtc.attention.scores import Attention
from vtc.calls.tower import BlockCall
from vtc.method.patches import Patches, Picture
from vtc.method.reducer import Reducer, check_reduction
from vtc.method.reduction import Reduction
from vtc.model.flops import lengths_of
from vtc.ops.clock import Moment
from vtc.ops.host import on
from vtc.tower.cutting import cut, is_per_row
from vtc.tower.memory import Biased, BlockMemory
from vtc.tower.placement import Arrangement, Blend, Move, Placement, padded
from vtc.tower.sequences import Reduced, Sequence, left_of, places_of_units, repeated, sequences_of

#: Added to the logits of padding rows; finite, so that half precision holds it.
_NOWHERE = -1e4


class TowerRun:
    """One pass of a tower whose rows a reducer cuts.

    Args:
        reducer: decides.
        blocks: the blocks at which it is asked.
        maps: for each encoded image, LongTensor [N, cell]: rows of each visual token, as `Adapter.patches` tells them.
        hidden: the first block's input.
        prefix: CLS rows in front of each sequence.
        depth: blocks of the tower.
        pictures: what each encoded image shows, for a reducer that is to see it.
    """

    def __init__(
        self,
        reducer: Reducer,
        blocks: tuple[int, ...],
        maps: list[Tensor],
        hidden: Tensor,
        prefix: int,
        depth: int,
        pictures: tuple[Picture, ...] = (),
    ):
        self.depth = depth
        self.reducer, self.blocks, self.maps, self.prefix = reducer, blocks, maps, prefix
        self.flat = hidden.dim() == 2
        entries, self.length = (1, hidden.shape[0]) if self.flat else (hidden.shape[0], hidden.shape[1])
        device = hidden.device
        self.cell = maps[0].shape[1]
        budgets = [None if reducer.adaptive else reducer.count(len(rows)) for rows in maps]
        self.sequences = [
            sequence
            for image, (rows, budget) in enumerate(zip(maps, budgets))
            for sequence in sequences_of(image, rows, budget, entries, self.length, prefix, device)
        ]
        self.active = any(sequence.reduced for sequence in self.sequences)
        self.pictures = pictures if self.active else ()  # until the last decision
        everything = torch.arange(self.length, device=device).expand(entries, -1)
        self.layout = Placement(everything, torch.ones_like(everything, dtype=torch.bool))
        self.moved = self.ordered = self.merged = False
        self.boundaries: Tensor | None = None
        self.bias: Tensor | None = None
        self.move: Move | None = None  # of the block that runs, until its end
        self.gathered: tuple[Tensor, Tensor] | None = None  # (entry, place) of what the projector was given
        self.slots: tuple[int, ...] = ()
        self.spent: list[tuple[Moment, Moment]] = []  # on deciding
        self._heard: list[Attention] = []
        self._biased = Biased(None)
        self._arrangements: dict[int, Arrangement | None] = {}

    # ---------------------------------------------------------------- a block

    def before_block(self, block: int, call: BlockCall) -> tuple[tuple, dict[str, Any]] | None:
        """A block's arguments with what is per row cut to the rows that are left; None: as they are."""
        self._heard.clear()
        given, hidden = call.others, call.hidden
        packed = any(call.bounds(key) or is_per_row(value, self.length) for key, value in given.items())
        self.ordered = self.ordered or (packed and len(self.layout.index) == 1)
        if self.acts_at(block, "entry") and (move := self.reduce(block, hidden)) is not None:
            hidden = move.rows
        self._biased = Biased(self.bias)
        if self.moved:
            alive, by = self.layout.index, self.reducer.name
            given = {key: cut(value, call.label(key), alive, self.length, by) for key, value in given.items()}
        bounds = [value for key, value in given.items() if call.bounds(key) and isinstance(value, Tensor)]
        self.boundaries = bounds[0] if bounds else None
        return call.with_others(given, hidden) if self.moved else None

    def acts_at(self, block: int, where: str) -> bool:
        """Whether the method is asked at this place of a block."""
        return block in self.blocks and self.reducer.acts == where

    def hear(self, attention: Attention, wanted: bool) -> Tensor | None:
        """Take note of a call of the block's attention.

        Returns:
            What is to be added to the logits of its keys, Tensor [E, S]; None: nothing.
        """
        if wanted:
            self._heard.append(attention)
        return self._biased.of(attention)

    def memory(self, block: int) -> Callable[[], BlockMemory]:
        """Makes what to do again in a block, each time that it runs once more in backward."""
        return functools.partial(BlockMemory, self._biased.bias, self._arrangements.get(block))

    # ---------------------------------------------------------------- deciding

    def reduce(self, block: int, x: Tensor) -> Move | None:
        """Ask the method at `block` for the rows `x` [E, P, D] or [P, D]; None: nothing changes."""
        start = Moment(x.device)
        stage = self.blocks.index(block)
        entries = x[None] if self.flat else x
        with torch.no_grad():
            decisions = self._decide(block, stage, entries)
        empty = [s for s in self.sequences if not s.target and s.units]  # whose part of the budget is nothing
        arrangement = self._arrange(decisions, empty, entries) if decisions or empty else None
        if self.reducer.acts != "entry":  # what is done in front of a block is not done again in backward
            self._arrangements[block] = arrangement
        if block == self.blocks[-1]:
            self.pictures = ()
        move = None if arrangement is None else arrangement.of(x)
        self.spent.append((start, Moment(x.device)))
        return move

    def _decide(self, block: int, stage: int, x: Tensor) -> list[tuple[list[Sequence], Reduction]]:
        """(sequences, what is left of them) for all that the method shortens."""
        heard = self._heard
        if self.reducer.acts == "entry":
            none = x.new_empty(len(x), 1, x.shape[1], 0)
            heard = [Attention(none, none, 1.0, causal=False, value=none)]
        if not heard:
            raise RuntimeError(f"vtc: {self.reducer.name} saw no attention in tower block {block}; run `vtc doctor`")
        query = torch.cat([call.query for call in heard], dim=2)
        key = torch.cat([repeated(call.key, call) for call in heard], dim=2)
        value = torch.cat([repeated(call.value, call) for call in heard if call.value is not None], dim=2)
        segments = None
        if self.boundaries is not None and len(self.boundaries) > 2:
            place = torch.arange(x.shape[1], device=x.device)
            segments = torch.searchsorted(on(x.device, self.boundaries).long(), place, right=True)
        decisions = []
        for group in self._groups():
            entries = on(x.device, [[s.entry] for s in group])
            units = torch.stack([s.at.flatten() for s in group])
            cls = torch.arange(self.prefix, device=x.device).expand(len(group), -1)
            rows = torch.cat([cls, units], dim=1)
            patches = Patches(
                block=block,
                stage=stage,
                stages=len(self.blocks),
                start=group[0].start,
                target=group[0].target,
                hidden=x[entries, units].unflatten(1, (-1, self.cell)),
                query=query.transpose(1, 2)[entries, rows].transpose(1, 2),
                key=key.transpose(1, 2)[entries, rows].transpose(1, 2),
                value=value.transpose(1, 2)[entries, rows].transpose(1, 2),
                scaling=heard[0].scaling,
                sizes=torch.stack([s.sizes for s in group]),
                prefix=self.prefix,
                bias=None if self.bias is None else self.bias.expand(len(x), -1)[entries, rows],
                segments=None if segments is None else segments[rows],
                memory={name: torch.stack([s.memory[name] for s in group]) for name in group[0].memory},
                depth=self.depth,
                tokens=torch.stack([s.tokens for s in group]),
                pictures=tuple(self.pictures[s.image] for s in group) if self.pictures else (),
            )
            reduction = self.reducer.reduce(patches)
            if reduction is not None:
                check_reduction(self.reducer, reduction, patches)
                reduction = reduction.ascending() if self.ordered else reduction
            for member, sequence in enumerate(group):
                sequence.memory = {name: held[member] for name, held in patches.memory.items()}
            left = patches.units if reduction is None else reduction.kept.shape[1]
            if patches.last and left != patches.target and not self.reducer.adaptive:
                raise RuntimeError(f"{self.reducer.name} left {left} units where {patches.target} were asked for")
            if reduction is not None:
                decisions.append((group, reduction))
        return decisions

    def _groups(self) -> list[list[Sequence]]:
        """Sequences that are shown at once."""
        groups: dict[Any, list[Sequence]] = defaultdict(list)
        for index, sequence in enumerate(self.sequences):
            if sequence.reduced and sequence.target:
                own = {"all": None, "image": sequence.image, "sequence": index}[self.reducer.together]
                groups[own, sequence.units, sequence.start, sequence.target].append(sequence)
        return list(groups.values())

    def _arrange(
        self, decisions: list[tuple[list[Sequence], Reduction]], empty: list[Sequence], x: Tensor
    ) -> Arrangement:
        """Cut the sequences and lay their rows out anew."""
        blends = [
            (group, Blend(*places_of_units(group, x.device), self.cell, reduction.mixing, reduction.kept.shape[1], []))
            for group, reduction in decisions
            if reduction.mixing is not None
        ]
        self.merged = self.merged or bool(blends)
        for group, reduction in decisions:
            for member, sequence in enumerate(group):
                sequence.cut(reduction, member)
        for sequence in empty:
            sequence.cut(Reduction(sequence.tokens[None, :0]), 0)
        first = torch.arange(self.prefix, device=x.device)
        sources, origins = [[first] for _ in x], [[first] for _ in x]
        for sequence in self.sequences:
            source, origin = sources[sequence.entry], origins[sequence.entry]
            begin = sum(map(len, source))
            source.append(sequence.at.flatten())
            origin.append(sequence.rows.flatten())
            sequence.at = torch.arange(begin, begin + sequence.at.numel(), device=x.device).view(-1, self.cell)
        index, valid = padded([torch.cat(parts) for parts in sources])
        self.layout = Placement(padded([torch.cat(parts) for parts in origins])[0], valid)
        self.moved = True
        self._update_bias(x, len({sum(map(len, source)) for source in sources}) > 1)
        for group, blend in blends:
            for sequence in group:
                place = sequence.at.flatten()
                blend.places.append((torch.full_like(place, sequence.entry), place))
        return Arrangement(index, valid, self.flat, [blend for _, blend in blends])

    def _update_bias(self, x: Tensor, ragged: bool) -> None:
        """What later blocks add to the logits of each row: log of its size, and padding (of `ragged`) is not seen."""
        proportional = self.reducer.proportional and self.merged
        if not proportional and not ragged:
            self.bias = None
            return
        bias = torch.zeros(self.layout.index.shape, device=x.device)
        if proportional:
            for sequence in self.sequences:
                each = sequence.sizes.clamp(min=1e-6).log()[:, None].expand(-1, self.cell)
                bias[sequence.entry, sequence.at.flatten()] = each.flatten().to(bias)
        self.bias = bias.masked_fill(~self.layout.valid, _NOWHERE)

    def lengths(self) -> Callable[[], Tensor]:
        """Gives the lengths of the sequences that attend within themselves in the block that runs."""
        if self.boundaries is not None:
            return lengths_of((0, 0), 0, self.boundaries)
        return self.rows()

    def rows(self) -> Callable[[], Tensor]:
        """Gives the rows of each entry."""
        entries, rows = self.layout.index.shape
        return lengths_of((entries, rows), 0, None)

    # ---------------------------------------------------------------- leaving the tower

    def mark(self, x: Tensor) -> None:
        """Remember which rows a block's output has, wherever it is collected."""
        if self.moved:
            x._vtc_rows = self.layout  # type: ignore[attr-defined]

    def restore(self, x: Tensor, unmarked: Placement | None = None) -> Tensor:
        """A tower's output with its rows back in their places; zeros where there is none any more.

        `unmarked`: the rows of an output that no block gave itself; None: it is older than the first reduction.
        """
        rows = getattr(x, "_vtc_rows", unmarked)
        if rows is None or x.shape[-2] != rows.index.shape[1]:
            return x
        return rows.restore(x[None] if x.dim() == 2 else x, self.length).view(*x.shape[:-2], self.length, x.shape[-1])

    def restore_units(self, x: Tensor) -> Tensor:
        """A merger's output [U, D], one row for each unit, with the rows back in their places."""
        cells = self.layout.index[:, :: self.cell] // self.cell
        return Placement(cells, torch.ones_like(cells, dtype=torch.bool)).restore(x[None], self.length // self.cell)[0]

    def survivors(self, slots: int) -> tuple[Tensor, Tensor] | None:
        """(entry, place) of each unit that is left, where `slots` rows of the projector stand for an entry's units."""
        patches = self.length - self.prefix
        if slots == patches and self.cell == 1:
            places = [sequence.rows[:, 0] - self.prefix for sequence in self.sequences]
        elif slots * self.cell == patches and self.cell > 1 and not self.flat:
            places = [sequence.tokens % slots for sequence in self.sequences]
        else:
            return None
        entries = [torch.full_like(place, s.entry) for place, s in zip(places, self.sequences)]
        return torch.cat(entries), torch.cat(places)

    def reduced(self) -> list[Reduced]:
        """What is left of each encoded image."""
        return [
            left_of(rows, self.reducer.count(len(rows)), [s for s in self.sequences if s.image == image], self.merged)
            for image, rows in enumerate(self.maps)
        ]
