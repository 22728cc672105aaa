"""One batch through all settings, one after another, so that a busy machine slows all of them alike."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import vtc
from vtc.eval.cli.errors import InputError
from vtc.eval.models import Loaded
from vtc.eval.report.flips import FlipPictures
from vtc.eval.results.records import Line, Measurement, SampleRecord
from vtc.eval.results.settings import NONE, Setting
from vtc.eval.run.memory import PeakMemory
from vtc.eval.run.stopwatch import Stopwatch
from vtc.eval.tasks.task import Question, Shown, Task
from vtc.tracing import Trace


@dataclass(frozen=True)
class Asked:
    """A question, what it is about, opened, and its place in the batch."""

    question: Question
    shown: Sequence[Shown]
    place: int


class AskError(Exception):
    """A setting raised; the message names both."""


@dataclass
class Runner:
    """Runs batches of a task.

    Args:
        loaded: the model.
        settings: "none" first.
        task: where questions come from.
        max_new_tokens: longest answer.
        flips: draws what was kept where compression changed whether an answer is right.
    """

    loaded: Loaded
    settings: Sequence[Setting]
    task: Task
    max_new_tokens: int
    flips: FlipPictures | None = None
    _new: bool = field(default=True, init=False)

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

    def run(self, index: int, numbers: Sequence[int]) -> Line:
        """Ask one batch under every setting.

        What can't be asked is recorded as such and left out, for all settings: a question whose file can't be read, and
        one at which the model raises. That one is found by halving the batch.

        Args:
            index: number of the batch.
            numbers: of its questions.
        """
        questions = [self.task.get(number) for number in numbers]
        asked, samples = _open(index, questions)
        line: Line = {"batch": index, "samples": samples, "rounds": []}
        if self._new and asked:
            line["model"] = self.loaded.facts()
            line["peak_memory_bytes"] = self._peaks(asked)
            self._new = False
        self._halving(index, asked, line)
        place = {question.id: row for row, question in enumerate(questions)}
        order = {setting.name: row for row, setting in enumerate(self.settings)}
        line["samples"].sort(key=lambda sample: (order.get(sample["setting"] or "", -1), place[sample["id"]]))
        return line

    def _peaks(self, asked: Sequence[Asked]) -> dict[str, int | None]:
        """Run every setting once untimed, which warms up; returns the peak memory of each in bytes, if it runs."""
        peaks: dict[str, int | None] = {}
        try:
            inputs = self._inputs(asked)
        except InputError:
            raise
        except Exception:  # it will be raised again, and recorded then
            return peaks
        for setting in self.settings:
            try:
                with PeakMemory(self.loaded.model.device) as memory:
                    self._generate(setting, 0, inputs)
                peaks[setting.name] = memory.bytes
            except Exception:  # likewise
                peaks[setting.name] = None
        return peaks

    def _halving(self, index: int, asked: Sequence[Asked], line: Line) -> None:
        """Ask all together; where something raises, each half by itself."""
        if not asked:
            return
        try:
            samples, measured = self._round(index, asked)
        except InputError:
            raise
        except Exception as error:  # of the model, at some question: which is not known yet
            reason = _said(error)
        else:
            line["samples"] += samples
            line["rounds"].append(measured)
            return
        if len(asked) == 1:
            line["samples"].append(_record(index, asked[0].question, error=reason))
            return
        middle = len(asked) // 2
        self._halving(index, asked[:middle], line)
        self._halving(index, asked[middle:], line)

    def _round(self, index: int, asked: Sequence[Asked]) -> tuple[list[SampleRecord], dict[str, Measurement]]:
        """Some questions under every setting.

        The first setting of the round moves on with the batch, so that none is always the first or the last. Before it
        the "none" method runs once untimed: it warms the machine up and tells how many tokens there are in all.
        """
        inputs = self._inputs(asked)
        with torch.inference_mode(), vtc.patched(self.loaded.model, NONE):
            self.loaded.model(**inputs, use_cache=True)
            whole = vtc.trace(self.loaded.model)
        answers, traces, measured = {}, {}, {}
        turn = index % len(self.settings)
        for setting in [*self.settings[turn:], *self.settings[:turn]]:
            try:
                said, watch, trace = self._generate(setting, index, inputs)
            except Exception as error:
                raise AskError(f"{setting.name}: {_said(error)}") from error
            answers[setting.name], traces[setting.name] = said, trace or whole
            measured[setting.name] = _measurement(watch, trace or whole, len(asked))
        samples: list[SampleRecord] = []
        for row, each in enumerate(asked):
            samples += self._samples(index, row, each, answers, traces)
        return samples, {setting.name: measured[setting.name] for setting in self.settings}

    def _samples(
        self, index: int, row: int, asked: Asked, answers: dict[str, list[str]], traces: dict[str, Trace]
    ) -> list[SampleRecord]:
        """One question under every setting; a single record of the error where an answer can't be scored."""
        records = []
        try:
            for setting in self.settings:
                trace = traces[setting.name]
                records.append(_answered(index, setting.name, asked.question, answers[setting.name][row], trace, row))
        except Exception as error:  # whatever a task's own code raises at one answer
            return [_record(index, asked.question, error=f"the answer can't be scored: {_said(error)}")]
        if self.flips is not None:
            for number, record in enumerate(records[1:], 1):
                name = f"{index:05d}-{asked.place}-{number}.jpg"
                drawn = self.loaded, asked.shown, asked.question.text, traces[record["setting"] or NONE], row
                record["picture"] = self.flips.draw(name, records[0], record, *drawn)
        return records

    def _inputs(self, asked: Sequence[Asked]) -> dict[str, Any]:
        return self.loaded.inputs([each.shown for each in asked], [each.question.text for each in asked])

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
        return [self.task.cut(answer) for answer in self.loaded.answers(sequences, inputs)], watch, trace

    def _answer(self, inputs: dict[str, Any], watch: Callable[..., Tensor]) -> Tensor:
        return self.loaded.model.generate(
            **inputs, max_new_tokens=self.max_new_tokens, do_sample=False, num_beams=1, stopping_criteria=[watch]
        )


