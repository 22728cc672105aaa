"""The decision of one method, cut out of the model around it, with a clock and a gauge at what the method itself does.

Selectors: what is captured of the tower's attention, and `select`. Prunes: what is captured of the decoder's layers,
and `decide` with its probe. Reducers: every call of `reduce` in one pass of the tower. What the seam does before and
after (laying out, gathering rows, cutting them) is not part of it.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import torch

from vtc.calls.tower import BlockCall
from vtc.eval.bench.select.allocated import Allocated
from vtc.eval.bench.select.scene import (
    AFTER,
    BEFORE,
    BLOCKS,
    LAYERS,
    TOWER_WIDTH,
    Scene,
    stand_in_adapter,
)
from vtc.method.base import Method
from vtc.method.patches import Patches, Picture, take
from vtc.method.prune import Memory, Prune, Rows
from vtc.method.reducer import Reducer
from vtc.method.selector import Selector
from vtc.model.again import Again
from vtc.tower.encoding import Encoding
from vtc.tower.listeners import blocks_heard, tower_listeners
from vtc.tower.run import TowerRun


class Meter:
    """Adds up what one decision costs.

    Args:
        device: what each reading of the clock waits for.
        weigh: whether memory is measured too, which disturbs the clock.

    Attributes:
        capture_s, decide_s: seconds spent on reading the model's attention, and on deciding.
        peak_bytes: extra memory at its peak; None where it was not measured.
    """

    def __init__(self, device: torch.device, weigh: bool = False):
        self._device, self._weigh = device, weigh
        self.capture_s = self.decide_s = 0.0
        self.peak_bytes: int | None = None

    @contextmanager
    def capturing(self) -> Iterator[None]:
        """Time a block of code as capture."""
        start = now(self._device)
        yield
        self.capture_s += now(self._device) - start

    @contextmanager
    def deciding(self) -> Iterator[None]:
        """Time a block of code as decision."""
        start = now(self._device)
        yield
        self.decide_s += now(self._device) - start

    @contextmanager
    def weighing(self) -> Iterator[None]:
        """Measure the memory that a block of code needs above what was there before; the largest block counts."""
        if not self._weigh:
            yield
            return
        with Allocated(self._device) as peak:
            yield
        if peak.bytes is not None:
            self.peak_bytes = max(peak.bytes, self.peak_bytes or 0)


Decision = Callable[[Meter], None]


class Undecided(Exception):
    """There is nothing to time; the message says why."""


def now(device: torch.device) -> float:
    """Seconds, all work on the device done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def decision(method: Method, scene: Scene) -> Decision:
    """What makes `method` decide once about `scene`, all that it is shown prepared.

    Raises:
        Undecided: the method keeps every token, or is of an unknown kind.
        ValueError: it refuses the stand-in.
    """
    kinds: dict[str, Callable[[Any, Scene], Decision]] = {
        "selector": selection, "prune": pruning, "reducer": reducing,
    }  # fmt: skip
    parts = []
    for part in method.split():
        if part.kind not in kinds:
            raise Undecided(f"a {part.kind} is not known here")
        parts.append(kinds[part.kind](part, scene))

    def run(meter: Meter) -> None:
        with torch.no_grad():
            for part in parts:
                part(meter)

    return run


def selection(selector: Selector, scene: Scene) -> Decision:
    """A selector's capture and `select`."""
    if not selector.shortens(scene.unit):
        raise Undecided("keeps every token: nothing is captured or decided")
    k = scene.tokens if selector.adaptive else selector.count_of(scene.unit)
    parts, needs = _on_either_tower(scene, selector.needs)
    prefix, encoding = int(parts.has_cls), Encoding()
    attention = scene.attention(scene.crops.side**2 + prefix, 1 - prefix)
    blocks = blocks_heard(needs, False, len(parts.blocks))
    listeners = tower_listeners(stand_in_adapter(parts), needs, encoding, blocks, Again())
    visual = scene.visual(needs, prefix)

    def run(meter: Meter) -> None:
        captured: dict[str, Any] = {"received": {}, "cls": {}, "keys": {}, "observed": {}}
        with meter.weighing():
            with meter.capturing():
                for listener in listeners.values():
                    listener(attention, {})
                for (what, name), (values,) in encoding.features.scores.items():
                    captured[what][name] = scene.of_tokens(values, prefix)
            with meter.deciding():
                selector.select(replace(visual, **captured), k)
        encoding.forget()

    return run


