"""One batch through all settings, one after another, so that a busy machine slows all of them alike."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import vtc
from vtc.eval.benchmarks import Question
from vtc.eval.errors import InputError
from vtc.eval.memory import PeakMemory
from vtc.eval.models import Loaded
from vtc.eval.records import BatchRecord, Measurement, SampleRecord
from vtc.eval.settings import NONE, Setting
from vtc.eval.stopwatch import Stopwatch
from vtc.tracing import Trace


@dataclass
class Runner:
    """Runs batches of questions.

    Args:
        loaded: the model.
        settings: "none" first.
        max_new_tokens: longest answer.
        kind: "image" or "video": what is shown.
    """

    loaded: Loaded
    settings: Sequence[Setting]
    max_new_tokens: int
    kind: str = "image"

    def check(self) -> None:
        """Patch and unpatch the model with every setting, so that one that can't work is refused before the run.

        Raises:
            InputError: names the setting and why.
        """
        for setting in self.settings:
            if setting.methods:
                try:
                    vtc.unpatch(vtc.patch(self.loaded.model, *setting.methods))
                except (TypeError, ValueError) as error:
                    raise InputError(f"{setting.name} can't be used with this model: {error}") from None

    def warm_up(self, questions: Sequence[Question]) -> dict[str, int | None]:
        """Run every setting once untimed; returns the peak memory of each in bytes."""
        shown, readable, _ = _open(questions)
        peaks: dict[str, int | None] = {}
        if readable:
            inputs = self.loaded.inputs(shown, [question.question for question in readable], self.kind)
            for setting in self.settings:
                with PeakMemory(self.loaded.model.device) as memory:
                    self._generate(setting, 0, inputs)
                peaks[setting.name] = memory.bytes
        return peaks

    def run(self, index: int, questions: Sequence[Question]) -> tuple[list[SampleRecord], BatchRecord]:
        """Ask one batch under every setting.

        The first setting of the round moves on with the batch, so that none is always the first or the last. Before it
        the "none" method runs once untimed: it warms the machine up and tells how many tokens there are in all.

        Args:
            index: number of the batch.
            questions: those whose file can't be read are recorded as such and left out.
        """
        shown, readable, samples = _open(questions, index)
        record: BatchRecord = {"batch": index, "samples": 0, "settings": {}}
        if readable:
            inputs = self.loaded.inputs(shown, [question.question for question in readable], self.kind)
            with torch.inference_mode(), vtc.patched(self.loaded.model, NONE):
                self.loaded.model(**inputs, use_cache=True)
                whole = vtc.trace(self.loaded.model)
            measured = {}
            turn = index % len(self.settings)
            for setting in [*self.settings[turn:], *self.settings[:turn]]:
                answers, watch, trace = self._generate(setting, index, inputs)
                measured[setting.name] = answers, _measurement(watch, trace or whole, len(readable)), trace or whole
            for setting in self.settings:
                answers, measurement, trace = measured[setting.name]
                record["settings"][setting.name] = measurement
                samples += _sample_records(index, setting.name, readable, answers, trace)
        record["samples"] = len(samples)
        return samples, record

    def _generate(
        self, setting: Setting, index: int, inputs: dict[str, Any]
    ) -> tuple[list[str], Stopwatch, Trace | None]:
        model = self.loaded.model
        if setting.methods:
            vtc.patch(model, *setting.for_batch(index))
        try:
            with Stopwatch(self.loaded) as watch:
                sequences = self._answer(inputs, watch)
            trace = vtc.trace(model) if setting.methods else None
        finally:
            if setting.methods:
                vtc.unpatch(model)
        return self.loaded.answers(sequences, inputs), watch, trace

    def _answer(self, inputs: dict[str, Any], watch: Stopwatch) -> Tensor:
        return self.loaded.model.generate(
            **inputs, max_new_tokens=self.max_new_tokens, do_sample=False, num_beams=1, stopping_criteria=[watch]
        )


def _open(questions: Sequence[Question], index: int = 0) -> tuple[list[Any], list[Question], list[SampleRecord]]:
    """What is shown, the questions it belongs to, and a record of each question whose file can't be read."""
    shown, readable, failed = [], [], []
    for question in questions:
        try:
            shown.append(question.shown())
            readable.append(question)
        except InputError as error:
            failed.append(_sample_record(index, question, error=str(error)))
    return shown, readable, failed


def _sample_record(index: int, question: Question, **rest: Any) -> SampleRecord:
    record: SampleRecord = {
        "batch": index,
        "id": question.id,
        "group": question.group,
        "question": question.question,
        "answer": question.answer,
        "setting": None,
        "prediction": None,
        "correct": None,
        "visual_tokens": None,
        "kept_tokens": None,
        "equivalent_tokens": None,
        "tokens_per_frame": None,
        "error": None,
    }
    record.update(rest)  # type: ignore[typeddict-item]
    return record


def _sample_records(
    index: int, setting: str, questions: Sequence[Question], answers: Sequence[str], trace: Trace
) -> list[SampleRecord]:
    original, equivalent = trace.original_tokens.tolist(), trace.equivalent_tokens.tolist()
    last = trace.tokens_per_layer[-1].tolist()
    return [
        _sample_record(
            index,
            question,
            setting=setting,
            prediction=answers[row],
            correct=question.is_correct(answers[row]),
            visual_tokens=original[row],
            kept_tokens=last[row],
            equivalent_tokens=round(equivalent[row], 4),
            tokens_per_frame=_per_frame(trace, row),
        )
        for row, question in enumerate(questions)
    ]


def _per_frame(trace: Trace, row: int) -> list[int] | None:
    """Tokens of each frame that enter the last decoder layer, separators left out; None where there is no video.

    Images in a row, as which the frames of some models arrive, are one frame each, where there are several.
    """
    counts = []
    images = [image for image in trace.images if image.row == row]
    for image in images:
        cells = image.source.grids[-1].tokens().flatten(1)
        counts += torch.isin(cells, image.kept(len(trace.tokens_per_layer) - 1)).sum(dim=1).tolist()
    return counts if len(counts) > 1 else None


def _measurement(watch: Stopwatch, trace: Trace, rows: int) -> Measurement:
    flops, steps = trace.flops(), watch.decode_steps
    decoded = 1e3 * rows * steps / watch.decode_ms if steps and watch.decode_ms else None
    return {
        "rows": rows,
        "prefill_ms": watch.prefill_ms or 0.0,
        "decoder_ms": watch.decoder_ms or 0.0,
        "first_token_ms": watch.first_token_ms or 0.0,
        "decode_tokens_per_s": decoded,
        "selection_ms": trace.selection_ms,
        "kv_bytes": watch.kv_bytes or 0,
        "flops": flops.total,
        "decoder_flops": flops.decoder,
        "flops_without": flops.unpatched_total,
        "decoder_flops_without": flops.unpatched_decoder,
    }
