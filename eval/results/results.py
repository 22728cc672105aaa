"""`results.json`: its schema, and how it is made of what the run wrote down."""

import dataclasses
from collections.abc import Callable, Sequence
from math import fsum
from statistics import fmean
from typing import Any, TypedDict

from vtc.eval.results import stats
from vtc.eval.results.records import Line, Measurement, SampleRecord
from vtc.eval.results.settings import NONE, Setting
from vtc.eval.tasks.task import Metric

#: Goes up when a field changes its meaning or goes away.
VERSION = 2


class Score(TypedDict):
    """Right answers among those asked.

    Attributes:
        right, asked: counts; right are answers of which at least half is.
        accuracy: mean score.
        interval_95: Wilson's 95 % interval of it, too wide where scores lie between 0 and 1.
    """

    right: int
    asked: int
    accuracy: float
    interval_95: tuple[float, float]


class Value(TypedDict):
    """One metric of the task.

    Attributes:
        value: of all questions; interval_95: its bootstrap interval, questions of one cluster drawn together.
        difference: to "none" on the same questions; difference_95: its paired bootstrap interval.
        relative: to "none"; None where that is 0.
    """

    value: float
    interval_95: tuple[float, float]
    difference: float
    difference_95: tuple[float, float]
    relative: float | None


class Flips(TypedDict):
    """Questions whose answer is right in one case only: without the setting, or with it; McNemar's exact p of both."""

    right_to_wrong: int
    wrong_to_right: int
    p_value: float


class Failure(TypedDict):
    """A question that could not be asked, and why."""

    id: str
    error: str


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
        relative_accuracy: the headline metric, the first, divided by that of "none" on the same questions.
        metrics: the task's own, by name, the headline first.
        flips: answers that became wrong, and that became right; agreement: share of the answers that are those of
            "none", but for case and punctuation; unparsed: answers that had not the form that the task asks for.
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
    metrics: dict[str, Value]
    flips: Flips
    agreement: float
    unparsed: int
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
        model: what was really loaded: class, parameters, dtype, attention implementation, devices, size of pictures.
        questions: asked in all, those that failed left out.
        failed: questions that could not be asked: a file that can't be read, a model that raises.
        blind: accuracy of the model shown a blank picture, overall ("overall") and by group, where it is known.
        settings: "none" first. Empty where no picture could be read.
    """

    version: int
    config: dict[str, Any]
    model: dict[str, Any]
    questions: int
    failed: list[Failure]
    blind: dict[str, float] | None
    settings: list[SettingResult]


def build(
    config: dict[str, Any],
    settings: Sequence[Setting],
    lines: Sequence[Line],
    metrics: Sequence[Metric] = (Metric("exact_match"),),
    blind: dict[str, float] | None = None,
) -> Results:
    """The results of a run, from its lines alone."""
    samples = [sample for line in lines for sample in line["samples"]]
    failed: list[Failure] = [
        {"id": sample["id"], "error": sample["error"]} for sample in samples if sample["error"] is not None
    ]
    by_setting: dict[str | None, list[SampleRecord]] = {}
    for sample in samples:
        by_setting.setdefault(sample["setting"], []).append(sample)
    rounds = [measured for line in lines for measured in line["rounds"]]
    peaks: dict[str, int | None] = next(
        (line["peak_memory_bytes"] for line in lines if line.get("peak_memory_bytes")), {}
    )
    asked = by_setting.get(NONE, [])
    rows = [_setting_result(each, by_setting[each.name], asked, rounds, peaks, metrics) for each in settings if asked]
    return {
        "version": VERSION,
        "config": config,
        "model": next((line["model"] for line in lines if line.get("model")), {}),
        "questions": len(asked),
        "failed": failed,
        "blind": blind,
        "settings": rows,
    }


def score(samples: Sequence[SampleRecord]) -> Score:
    """The score of some samples, at least one."""
    right, asked = sum(bool(sample["correct"]) for sample in samples), len(samples)
    total = fsum(sample["score"] or 0.0 for sample in samples)
    return {"right": right, "asked": asked, "accuracy": total / asked, "interval_95": stats.wilson(total, asked)}


def values(
    metrics: Sequence[Metric], samples: Sequence[SampleRecord], without: Sequence[SampleRecord]
) -> dict[str, Value]:
    """Every metric of a setting that at least one sample has, beside "none" on the same questions."""
    found: dict[str, Value] = {}
    both = [(s["metrics"] or {}, n["metrics"] or {}, s["cluster"]) for s, n in zip(samples, without, strict=True)]
    for metric in metrics:
        name = metric.name
        pairs = [
            (some[name], others[name], cluster) for some, others, cluster in both if name in some and name in others
        ]
        if pairs:
            mine, none, clusters = (list(column) for column in zip(*pairs))
            drawn = (metric.aggregation, metric.is_mean, clusters)
            value, before = float(metric.aggregation(mine)), float(metric.aggregation(none))
            found[metric.name] = {
                "value": value,
                "interval_95": stats.bootstrap(mine, *drawn),
                "difference": value - before,
                "difference_95": stats.paired_bootstrap(mine, none, *drawn),
                "relative": stats.relative(value, before),
            }
    return found


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
    metrics: Sequence[Metric],
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

    measured = values(metrics, samples, without)
    return {
        "setting": setting.name,
        "series": setting.series,
        "keep": setting.keep,
        "overall": score(samples),
        "groups": {group: score([s for s in samples if s["group"] == group]) for group in groups},
        "relative_accuracy": next((value["relative"] for value in measured.values()), None),
        "metrics": measured,
        "flips": _flips(samples, without),
        "agreement": stats.agreement(
            [s["prediction"] or "" for s in samples], [s["prediction"] or "" for s in without]
        ),
        "unparsed": sum(not sample["parsed"] for sample in samples),
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


def _flips(samples: Sequence[SampleRecord], without: Sequence[SampleRecord]) -> Flips:
    flips = stats.flips([bool(s["correct"]) for s in without], [bool(s["correct"]) for s in samples])
    return Flips(**dataclasses.asdict(flips))  # type: ignore[typeddict-item]


def _per_frame(samples: Sequence[SampleRecord]) -> list[float] | None:
    counts = [counted for sample in samples if (counted := sample.get("tokens_per_frame"))]
    if not counts or len({len(counted) for counted in counts}) > 1:
        return None
    return [fmean(of_frame) for of_frame in zip(*counts)]
