"""`vtc bench prefill`: how much of the speed-up that the FLOPs promise arrives on the clock.

Every round runs the untouched model and every setting once on the same batch, one after another; a round's ratios are
taken within it, so that what else the machine does falls on both sides. Timed is the decoder's part of the prefill,
selection included; the FLOPs are those of the same part: decoder layers, no vocabulary head. Beside a selector stands
the bare decoder, called by itself on as many tokens as the selector leaves: what is lost against it is lost to
compression, what it loses against the FLOPs is lost to short sequences.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from vtc.eval import bench_select
from vtc.eval.arguments import add_model_arguments, add_setting_arguments, positive
from vtc.eval.errors import InputError

if TYPE_CHECKING:
    from vtc.eval.models import Loaded
    from vtc.eval.results import Spread
    from vtc.eval.settings import Setting
    from vtc.tracing import Trace

WARM_UP_ROUNDS = 2


@dataclass(frozen=True)
class Timing:
    """One prefill: milliseconds, and the trace where the model was patched."""

    decoder_ms: float
    prefill_ms: float
    bare_ms: float | None
    trace: "Trace | None"


class PrefillResult(TypedDict):
    """One setting of `vtc bench prefill`.

    Attributes:
        setting: spec string.
        equivalent_tokens: per picture or clip, mean over decoder layers.
        decoder_ms, prefill_ms, selection_ms: per batch, milliseconds; prefill with tower and logits.
        bare_ms: the unpatched decoder on as many tokens; None for methods that remove tokens further in.
        decoder_speedup, prefill_speedup: time of the untouched model in the same round over this one's.
        decoder_speedup_ideal: what the decoder's FLOPs promise.
        attained: decoder_speedup over decoder_speedup_ideal.
        selection_share: selection_ms over decoder_ms.
    """

    setting: str
    equivalent_tokens: float
    decoder_ms: "Spread"
    prefill_ms: "Spread"
    selection_ms: "Spread"
    bare_ms: "Spread | None"
    decoder_speedup: "Spread"
    prefill_speedup: "Spread"
    decoder_speedup_ideal: float
    attained: "Spread"
    selection_share: "Spread"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `vtc bench`."""
    benches = parser.add_subparsers(dest="bench", required=True, metavar="WHAT")
    prefill = benches.add_parser(
        "prefill",
        help="measured and promised speed-up of the decoder's prefill",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    add_model_arguments(prefill)
    add_setting_arguments(prefill, "divprune", "0.25,0.125,0.0625")
    prefill.add_argument(
        "--tasks", choices=("images", "video"), default="images", help="what is shown, and to which bundled model"
    )
    prefill.add_argument("--batch-size", type=positive, default=8, help="pictures or clips at once")
    prefill.add_argument("--rounds", type=positive, default=15, help="times each setting is run")
    prefill.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    bench_select.add_arguments(benches)


def main(args: argparse.Namespace) -> None:
    """Run the rounds and print the table.

    Raises:
        InputError: an argument can't be used.
    """
    if args.bench == "select":
        bench_select.main(args)
        return
    from vtc.eval.benchmarks import TASKS
    from vtc.eval.folder import write_atomically
    from vtc.eval.models import load, set_threads
    from vtc.eval.runner import Runner
    from vtc.eval.settings import make_settings

    if args.json and not args.json.parent.is_dir():
        raise InputError(f"argument --json: folder {str(args.json.parent)!r} does not exist; create it or give another")
    settings = make_settings(args.methods, args.keep, args.compress)
    kind = TASKS[args.tasks]
    threads = set_threads(args.model, args.threads)
    loaded = load(args.model, args.dtype, args.device, args.attn, kind)
    Runner(loaded, settings, 1).check()
    results = bench_prefill(loaded, settings, args.batch_size, args.rounds, kind)
    shown = "pictures" if kind == "image" else "clips"
    print(
        f"prefill of {args.batch_size} {shown}, model {args.model}, {loaded.model.dtype}, "
        f"{threads} threads, {args.rounds} rounds; median [quartiles]"
    )
    for result in results:
        print(_line(result))
    if args.json:
        run = {key: getattr(args, key) for key in ("model", "tasks", "batch_size", "rounds", "device", "attn")}
        write_atomically(args.json, json.dumps({**run, "threads": threads, "settings": results}, indent=2) + "\n")


def bench_prefill(
    loaded: "Loaded", settings: "list[Setting]", batch_size: int, rounds: int, kind: str = "image"
) -> list[PrefillResult]:
    """Time the prefill of one batch of a bundled benchmark's pictures or clips under each setting but "none".

    All get the same question: no row is padded, so that the FLOPs are those of what is computed.

    Args:
        loaded: the model.
        settings: "none" first.
        batch_size: pictures or clips.
        rounds: times each setting is run.
        kind: "image" or "video": what is shown.
    """
    from vtc.eval.benchmarks import bundled_benchmark

    benchmark = bundled_benchmark(kind, batch_size, "test", 0)
    questions = [benchmark.get(index) for index in range(batch_size)]
    shown = [question.shown() for question in questions]
    inputs = loaded.inputs(shown, [questions[0].question] * batch_size, kind)
    seen: list[dict[str, Timing]] = []
    for index in range(WARM_UP_ROUNDS + rounds):
        turn = index % len(settings)
        order = [*settings[turn:], *settings[:turn]]
        seen.append({setting.name: _once(loaded, setting, inputs) for setting in order})
    return [_result(setting, seen[WARM_UP_ROUNDS:]) for setting in settings if setting.methods]


def _once(loaded: "Loaded", setting: "Setting", inputs: dict[str, Any]) -> "Timing":
    """Time one prefill, and the bare decoder on as many tokens."""
    import torch

    import vtc
    from vtc.eval.stopwatch import Stopwatch

    model = loaded.model
    if setting.methods:
        vtc.patch(model, *setting.methods)
    try:
        with torch.inference_mode(), Stopwatch(loaded) as watch:
            model(**inputs, use_cache=True, logits_to_keep=1)
        trace = vtc.trace(model) if setting.methods else None
    finally:
        if setting.methods:
            vtc.unpatch(model)
    bare = None if trace is None else _bare_ms(loaded, trace)
    return Timing(watch.decoder_ms or 0.0, watch.prefill_ms or 0.0, bare, trace)


def _bare_ms(loaded: "Loaded", trace: "Trace") -> float | None:
    """Time the unpatched decoder on as many tokens as entered its layers; None where layers saw different numbers."""
    import torch

    from vtc.eval.stopwatch import Stopwatch

    counts = trace.tokens_per_layer
    if not (counts == counts[0]).all():
        return None
    shape = counts.shape[1], int((counts[0] + trace.text_tokens.to(counts)).max()), loaded.decoder.config.hidden_size
    embeds = torch.zeros(shape, dtype=loaded.model.dtype, device=loaded.model.device)
    with torch.inference_mode(), Stopwatch(loaded) as watch:
        loaded.decoder(inputs_embeds=embeds, use_cache=True)
    return watch.decoder_ms


def _result(setting: "Setting", rounds: "list[dict[str, Timing]]") -> PrefillResult:
    from vtc.eval.results import spread
    from vtc.eval.settings import NONE

    mine, without = [r[setting.name] for r in rounds], [r[NONE] for r in rounds]
    traces = [timing.trace for timing in mine if timing.trace is not None]
    flops = traces[-1].flops()
    ideal = flops.unpatched_decoder / flops.decoder
    speedups = [w.decoder_ms / m.decoder_ms for m, w in zip(mine, without)]
    selections = [trace.selection_ms for trace in traces]
    bare = [timing.bare_ms for timing in mine if timing.bare_ms is not None]
    return {
        "setting": setting.name,
        "equivalent_tokens": float(traces[-1].equivalent_tokens.mean()),
        "decoder_ms": spread([m.decoder_ms for m in mine]),
        "prefill_ms": spread([m.prefill_ms for m in mine]),
        "selection_ms": spread(selections),
        "bare_ms": spread(bare) if bare else None,
        "decoder_speedup": spread(speedups),
        "prefill_speedup": spread([w.prefill_ms / m.prefill_ms for m, w in zip(mine, without)]),
        "decoder_speedup_ideal": ideal,
        "attained": spread([speedup / ideal for speedup in speedups]),
        "selection_share": spread([s / m.decoder_ms for s, m in zip(selections, mine)]),
    }


def _line(result: PrefillResult) -> str:
    def text(spread: "Spread", digits: int = 2) -> str:
        return f"{spread['median']:.{digits}f} [{spread['low']:.{digits}f}, {spread['high']:.{digits}f}]"

    bare = f", bare decoder {text(result['bare_ms'], 1)} ms" if result["bare_ms"] else ""
    return (
        f"{result['setting']}: decoder {text(result['decoder_ms'], 1)} ms, x{text(result['decoder_speedup'])} of "
        f"x{result['decoder_speedup_ideal']:.2f} by FLOPs = {text(result['attained'])}; selection "
        f"{text(result['selection_ms'])} ms, {100 * result['selection_share']['median']:.1f} % of the decoder's time"
        f"{bare}; whole prefill x{text(result['prefill_speedup'])}"
    )
