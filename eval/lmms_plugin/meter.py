"""What calls of a patched model cost, as lmms-eval's results show it."""

import time
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import vtc
from vtc.eval.models import Loaded
from vtc.eval.results.settings import NONE
from vtc.eval.run.memory import PeakMemory
from vtc.eval.run.stopwatch import Stopwatch
from vtc.method.base import Method
from vtc.model.adapter import adapter_class


class Meter:
    """Patches a model and measures its `generate`, until it is closed.

    In a `with` block it gathers the calls, and logs their means behind it; lmms-eval shows them as `avg_NAME` under
    `throughput`.

    Args:
        model: of transformers, unpatched.
        methods: that compress it; "none" among them does nothing but count.
    """

    def __init__(self, model: Any, methods: Sequence[Method]):
        adapter = adapter_class(model)(model)
        self._loaded = Loaded(model, None, adapter.parts.decoder, adapter.tower)
        self._patch = vtc.patch(model, *methods) if methods else vtc.patch(model, NONE)
        self._generate = model.generate
        model.generate = self._measured
        self._calls: list[dict[str, float]] = []
        self._failures: list[Exception] = []
        self._seconds, self._tokens = 0.0, 0

    def close(self) -> None:
        """Give the model back as it was."""
        del self._loaded.model.generate
        vtc.unpatch(self._loaded.model)

    def __enter__(self) -> "Meter":
        from lmms_eval.models.model_utils.gen_metrics import get_logged_metrics_history

        self._calls, self._failures, self._seconds, self._tokens = [], [], 0.0, 0
        self._logged = len(get_logged_metrics_history())
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        from lmms_eval.models.model_utils.gen_metrics import get_logged_metrics_history, log_metrics

        if kind is not None:
            return
        if self._failures and not self._calls:
            raise RuntimeError(f"every call of the compressed model failed: {self._failures[0]}") from self._failures[0]
        if self._calls:
            theirs = len(get_logged_metrics_history()) > self._logged  # its totals are summed: not twice
            seconds, tokens = (0.0, 0) if theirs else (self._seconds, self._tokens)
            log_metrics(seconds, tokens, tokens / seconds if seconds else 0.0, self._means())

    def _measured(self, *args: Any, **kwargs: Any) -> Any:
        model = self._loaded.model
        began = time.perf_counter()
        try:
            with PeakMemory(model.device) as memory, Stopwatch(self._loaded) as watch:
                kwargs["stopping_criteria"] = [*(kwargs.get("stopping_criteria") or ()), watch]
                made = self._generate(*args, **kwargs)
        except Exception as error:
            self._failures.append(error)
            raise
        self._seconds += time.perf_counter() - began
        self._note(watch, memory.bytes)
        return made

    def _note(self, watch: Stopwatch, peak: int | None) -> None:
        trace = vtc.trace(self._loaded.model)
        rows, steps = trace.tokens_per_layer.shape[1], watch.decode_steps
        self._tokens += rows * (steps + 1)
        found = {
            "prefill_ms": watch.prefill_ms,
            "decoder_ms": watch.decoder_ms,
            "first_token_ms": watch.first_token_ms,
            "decode_tokens_per_s": 1e3 * rows * steps / watch.decode_ms if steps and watch.decode_ms else None,
            "selection_ms": trace.selection_ms,
            "peak_memory_bytes": peak,
            "kv_bytes": watch.kv_bytes,
            "flops": trace.flops().total,
            "flops_without": trace.flops().unpatched_total,
            "visual_tokens": fmean(trace.original_tokens.tolist()),
            "kept_tokens": fmean(trace.tokens_per_layer[-1].tolist()),
            "equivalent_tokens": fmean(trace.equivalent_tokens.tolist()),
        }
        layers = trace.tokens_per_layer.float().mean(dim=1).tolist()
        for layer, tokens in enumerate(layers):  # the plan: from which layer on how many
            if layer and tokens != layers[layer - 1]:
                found[f"tokens_from_layer_{layer}"] = tokens
        self._calls.append({name: float(value) for name, value in found.items() if value is not None})

    def _means(self) -> dict[str, float]:
        names = dict.fromkeys(name for call in self._calls for name in call)
        means = {name: fmean(call[name] for call in self._calls if name in call) for name in names}
        return {**means, "failed_calls": float(len(self._failures))}
