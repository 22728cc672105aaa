"""What `vtc bench prefill` prints: how it was measured, a table for each model, and what was published beside it."""

from typing import Any

from vtc.eval.bench.prefill.published import PublishedSpeed
from vtc.eval.bench.prefill.results import ModelResult, PrefillResult, Times
from vtc.eval.results.results import Spread
from vtc.eval.results.table import aligned, shown


def about(run: dict[str, Any]) -> str:
    """The line above the tables, from what the file says of the run."""
    return (
        f"prefill of {run['batch_size']} at once on {run['device_name']}, {run['threads']} threads, {run['rounds']} "
        f"rounds, {run['date']}, torch {run['torch']}, transformers {run['transformers']}; median [quartiles], ratios "
        "within a round"
    )


def table(result: ModelResult) -> list[str]:
    """The lines of one model: what it is, a row for each setting, and those that could not be timed."""
    flops = f"{result['flops'] / 1e12:.3g} TFLOP, the decoder {result['decoder_flops'] / 1e12:.3g}"
    head = (
        f"model {result['model']}: {result['parameters'] / 1e9:.3g} B parameters, {result['dtype']}, {result['attn']}; "
        f"{result['visual_tokens']:.0f} visual and {result['text_tokens']:.0f} text tokens a row; {flops}"
    )
    rows = [["setting", "kernels", "equivalent tokens", *_TIMES, *_RATIOS]]
    rows.append(["none", "", f"{result['visual_tokens']:.1f}", *_times(result["untouched"]), *[""] * len(_RATIOS)])
    for each in result["settings"]:
        kernels = "with" if each["kernels"] else "without"
        rows.append([each["setting"], kernels, f"{each['equivalent_tokens']:.1f}", *_times(each), *_ratios(each)])
    measured = [column for column in zip(*rows) if any(column[1:])]
    why = [f"not timed: {setting}: {reason}" for setting, reason in result["untimed"].items()]
    return [head, *aligned(list(zip(*measured))), *why]


_TIMES = ("prefill ms", "decoder ms", "first token ms", "tokens/s after it", "peak GiB")
_RATIOS = (
    *("prefill x of FLOPs' = attained", "decoder x of FLOPs' = attained", "first token x"),
    *("selection ms", "of the prefill, %", "bare decoder ms"),
)


def _times(times: Times) -> list[str]:
    peak = times["peak_memory_bytes"]
    return [
        shown(times["prefill_ms"]),
        shown(times["decoder_ms"]),
        shown(times["first_token_ms"]),
        shown(times["decode_tokens_per_s"]),
        "" if peak is None else f"{peak / 2**30:.2f}",
    ]


def _ratios(result: PrefillResult) -> list[str]:
    return [
        _attained(result["prefill_speedup"], result["prefill_speedup_ideal"], result["prefill_attained"]),
        _attained(result["decoder_speedup"], result["decoder_speedup_ideal"], result["decoder_attained"]),
        shown(result["first_token_speedup"]),
        shown(result["selection_ms"]),
        shown(result["selection_share"], 100),
        shown(result["bare_ms"]),
    ]


def _attained(speedup: Spread, ideal: float, attained: Spread) -> str:
    return f"{speedup['median']:.2f} of {ideal:.2f} = {shown(attained)}"


def published_line(speed: PublishedSpeed, result: ModelResult) -> str:
    """The published ratio beside ours."""
    what = {"prefill_speedup": "prefill", "first_token_speedup": "first token"}[speed.of]
    ours = [
        f"x {shown(each[speed.of])} {'with' if each['kernels'] else 'without'} kernels" for each in result["settings"]
    ]
    return f"published: {what} x {speed.ratio} ({speed.note}); here {', '.join(ours) or 'not timed'}"
