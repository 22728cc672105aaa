"""What comes of the rounds of `vtc bench prefill`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypedDict

from vtc.eval.results.results import Spread, spread
from vtc.eval.results.settings import NONE
from vtc.tracing import Trace


class Variant(NamedTuple):
    """A setting by its name, and whether it ran the CUDA kernels."""

    setting: str
    kernels: bool


UNTOUCHED = Variant(NONE, False)


@dataclass(frozen=True)
class Timing:
    """One run: milliseconds; None where it was not measured."""

    prefill_ms: float
    decoder_ms: float
    first_token_ms: float
    selection_ms: float
    bare_ms: float | None
    decode_tokens_per_s: float | None
    peak_bytes: int | None


class Times(TypedDict):
    """What each run is measured by, the untouched one too.

    Attributes:
        prefill_ms: tower, selection, decoder, logits of the last position; of the whole batch, as all times.
        decoder_ms: the decoder's part of it, selection included; no vocabulary head.
        first_token_ms: the call of the model until the likeliest next token is known.
        decode_tokens_per_s: tokens after the first, of all rows; None where none were asked for.
        peak_memory_bytes: most that was allocated on the GPU during the prefill, weights included; None on a CPU.
    """

    prefill_ms: Spread
    decoder_ms: Spread
    first_token_ms: Spread
    decode_tokens_per_s: Spread | None
    peak_memory_bytes: int | None


class PrefillResult(Times):
    """One setting, with the kernels or without.

    Attributes:
        setting: spec string; kernels: whether CUDA kernels ran.
        equivalent_tokens: per row, mean over decoder layers; kept_tokens: per row, entering the last layer.
        flops: of the whole prefill; decoder_flops: of the decoder layers.
        selection_ms: deciding and gathering; selection_share: that over prefill_ms.
        bare_ms: the unpatched decoder on as many tokens; None for methods that remove tokens further in.
        prefill_speedup, decoder_speedup, first_token_speedup: time of the untouched model in the same round over this.
        prefill_speedup_ideal, decoder_speedup_ideal: what the FLOPs of the same parts promise.
        prefill_attained, decoder_attained: speed-up over ideal.
    """

    setting: str
    kernels: bool
    equivalent_tokens: float
    kept_tokens: float
    flops: float
    decoder_flops: float
    selection_ms: Spread
    selection_share: Spread
    bare_ms: Spread | None
    prefill_speedup: Spread
    prefill_speedup_ideal: float
    prefill_attained: Spread
    decoder_speedup: Spread
    decoder_speedup_ideal: float
    decoder_attained: Spread
    first_token_speedup: Spread


class ModelResult(TypedDict):
    """One model.

    Attributes:
        model: the name of a shape, or what --model was.
        parameters: of the whole model.
        dtype, attn: of the decoder.
        visual_tokens, text_tokens: of each row.
        flops, decoder_flops: of the untouched prefill.
        untouched: times of the model as it is.
        settings: one for each that could be timed, with and without the kernels.
        untimed: setting -> why there are no figures.
    """

    model: str
    parameters: int
    dtype: str
    attn: str | None
    visual_tokens: float
    text_tokens: float
    flops: float
    decoder_flops: float
    untouched: Times
    settings: list[PrefillResult]
    untimed: dict[str, str]


def times(timings: Sequence[Timing]) -> Times:
    """The times of one variant, over the rounds."""
    rates = [timing.decode_tokens_per_s for timing in timings if timing.decode_tokens_per_s is not None]
    peaks = [timing.peak_bytes for timing in timings if timing.peak_bytes is not None]
    return {
        "prefill_ms": spread([timing.prefill_ms for timing in timings]),
        "decoder_ms": spread([timing.decoder_ms for timing in timings]),
        "first_token_ms": spread([timing.first_token_ms for timing in timings]),
        "decode_tokens_per_s": spread(rates) if rates else None,
        "peak_memory_bytes": max(peaks) if peaks else None,
    }


def result(variant: Variant, trace: Trace, rounds: Sequence[dict[Variant, Timing]]) -> PrefillResult:
    """What is reported of one variant.

    Args:
        variant: not the untouched model.
        trace: of any of its runs: they are all alike.
        rounds: those that count.
    """
    mine = [round_[variant] for round_ in rounds]
    bare = [timing.bare_ms for timing in mine if timing.bare_ms is not None]
    flops = trace.flops()
    ideal, decoder_ideal = flops.unpatched_total / flops.total, flops.unpatched_decoder / flops.decoder

    def speedup(read: Callable[[Timing], float], over: float = 1.0) -> Spread:
        return spread([read(round_[UNTOUCHED]) / read(round_[variant]) / over for round_ in rounds])

    return {
        **times(mine),
        "setting": variant.setting,
        "kernels": variant.kernels,
        "equivalent_tokens": float(trace.equivalent_tokens.mean()),
        "kept_tokens": float(trace.tokens_per_layer[-1].double().mean()),
        "flops": flops.total,
        "decoder_flops": flops.decoder,
        "selection_ms": spread([timing.selection_ms for timing in mine]),
        "selection_share": spread([timing.selection_ms / timing.prefill_ms for timing in mine]),
        "bare_ms": spread(bare) if bare else None,
        "prefill_speedup": speedup(lambda timing: timing.prefill_ms),
        "prefill_speedup_ideal": ideal,
        "prefill_attained": speedup(lambda timing: timing.prefill_ms, over=ideal),
        "decoder_speedup": speedup(lambda timing: timing.decoder_ms),
        "decoder_speedup_ideal": decoder_ideal,
        "decoder_attained": speedup(lambda timing: timing.decoder_ms, over=decoder_ideal),
        "first_token_speedup": speedup(lambda timing: timing.first_token_ms),
    }
