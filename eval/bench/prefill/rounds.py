"""The rounds of `vtc bench prefill`.

Every round runs the untouched model and every setting once on the same batch, one after another; a round's ratios are
taken within it, so that what else the machine does falls on both sides. First rounds are not counted. Beside a selector
stands the bare decoder, called by itself on as many tokens as the selector leaves: what is lost against it is lost to
compression, what it loses against the FLOPs is lost to short sequences.
"""

from collections.abc import Sequence
from typing import Any

import torch

import vtc
from vtc import ops
from vtc.calls.attention import implementation
from vtc.calls.composite import last_logits_only
from vtc.eval.bench.prefill.results import (
    UNTOUCHED,
    ModelResult,
    Timing,
    Variant,
    result,
    times,
)
from vtc.eval.models import Loaded
from vtc.eval.results.settings import NONE, Setting
from vtc.eval.run.stopwatch import Stopwatch
from vtc.ops.cuda import load
from vtc.tracing import Trace

WARM_UP_ROUNDS = 2
#: What a method may raise that wants more of a model than this one has; running out of memory is among it.
REFUSALS = (RuntimeError, TypeError, ValueError)


def bench_prefill(
    name: str, loaded: Loaded, settings: Sequence[Setting], inputs: dict[str, Any], rounds: int, new_tokens: int
) -> ModelResult:
    """Time one batch under each setting but "none", which all are measured against.

    Args:
        name: of the model.
        loaded: the model.
        settings: "none" first.
        inputs: what the model takes, on its device; no row is padded, so that the FLOPs are those of what is computed.
        rounds: that are counted.
        new_tokens: tokens that are generated, the first one included; 1: decoding is not timed.
    """
    bench = _Bench(loaded, settings, inputs, new_tokens)
    with torch.inference_mode(), vtc.patched(loaded.model, NONE):
        loaded.model(**inputs, use_cache=True, **last_logits_only(loaded.model))
        whole = vtc.trace(loaded.model)
    flops = whole.flops()
    done = bench.run(rounds)
    return {
        "model": name,
        "parameters": sum(parameter.numel() for parameter in loaded.model.parameters()),
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "attn": implementation(loaded.decoder.config),
        "visual_tokens": float(whole.original_tokens.double().mean()),
        "text_tokens": float(whole.text_tokens.double().mean()),
        "flops": flops.unpatched_total,
        "decoder_flops": flops.unpatched_decoder,
        "untouched": times([round_[UNTOUCHED] for round_ in done]),
        "settings": [result(each, bench.traces[each], done) for each in bench.variants if each != UNTOUCHED],
        "untimed": bench.untimed,
    }


class _Bench:
    """All settings on one model.

    Attributes:
        variants: those that could be run so far, the untouched model first.
        traces: of the last run of each.
        untimed: setting -> why it could not be run.
    """

    def __init__(self, loaded: Loaded, settings: Sequence[Setting], inputs: dict[str, Any], new_tokens: int):
        self._loaded, self._inputs, self._new_tokens = loaded, inputs, new_tokens
        self._methods = {setting.name: setting.methods for setting in settings}
        named = [setting.name for setting in settings if setting.methods]
        self.variants = [UNTOUCHED, *(Variant(name, on) for name in named for on in self._kernels())]
        self.traces: dict[Variant, Trace] = {}
        self.untimed: dict[str, str] = {}

    def _kernels(self) -> tuple[bool, ...]:
        """With and without the CUDA kernels, where there are any."""
        device = self._loaded.model.device
        return (True, False) if device.type == "cuda" and load(device) is not None else (False,)

    def run(self, rounds: int) -> list[dict[Variant, Timing]]:
        """The rounds that count; each begins with another variant."""
        done = []
        for index in range(WARM_UP_ROUNDS + rounds):
            turn = index % len(self.variants)
            order = [*self.variants[turn:], *self.variants[:turn]]
            done.append({variant: timing for variant in order if (timing := self._try(variant))})
        return done[WARM_UP_ROUNDS:]

    def _try(self, variant: Variant) -> Timing | None:
        """Time one variant; None where its setting can't be run, which is tried no more."""
        if variant.setting in self.untimed:
            return None
        try:
            return self._once(variant)
        except REFUSALS as error:
            if variant == UNTOUCHED:
                raise
            reason = str(error).strip().partition("\n")[0]
            self.untimed[variant.setting] = (
                reason if isinstance(error, ValueError) else f"{type(error).__name__}: {reason}"
            )
            self.variants = [each for each in self.variants if each.setting != variant.setting]
            return None

    def _once(self, variant: Variant) -> Timing:
        """Time decoding, one prefill up to the first token, and the bare decoder on as many tokens.

        Decoding comes first: in its prefill, which is not timed, happens what a model does only once after a patch.
        """
        model, methods = self._loaded.model, self._methods[variant.setting]
        if methods:
            vtc.patch(model, *methods)
        try:
            with torch.inference_mode(), ops.kernels(variant.kernels):
                rate = self._decode_rate()
                if model.device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats(model.device)
                with Stopwatch(self._loaded) as watch:
                    logits = model(**self._inputs, use_cache=True, **last_logits_only(model)).logits
                    watch(logits[:, -1].argmax(dim=-1, keepdim=True), logits)
                peak = torch.cuda.max_memory_allocated(model.device) if model.device.type == "cuda" else None
                if methods:
                    self.traces[variant] = vtc.trace(model)
        finally:
            if methods:
                vtc.unpatch(model)
        trace = self.traces.get(variant)
        return Timing(
            prefill_ms=watch.prefill_ms or 0.0,
            decoder_ms=watch.decoder_ms or 0.0,
            first_token_ms=watch.first_token_ms or 0.0,
            selection_ms=0.0 if trace is None else trace.selection_ms,
            bare_ms=None if trace is None else _bare_ms(self._loaded, trace),
            decode_tokens_per_s=rate,
            peak_bytes=peak,
        )

    def _decode_rate(self) -> float | None:
        """Tokens per second after the first; None where there is none."""
        count = self._new_tokens
        with Stopwatch(self._loaded) as watch:
            self._loaded.model.generate(
                **self._inputs,
                min_new_tokens=count,
                max_new_tokens=count,
                do_sample=False,
                num_beams=1,
                stopping_criteria=[watch],
            )
        rows = len(self._inputs["input_ids"])
        return 1e3 * rows * watch.decode_steps / watch.decode_ms if watch.decode_steps and watch.decode_ms else None


def _bare_ms(loaded: Loaded, trace: Trace) -> float | None:
    """Time the unpatched decoder on as many tokens as entered its layers; None where layers saw different numbers."""
    counts = trace.tokens_per_layer
    if not (counts == counts[0]).all():
        return None
    shape = counts.shape[1], int((counts[0] + trace.text_tokens.to(counts)).max()), loaded.decoder.config.hidden_size
    embeds = torch.zeros(shape, dtype=loaded.model.dtype, device=loaded.model.device)
    with torch.inference_mode(), Stopwatch(loaded) as watch:
        loaded.decoder(inputs_embeds=embeds, use_cache=True)
    return watch.decoder_ms
