"""What `vtc bench select` prints: how it was measured, and two tables."""

import math
from collections.abc import Sequence
from statistics import linear_regression
from typing import Any

from vtc.eval.bench.select.rounds import LEAST_ROUNDS, SECONDS, SLOW, MethodResult, SizeResult
from vtc.eval.bench.select.scene import AFTER, BEFORE
from vtc.eval.bench.select.video import SHOT, VideoScene
from vtc.eval.results.table import aligned, shown


def about(run: dict[str, Any]) -> list[str]:
    """The lines above the tables.

    Args:
        run: shown ("image" or "video"), frame_tokens, keep, device, dtype, threads, most_rounds.
    """
    crops, values = "crops, each with a class token", "random values"
    if run["shown"] == "video":
        patches = VideoScene.patches
        side = patches * math.isqrt(run["frame_tokens"])
        crops = f"frames of {side}x{side} patches, {patches}x{patches} of which make a token"
        values = f"random values: a still picture with noise, a square that moves over it, a cut every {SHOT} frames"
    return [
        f"decisions alone, one {run['shown']}, keep {run['keep']}, {values}, {run['device']}, {run['dtype']}, "
        f"{run['threads']} threads; median [quartiles] over the rounds, shares within a round",
        f"decoder: prefill of {BEFORE + AFTER} text tokens and all visual ones, as 24 x one random decoder layer of "
        "the shape of Qwen2-0.5B",
        f"tower: 24 x one random block of the shape of CLIP-L, over all {crops}",
        "selector: capture = what is read of the tower's attention, decide = select; prune: capture = what is noted "
        "in decoder layers, decide = score with its probe; reducer: decide = all calls of reduce in one pass",
        "not part of it: what the seam does around a decision (laying out, gathering and cutting rows), and what a "
        "method keeps from one image for the next of the same shape is warm",
        "extra memory: of one decision, what torch's allocator has handed out at the peak (tensors, and what "
        "operations hold for a while; not what libraries below take for themselves), above what it is given",
        "time, memory: growth from the size before; where crops have another size, that is in it too",
        f"rounds: at most {run['most_rounds']}, {LEAST_ROUNDS} where those take a size {SECONDS:.0f} s or more; "
        f"a method that takes more than {SLOW:.0f} s is run once, in the round that measures memory, and at no larger "
        f"size; so are all where decoder and tower take more than {SLOW:.0f} s",
    ]


def table(sizes: Sequence[SizeResult], methods: Sequence[MethodResult]) -> list[str]:
    """A table of what methods are held up to, and one of the methods; a method that was not timed says why."""
    first = [["visual tokens", "crops or frames, patches", "decoder ms", "tower ms"]]
    for size in sizes:
        crops = f"{size['crops']} of {size['side']}x{size['side']}"
        first.append([str(size["tokens"]), crops, shown(size["decoder_ms"]), shown(size["tower_ms"])])
    second = [
        [
            *["method", "kind", "tokens", "capture ms", "decide ms", "of the decoder, %", "of the tower, %"],
            *["extra MiB", "time", "memory", "rounds"],
        ]
    ]
    untimed = dict.fromkeys((r["method"], r["kind"], r["untimed"]) for r in methods if r["untimed"])
    second += [_row(result) for result in methods if not result["untimed"]]
    why = []
    for name, kind, reason in untimed:
        where = [str(r["tokens"]) for r in methods if (r["method"], r["untimed"]) == (name, reason)]
        why.append(f"not timed: {name} ({kind}) at {', '.join(where)} tokens: {reason}")
    return [*aligned(first), "", *aligned(second), *_growth(methods), *why]


def _growth(methods: Sequence[MethodResult]) -> list[str]:
    """A line that tells p of N^p for each method over all of its sizes, which shakes less than that of one step."""
    points: dict[str, list[tuple[float, float]]] = {}
    for result in methods:
        if result["total_ms"]:
            point = math.log(result["tokens"]), math.log(result["total_ms"]["median"])
            points.setdefault(result["method"], []).append(point)
    found = [f"{name} {_power(linear_regression(*zip(*at)).slope)}" for name, at in points.items() if len(at) > 1]
    return [f"time over all sizes, slope of the logarithms by least squares: {', '.join(found)}"] if found else []


def _row(result: MethodResult) -> list[str]:
    memory = "?" if result["extra_bytes"] is None else f"{result['extra_bytes'] / 2**20:.1f}"
    return [
        result["method"],
        result["kind"],
        str(result["tokens"]),
        shown(result["capture_ms"]),
        shown(result["decide_ms"]),
        shown(result["share"], 100),
        shown(result["tower_share"], 100),
        memory,
        _power(result["time_exponent"]),
        _power(result["memory_exponent"]),
        str(result["rounds"]),
    ]


def _power(exponent: float | None) -> str:
    return "" if exponent is None else f"N^{exponent:.1f}"
