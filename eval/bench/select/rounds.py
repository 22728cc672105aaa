"""The rounds of `vtc bench select`, and what comes of them.

Each round times one decoder layer, one tower block and every method once, one after another; shares are taken within a
round. The first round at each size is not counted: it measures memory, which disturbs the clock.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypedDict

import torch

from vtc import spec
from vtc.eval.bench.select.decision import Decision, Meter, Undecided, decision, now
from vtc.eval.bench.select.scene import BLOCKS, LAYERS, Scene, Yardstick
from vtc.eval.cli.arguments import say
from vtc.eval.results.results import Spread, spread
from vtc.method.base import Method

#: Rounds at each size: as many as fit into so many seconds, but this number at least.
SECONDS, LEAST_ROUNDS = 30.0, 3
#: A method that takes longer, in seconds, is run once.
SLOW = 30.0
#: What a method may raise that wants more of a model than the stand-in has.
OUTSIDE = (AttributeError, LookupError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class Sample:
    """One decision, and decoder and tower in the same round: all layers, all blocks. Seconds."""

    capture: float
    decide: float
    decoder: float
    tower: float

    @property
    def total(self) -> float:
        """Capture and decision."""
        return self.capture + self.decide


class MethodResult(TypedDict):
    """One method at one size.

    Attributes:
        method, kind: as registered; setting: spec string.
        tokens: visual tokens before.
        untimed: why there are no figures; None where there are.
        rounds: that were counted; 1 for a slow method, of the round that measured memory.
        capture_ms: reading the model's attention (or hidden states); decide_ms: deciding; total_ms: both.
        share: total over the decoder's prefill; tower_share: over the tower's pass.
        extra_bytes: memory at the peak above the level before; None where there are no figures.
        time_exponent, memory_exponent: p of N^p from the size before; None for the first, and where memory was 0.
    """

    method: str
    kind: str
    setting: str
    tokens: int
    untimed: str | None
    rounds: int
    capture_ms: Spread | None
    decide_ms: Spread | None
    total_ms: Spread | None
    share: Spread | None
    tower_share: Spread | None
    extra_bytes: int | None
    time_exponent: float | None
    memory_exponent: float | None


class SizeResult(TypedDict):
    """What methods are held up to at one size.

    Attributes:
        tokens: visual tokens; crops: in how many crops or frames they were seen, of side × side patches each.
        decoder_ms: 24 times one layer; tower_ms: 24 times one block.
    """

    tokens: int
    crops: int
    side: int
    decoder_ms: Spread
    tower_ms: Spread


def bench_select(
    methods: list[Method],
    sizes: Sequence[int],
    device: torch.device,
    rounds: int,
    scene_of: type[Scene] = Scene,
) -> tuple[list[SizeResult], list[MethodResult]]:
    """Time every method at every size; results by method, then size.

    Args:
        methods: all of different names.
        sizes: visual tokens of images, or frames of videos.
        device: where everything is.
        rounds: most times that each is run.
        scene_of: images or videos.
    """
    scene = scene_of(scene_of.warm_up, device)
    yardstick = Yardstick(scene)
    say("vtc bench: warming up")
    _Size(methods, scene, yardstick).round(weigh=True)
    done = []
    slow: dict[str, str] = {}
    for number in sorted(set(sizes)):
        size = _Size(methods, scene_of(number, device), yardstick, slow)
        say(f"vtc bench: {number} {scene_of.counted}")
        size.run(rounds)
        slow |= size.slow()
        done.append((size.held_up_to(), size.results()))
    by_method = [result for same in zip(*(results for _, results in done)) for result in _with_growth(same)]
    return [size for size, _ in done], by_method


class _Size:
    """All methods at one number of visual tokens, but those that were too `slow` at fewer: name -> what is said."""

    def __init__(self, methods: list[Method], scene: Scene, yardstick: Yardstick, slow: Mapping[str, str] = {}):
        self._methods, self._scene = methods, scene
        self._layer, self._block = yardstick.decoder_layer(scene), yardstick.tower_block(scene)
        self._untimed: dict[str, str] = {}
        self._decisions: dict[str, Decision] = {}
        self._samples: dict[str, list[Sample]] = {method.name: [] for method in methods}
        self._bytes: dict[str, int | None] = {}
        self._held_up_to: list[tuple[float, float]] = []
        for method in methods:
            if method.name in slow:
                self._untimed[method.name] = slow[method.name]
            else:
                self._prepare(method)

    def _prepare(self, method: Method) -> None:
        try:
            self._decisions[method.name] = decision(method, self._scene)
        except Undecided as reason:
            self._untimed[method.name] = str(reason)
        except OUTSIDE as error:
            self._untimed[method.name] = _failure(error)

    def run(self, rounds: int) -> None:
        """The round that measures memory, then up to `rounds` that count."""
        self.round(weigh=True)
        decoder, tower = self._held_up_to[0]
        if decoder / LAYERS + tower / BLOCKS > SLOW:
            return
        self._held_up_to.clear()
        self._decisions = {name: run for name, run in self._decisions.items() if name not in self.slow()}
        for name in self._decisions:
            self._samples[name].clear()
        start, done = time.monotonic(), 0
        while done < rounds and (done < LEAST_ROUNDS or time.monotonic() - start < SECONDS):
            self.round(turn=done)
            done += 1

    def round(self, weigh: bool = False, turn: int = 0) -> None:
        """Decoder, tower and every method once; each round begins with another method."""
        with torch.no_grad():
            decoder, tower = LAYERS * self._seconds(self._layer), BLOCKS * self._seconds(self._block)
        self._held_up_to.append((decoder, tower))
        order = list(self._decisions)
        turn %= max(len(order), 1)
        for name in [*order[turn:], *order[:turn]]:
            meter = Meter(self._scene.device, weigh)
            try:
                self._decisions[name](meter)
            except OUTSIDE as error:
                self._untimed[name] = _failure(error)
                del self._decisions[name]
                continue
            self._samples[name].append(Sample(meter.capture_s, meter.decide_s, decoder, tower))
            if weigh:
                self._bytes[name] = meter.peak_bytes

    def slow(self) -> dict[str, str]:
        """Methods of which one decision is enough -> how long it took."""
        first = {name: samples[0].total for name, samples in self._samples.items() if samples}
        return {name: f"took {s:.0f} s at {self._scene.tokens} tokens" for name, s in first.items() if s > SLOW}

    def _seconds(self, work: Callable[[], Any]) -> float:
        start = now(self._scene.device)
        work()
        return now(self._scene.device) - start

    def held_up_to(self) -> SizeResult:
        """Decoder and tower."""
        decoder, tower = zip(*self._held_up_to)
        return {
            "tokens": self._scene.tokens,
            "crops": self._scene.crops.count,
            "side": self._scene.crops.side,
            "decoder_ms": spread([1e3 * seconds for seconds in decoder]),
            "tower_ms": spread([1e3 * seconds for seconds in tower]),
        }

    def results(self) -> list[MethodResult]:
        """A result for each method, in order."""
        return [self._result(method) for method in self._methods]

    def _result(self, method: Method) -> MethodResult:
        samples = [] if method.name in self._untimed else self._samples[method.name]

        def over(read: Callable[[Sample], float]) -> Spread | None:
            return spread([read(sample) for sample in samples]) if samples else None

        return {
            "method": method.name,
            "kind": method.kind,
            "setting": spec.to_string([method]),
            "tokens": self._scene.tokens,
            "untimed": self._untimed.get(method.name),
            "rounds": len(samples),
            "capture_ms": over(lambda s: 1e3 * s.capture),
            "decide_ms": over(lambda s: 1e3 * s.decide),
            "total_ms": over(lambda s: 1e3 * s.total),
            "share": over(lambda s: s.total / s.decoder),
            "tower_share": over(lambda s: s.total / s.tower),
            "extra_bytes": self._bytes.get(method.name) if samples else None,
            "time_exponent": None,
            "memory_exponent": None,
        }


def _failure(error: Exception) -> str:
    return f"failed on the stand-in: {type(error).__name__}: {str(error).partition(chr(10))[0]}"


def _with_growth(sizes: Sequence[MethodResult]) -> list[MethodResult]:
    """The results of one method by size, each with its growth from the size before."""
    grown = list(sizes[:1])
    for before, after in pairwise(sizes):
        step = math.log(after["tokens"] / before["tokens"])
        time_exponent = memory_exponent = None
        if before["total_ms"] and after["total_ms"]:
            time_exponent = math.log(after["total_ms"]["median"] / before["total_ms"]["median"]) / step
        if before["extra_bytes"] and after["extra_bytes"]:
            memory_exponent = math.log(after["extra_bytes"] / before["extra_bytes"]) / step
        grown.append({**after, "time_exponent": time_exponent, "memory_exponent": memory_exponent})
    return grown
