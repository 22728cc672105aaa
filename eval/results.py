"""`results.json`: its schema, and how it is made of what the run wrote down."""

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any, TypedDict

from vtc.eval import stats
from vtc.eval.records import BatchRecord, Measurement, SampleRecord
from vtc.eval.settings import NONE, Setting

#: Goes up when a field changes its meaning or goes away.
VERSION = 1


class Score(TypedDict):
    """Right answers among those asked.

    Attributes:
        right, asked: counts.
        accuracy: their ratio.
        interval_95: Wilson's 95 % interval of it.
    """

    right: int
    asked: int
    accuracy: float
    interval_95: tuple[float, float]


class Spread(TypedDict):
    """Median over batches, and the quartiles."""

    median: float
    low: float
    high: float


class SettingResult(TypedDict):
    """One method at one budget.

    Attributes:
        setting: spec string; "none" is the untouched model.
        series: the spec without `keep`.
        keep: the budget, where there is a single method.
        overall: score over all questions; groups: for each group.
        relative_accuracy: accuracy divided by that of "none" on the same questions.
        visual_tokens: per question, mean: given; kept_tokens: entering the last decoder layer; equivalent_tokens: mean
            over decoder layers of those entering the layer.
        tokens_per_frame: of each frame, mean over questions: tokens entering the last decoder layer; None without
            videos, or where they differ in their frames.
        prefill_ms, decoder_ms, first_token_ms, selection_ms: milliseconds per batch; see `Measurement`.
        prefill_speedup, decoder_speedup: time of "none" in the same round divided by this setting's.
        prefill_speedup_ideal, decoder_speedup_ideal: what the FLOPs promise for the same two parts. FLOPs
            leave out the padding to the longest question of a batch, which the clock does not.
        decode_tokens_per_s: tokens after the first; None where there were none.
        kv_bytes: cache after prefill, per question; flops: of the prefill with the tower, per question;
            decoder_flops: without.
        peak_memory_bytes: of the first batch, above the level before `generate`; None where the system does not tell.
    """

    setting: str
    series: str
    keep: float | int | None
    overall: Score
    groups: dict[str, Score]
    relative_accuracy: float | None
    visual_tokens: float
    kept_tokens: float
    equivalent_tokens: float
    tokens_per_frame: list[float] | None
    prefill_ms: Spread
    decoder_ms: Spread
    first_token_ms: Spread
    selection_ms: Spread
    prefill_speedup: Spread
    prefill_speedup_ideal: float
    decoder_speedup: Spread
    decoder_speedup_ideal: float
    decode_tokens_per_s: Spread | None
    kv_bytes: float
    flops: float
    decoder_flops: float
    peak_memory_bytes: int | None


class Results(TypedDict):
    """The file.

    Attributes:
        version: of this schema.
        config: the run's `config.json`.
        questions: asked in all, unreadable pictures left out.
        unreadable: ids of the questions whose picture could not be read.
        blind: accuracy of the model shown a blank picture, overall ("overall") and by group, where it is known.
        settings: "none" first. Empty where no picture could be read.
    """

    version: int
    config: dict[str, Any]
    questions: int
    unreadable: list[str]
    blind: dict[str, float] | None
    settings: list[SettingResult]


def build(
    config: dict[str, Any],
    settings: Sequence[Setting],
    samples: Sequence[SampleRecord],
    batches: Sequence[BatchRecord],
    blind: dict[str, float] | None = None,
) -> Results:
    """The results of a run, from its lines alone."""
    unreadable = [sample["id"] for sample in samples if sample["error"] is not None]
    by_setting: dict[str | None, list[SampleRecord]] = {}
    for sample in samples:
        by_setting.setdefault(sample["setting"], []).append(sample)
    rounds = [record["settings"] for record in batches if record["settings"]]
    peaks = next((record["peak_memory_bytes"] for record in batches if record.get("peak_memory_bytes")), {})
    asked = by_setting.get(NONE, [])
    rows = [_setting_result(each, by_setting[each.name], asked, rounds, peaks) for each in settings] if asked else []
    return {
        "version": VERSION,
        "config": config,
        "questions": len(asked),
        "unreadable": unreadable,
        "blind": blind,
        "settings": rows,
    }


def score(samples: Sequence[SampleRecord]) -> Score:
    """The score of some samples, at least one."""
    right, asked = sum(bool(sample["correct"]) for sample in samples), len(samples)
    return {"right": right, "asked": asked, "accuracy": right / asked, "interval_95": stats.wilson(right, asked)}


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles."""
    low, median, high = stats.quartiles(values)
    return {"median": median, "low": low, "high": high}


def _setting_result(
    setting: Setting,
    samples: Sequence[SampleRecord],
    without: Sequence[SampleRecord],
    rounds: Sequence[dict[str, Measurement]],
    peaks: dict[str, int | None],
) -> SettingResult:
    mine = [measured[setting.name] for measured in rounds]
    asked = sum(measured["rows"] for measured in mine)
    groups = sorted({sample["group"] for sample in samples})
    decoded = [rate for measured in mine if (rate := measured["decode_tokens_per_s"]) is not None]

    def times(read: Callable[[Measurement], float]) -> Spread:
        return spread([read(measured) for measured in mine])

    def speedup(read: Callable[[Measurement], float]) -> Spread:
        return spread([read(measured[NONE]) / read(measured[setting.name]) for measured in rounds])

    def total(read: Callable[[Measurement], float]) -> float:
        return sum(read(measured) for measured in mine)

    return {
        "setting": setting.name,
        "series": setting.series,
        "keep": setting.keep,
        "overall": score(samples),
        "groups": {group: score([s for s in samples if s["group"] == group]) for group in groups},
        "relative_accuracy": stats.relative(score(samples)["right"], score(without)["right"]),
        "visual_tokens": fmean(s["visual_tokens"] or 0 for s in samples),
        "kept_tokens": fmean(s["kept_tokens"] or 0 for s in samples),
        "equivalent_tokens": fmean(s["equivalent_tokens"] or 0 for s in samples),
        "tokens_per_frame": _per_frame(samples),
        "prefill_ms": times(lambda m: m["prefill_ms"]),
        "decoder_ms": times(lambda m: m["decoder_ms"]),
        "first_token_ms": times(lambda m: m["first_token_ms"]),
        "selection_ms": times(lambda m: m["selection_ms"]),
        "prefill_speedup": speedup(lambda m: m["prefill_ms"]),
        "prefill_speedup_ideal": total(lambda m: m["flops_without"]) / total(lambda m: m["flops"]),
        "decoder_speedup": speedup(lambda m: m["decoder_ms"]),
        "decoder_speedup_ideal": total(lambda m: m["decoder_flops_without"]) / total(lambda m: m["decoder_flops"]),
        "decode_tokens_per_s": spread(decoded) if decoded else None,
        "kv_bytes": total(lambda m: m["kv_bytes"]) / asked,
        "flops": total(lambda m: m["flops"]) / asked,
        "decoder_flops": total(lambda m: m["decoder_flops"]) / asked,
        "peak_memory_bytes": peaks.get(setting.name),
    }


def _per_frame(samples: Sequence[SampleRecord]) -> list[float] | None:
    counts = [counted for sample in samples if (counted := sample.get("tokens_per_frame"))]
    if not counts or len({len(counted) for counted in counts}) > 1:
        return None
    return [fmean(of_frame) for of_frame in zip(*counts)]