def _open(index: int, questions: Sequence[Question]) -> tuple[list[Asked], list[SampleRecord]]:
    """Questions with what they are about, and records of those whose file can't be read."""
    opened, failed = [], []
    for place, question in enumerate(questions):
        try:
            opened.append(Asked(question, question.shown(), place))
        except Exception as error:  # whatever a task's own code raises at one file
            failed.append(_record(index, question, error=_said(error)))
    return opened, failed


def _said(error: Exception) -> str:
    """An exception as a record shows it; those that are meant to be read, without their type."""
    text = str(error).strip()
    return text if isinstance(error, InputError | AskError) else f"{type(error).__name__}: {text}".rstrip(": ")


def _record(index: int, question: Question, **rest: Any) -> SampleRecord:
    record: SampleRecord = {
        "batch": index,
        "id": question.id,
        "group": question.group,
        "question": question.text,
        "answer": question.answer,
        "cluster": question.cluster,
        "setting": None,
        "prediction": None,
        "score": None,
        "correct": None,
        "metrics": None,
        "parsed": None,
        "visual_tokens": None,
        "kept_tokens": None,
        "equivalent_tokens": None,
        "tokens_per_frame": None,
        "picture": None,
        "error": None,
    }
    record.update(rest)  # type: ignore[typeddict-item]
    return record


def _answered(index: int, setting: str, question: Question, answer: str, trace: Trace, row: int) -> SampleRecord:
    scored = question.score(answer)
    return _record(
        index,
        question,
        setting=setting,
        prediction=answer,
        score=scored.score,
        correct=scored.correct,
        metrics=scored.metrics,
        parsed=scored.parsed,
        visual_tokens=int(trace.original_tokens[row]),
        kept_tokens=int(trace.tokens_per_layer[-1, row]),
        equivalent_tokens=round(float(trace.equivalent_tokens[row]), 4),
        tokens_per_frame=_per_frame(trace, row),
    )


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