def reducing(reducer: Reducer, scene: Scene) -> Decision:
    """All calls of `reduce` in one pass of the tower; rows come and go between them as in a model."""
    parts, blocks = _on_either_tower(scene, reducer.blocks)
    prefix, rows = int(parts.has_cls), torch.arange(scene.tokens)[:, None]
    hidden = scene.tower_hidden[:, 1 - prefix :]
    pictures: tuple[Picture, ...] = ()
    if reducer.sees_pixels:  # in a packed tower
        prefix, hidden, pictures = 0, scene.random(scene.tokens, TOWER_WIDTH), (scene.picture(),)
    if not TowerRun(reducer, blocks, [rows], hidden, prefix, BLOCKS).active:
        raise Undecided("keeps every token: nothing is decided")

    def run(meter: Meter) -> None:
        tower = TowerRun(cast(Reducer, _Metered(reducer, meter)), blocks, [rows], hidden, prefix, BLOCKS, pictures)
        x = hidden
        for block in blocks:
            changed = tower.before_block(block, BlockCall.of(x, None))
            x = x if changed is None else changed[0][0]
            if reducer.acts != "entry":
                tower.hear(scene.attention(x.shape[1], 1 - prefix), True)
                move = tower.reduce(block, x)
                x = x if move is None else move.rows

    return run


class _Metered:
    """A reducer whose calls of `reduce` are measured."""

    def __init__(self, reducer: Reducer, meter: Meter):
        self._reducer, self._meter = reducer, meter

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reducer, name)

    def reduce(self, patches: Patches) -> Any:
        with self._meter.weighing(), self._meter.deciding():
            return self._reducer.reduce(patches)


def pruning(prune: Prune, scene: Scene) -> Decision:
    """What a prune takes note of in the layers before its last stage, and what it decides at each."""
    schedule, watch = prune.schedule(LAYERS), prune.watch(LAYERS)
    least = min(prune.count_at(stage, scene.tokens) for stage in range(len(schedule)))
    if not prune.adaptive and least >= scene.tokens:
        raise Undecided("keeps every token: nothing is decided")

    def run(meter: Meter) -> None:
        memory: Memory = {}
        present = scene.tokens
        with scene.tapped(watch.probe):
            if watch.entry:
                with meter.weighing(), meter.capturing():
                    prune.on_entry(scene.rows(0, present, False), memory)
            for layer in range(schedule[-1] + 1):
                seen = present
                if layer in schedule and present:
                    left = min(prune.count_at(schedule.index(layer), scene.tokens), present)
                    rows = scene.rows(layer, present, watch.probe)
                    with meter.weighing(), meter.deciding():
                        alive = prune.decide(rows, [left], memory).alive
                    seen = left = int((alive & rows.visual).sum()) if prune.adaptive else left
                    if not prune.returns:
                        _cut(memory, present, left)
                        present = left
                if layer < schedule[-1]:
                    _watched(prune, scene.rows(layer, seen, False), scene, meter, memory)

    return run


def _watched(prune: Prune, rows: Rows, scene: Scene, meter: Meter, memory: Memory) -> None:
    """Hand a prune what it watches of one layer."""
    watch, length = prune.watch(LAYERS), rows.visual.shape[1]
    if rows.layer in watch.attention:
        attention = scene.decoder_attention(length)
        with meter.weighing(), meter.capturing():
            prune.on_attention(rows, attention, memory)
    for module in ("attention", "mlp") if rows.layer in watch.modules else ():
        before, after = scene.decoder_hidden(length)
        with meter.weighing(), meter.capturing():
            prune.on_modules(rows, module, before, after, memory)


def _cut(memory: Memory, present: int, left: int) -> None:
    """Shorten what is per token of the sequence; which visual tokens stay does not matter to the clock."""
    length = BEFORE + present + AFTER
    for name, value in memory.items():
        if value.shape[:2] == (1, length):
            place = torch.arange(length, device=value.device)
            kept = place[(place < BEFORE + left) | (place >= BEFORE + present)]
            memory[name] = take(value, kept[None])


def _on_either_tower(scene: Scene, ask: Callable[[Any], Any]) -> tuple[Any, Any]:
    """The stand-in's parts, and what a method answers to them; without CLS where it refuses a tower with CLS."""
    try:
        parts = scene.parts(has_cls=True)
        return parts, ask(parts)
    except ValueError as refusal:
        parts = scene.parts(has_cls=False)
        try:
            return parts, ask(parts)
        except ValueError:
            raise refusal from None
