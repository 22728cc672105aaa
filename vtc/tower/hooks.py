"""The hooks through which a reducer shortens a vision tower, its projector's work and the sequence."""

import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from vtc.calls.outputs import Output, first_of, with_first
from vtc.method.reducer import Reducer
from vtc.model.again import Again
from vtc.model.errors import explain
from vtc.model.staying import Stays
from vtc.tower.encoding import Encoding
from vtc.tower.memory import BlockMemory
from vtc.tower.placement import Move
from vtc.tower.run import TowerRun


class ReducerHooks(Stays):
    """What a reducer does to the modules of one model.

    Args:
        reducer: decides.
        blocks: the tower blocks at which it is asked, as `blocks_of` tells them.
        adapter: of the model.
        encoding: the tower's pass in each thread.
        again: tells of blocks that run once more in backward.
    """

    def __init__(
        self,
        reducer: Reducer,
        blocks: tuple[int, ...],
        adapter: Any,
        encoding: Encoding,
        again: Again,
    ):
        self.reducer, self.blocks, self.adapter = reducer, blocks, adapter
        self.encoding, self._again = encoding, again

    def start(self, hidden: Tensor) -> None:
        """Begin a run through the tower; `hidden` is its first block's input."""
        features, parts = self.encoding.features, self.adapter.parts
        maps = self.adapter.patches(features, features.shape)
        pictures = self.adapter.pictures(features, self.encoding.pixels) if self.reducer.sees_pixels else ()
        prefix, depth = int(parts.has_cls), len(parts.blocks)
        features.tower = TowerRun(self.reducer, self.blocks, maps, hidden, prefix, depth, pictures)

    def install(self) -> Iterator[Any]:
        """Put the hooks in that are not a block's own; the handle of each."""
        blocks = self.adapter.parts.blocks
        for index in self.blocks:
            if self.reducer.acts == "attention":
                norm, mlp = self.adapter.second_norm(blocks[index]), self.adapter.mlp(blocks[index])
                yield norm.register_forward_pre_hook(functools.partial(self._before_norm, index), prepend=True)
                yield mlp.register_forward_hook(self._after_mlp)
        yield self.adapter.tower.register_forward_hook(self._after_tower, prepend=True, always_call=True)
        for merger in self.adapter.mergers:
            yield merger.register_forward_hook(self._after_merger)
        if (projector := self.adapter.projector) is not None:
            yield projector.register_forward_pre_hook(self._before_projector, with_kwargs=True)
            yield projector.register_forward_hook(self._after_projector)

    def after_block(self, index: int) -> Callable[..., Any]:
        """The forward hook of a block."""
        return functools.partial(self._after_block, index)

    def memory(self, index: int) -> Callable[[], BlockMemory]:
        """Makes what to do again in a block, each time that it runs once more in backward."""
        run = self.encoding.reducing
        return BlockMemory if run is None else run.memory(index)

    @property
    def _within(self) -> TowerRun | BlockMemory | None:
        """Who shortens the block that runs; None where nobody does."""
        return self._again.memory or self.encoding.reducing

    def _before_norm(self, index: int, module: nn.Module, args: tuple) -> Any:
        run = self._within
        if run is None:
            return None
        run.move = run.reduce(index, args[0])
        if run.move is None:
            return None
        run.move.write(args[0])  # the block's residual stream
        if isinstance(run, TowerRun):
            self.encoding.features.runs[-1].mlp_rows = run.rows()
        return (run.move.rows, *args[1:])

    def _after_mlp(self, module: nn.Module, args: tuple, output: Any) -> Any:
        run = self._within
        return run.move.expand(output) if run is not None and run.move is not None else None

    def _after_block(self, index: int, module: nn.Module, args: tuple, output: Any) -> Any:
        run, hidden = self._within, first_of(output)
        if run is None:
            return None
        if isinstance(run, BlockMemory):
            rows = run.leave(hidden)
            return None if rows is hidden else with_first(output, rows)
        move: Move | None = run.move
        if move is not None:  # decided between attention and MLP
            rows, run.move = move.take(hidden), None
        elif run.acts_at(index, "block"):
            run.mark(hidden)  # whoever collects outputs may have this one
            move = run.reduce(index, hidden)
            rows = move.rows if move is not None else hidden
        else:
            rows = hidden
        run.mark(rows)
        return None if rows is hidden else with_first(output, rows)

    def _after_tower(self, module: nn.Module, args: tuple, output: Any) -> Any:
        run = self.encoding.reducing
        if run is None or not run.moved:
            return None
        if output is None:  # it failed
            family = self.adapter.parts.family
            explain(sys.exc_info()[1], f"in the vision tower of {family}, shortened by {self.reducer.name}")
            return None
        if isinstance(output, Tensor):
            return run.restore(output, run.layout)
        made = Output(output)
        last = made.last
        if made.states is not None:
            made.states = tuple(
                None if s is None else run.restore(s, run.layout if s is last else None) for s in made.states
            )
        if last is not None:
            made.last = run.restore(last, run.layout)
        return output

    def _after_merger(self, module: nn.Module, args: tuple, output: Tensor) -> Any:
        run = self.encoding.reducing
        return run.restore_units(output) if run is not None and run.moved else None

    def _before_projector(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
        run = self.encoding.reducing
        if run is None or not run.moved or not args or not isinstance(args[0], Tensor) or args[0].dim() != 3:
            return None
        run.gathered = run.survivors(args[0].shape[1]) if len(args[0]) == len(run.layout.index) else None
        if run.gathered is None:
            return None
        run.slots = args[0].shape[:2]
        return (args[0][run.gathered][None], *args[1:]), kwargs

    def _after_projector(self, module: nn.Module, args: tuple, output: Any) -> Any:
        run = self.encoding.reducing
        if run is None or run.gathered is None:
            return None
        gathered, run.gathered = run.gathered, None
        return output.new_zeros(*run.slots, output.shape[-1]).index_put(gathered, output[0])


def blocks_of(reducer: Reducer, adapter: Any) -> tuple[int, ...]:
    """The tower blocks at which a reducer acts.

    Raises:
        ValueError: the tower lacks what it needs, its patches can't be followed, or a block is out of range.
    """
    parts = adapter.parts
    parts.block(0, reducer.name)
    if not adapter.follows_patches:
        raise ValueError(
            f"{reducer.name} removes patches inside the vision tower, and which visual tokens they make is not known "
            f"for {parts.family}; use a selector such as 'divprune'"
        )
    if reducer.sees_pixels and not adapter.shows_pixels:
        raise ValueError(
            f"{reducer.name} compares the pixels of patches before the vision tower's first block, and that of "
            f"{parts.family} is not given them patch by patch as Qwen-VL's is; use a reducer such as 'tome', or a "
            "selector such as 'divprune'"
        )
    blocks = reducer.blocks(parts)
    if not blocks or list(blocks) != sorted(set(blocks)):
        raise ValueError(f"{reducer.name}: blocks {blocks!r} must name one or more tower blocks, ascending")
    last = parts.feature_layer % len(parts.blocks)
    for block in blocks:
        if not 0 <= block <= last:
            raise ValueError(
                f"{reducer.name}: tower block {block} is out of range; {parts.family} reads its features from block "
                f"{last}"
            )
    return blocks
