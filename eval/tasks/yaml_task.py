"""From a YAML file and its rows to a task: prompts, answers, scores."""

import hashlib
import inspect
import json
import math
import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from vtc.eval.cli.errors import InputError
from vtc.eval.tasks.config import TaskConfig, read_config
from vtc.eval.tasks.data import Rows, load_rows
from vtc.eval.tasks.index import file_of
from vtc.eval.tasks.task import Metric, Question, Scored, Shown, Task

#: Longest answer where the file says nothing.
MAX_NEW_TOKENS = 128


def load_task(
    name: str,
    *,
    data: Path | None = None,
    limit: int | None = None,
    include: Sequence[Path] = (),
    prompts: str = "default",
    frames: int = 8,
) -> Task:
    """A task by its name, or by its YAML file.

    Args:
        name: of the task, or path of the file.
        data: local folder with its data; see `load_rows`.
        limit: at most so many questions, the first.
        include: folders with further tasks.
        prompts: which of `lmms_eval_specific_kwargs`.
        frames: of each video.

    Raises:
        InputError: the file, the data, or `prompts` can't be used.
    """
    config = read_config(file_of(name, include))
    rows = load_rows(config, data)
    if not rows.size:
        raise InputError(f"argument --data: task {config.name!r} has no rows; put its data right")
    made = YamlTask(config, rows, _prompt(config, prompts), frames)
    about = json.dumps([config.digest, rows.fingerprint, prompts, frames]).encode()
    options = config.get("generation_kwargs", {})
    until = options.get("until", ["\n\n"])
    return Task(
        name=config.name,
        fingerprint=f"{config.name} sha256:{hashlib.sha256(about).hexdigest()}",
        size=min(rows.size, limit or rows.size),
        get=made.question,
        metrics=tuple(_metric(config, entry) for entry in config.get("metric_list")),
        kind="video" if config.get("dataset_kwargs", {}).get("video") else "image",
        max_new_tokens=int(options.get("max_new_tokens", MAX_NEW_TOKENS)),
        until=(until,) if isinstance(until, str) else tuple(until),
    )


@dataclass(frozen=True)
class YamlTask:
    """Makes questions of rows.

    Attributes:
        config, rows: what is asked.
        prompt: the keyword arguments of `doc_to_text`.
        frames: of each video.
    """

    config: TaskConfig
    rows: Rows
    prompt: Mapping[str, Any]
    frames: int

    def question(self, index: int) -> Question:
        """Question number i."""
        config, doc = self.config, self.rows.plain(index)
        target = _read(config.get("doc_to_target"), doc)
        metadata = config.get("metadata") or {}
        by = metadata.get("group_by", "") if isinstance(metadata, dict) else ""
        cluster = config.get("cluster_key", "")
        return Question(
            id=str(index),
            group=str(doc.get(by, "all")),
            text=str(_read(config.get("doc_to_text"), doc, self.prompt)),
            answer=target if isinstance(target, str) else json.dumps(target, ensure_ascii=False, default=str),
            shown=lambda: self._shown(index),
            score=lambda prediction: self._scored(doc, prediction),
            cluster=str(doc[cluster]) if doc.get(cluster) is not None else None,
        )

    def _shown(self, index: int) -> list[Shown]:
        found = _call(self.config.get("doc_to_visual"), self.rows.whole(index), self.prompt)
        return [self.rows.open(each, self.frames) for each in found or []]

    def _scored(self, doc: Mapping[str, Any], prediction: str) -> Scored:
        config = self.config
        if process := config.get("process_results"):
            result = dict(process(doc, [prediction]))
        else:
            target = _read(config.get("doc_to_target"), doc)
            result = {entry["metric"]: _exact_match(entry, prediction, target) for entry in config.get("metric_list")}
        parsed = bool(result.pop("parsed", True) and prediction.strip())
        names = [entry["metric"] for entry in config.get("metric_list")]
        metrics = {name: result[name] for name in names if name in result}
        first = next(iter(metrics.values()), None)
        return Scored(metrics, _own_score(first, config.get("score_key", "score")), parsed)


def _own_score(value: Any, key: str) -> float | None:
    """How right a sample is, of what its headline metric gets: a number from 0 to 1, or such a one under `key`."""
    if isinstance(value, Mapping):
        value = value.get(key)
    return float(value) if isinstance(value, bool | int | float) and 0 <= value <= 1 else None


def _exact_match(entry: Mapping[str, Any], prediction: str, target: Any) -> float:
    """lmms-eval's `exact_match`: 1.0 where the two are equal, after what the entry says to pass over."""
    sides = [prediction, str(target)]
    for pattern in entry.get("regexes_to_ignore") or ():
        sides = [re.sub(pattern, "", side) for side in sides]
    if entry.get("ignore_case"):
        sides = [side.lower() for side in sides]
    for letters, ignored in ((string.punctuation, "ignore_punctuation"), (string.digits, "ignore_numbers")):
        if entry.get(ignored):
            sides = [side.translate(str.maketrans("", "", letters)) for side in sides]
    return float(sides[0] == sides[1])


def _metric(config: TaskConfig, entry: Mapping[str, Any]) -> Metric:
    aggregation = entry.get("aggregation", "mean")
    if config.get("process_results") is None and entry["metric"] != "exact_match":
        raise InputError(
            f"task file {str(config.file)!r}: metric {entry['metric']!r} needs process_results; only exact_match "
            "does without"
        )
    better = bool(entry.get("higher_is_better", True))
    if aggregation == "mean":
        return Metric(entry["metric"], lambda values: fmean(values) if values else 0.0, better)
    if not callable(aggregation):
        raise InputError(
            f"task file {str(config.file)!r}: aggregation {aggregation!r} of {entry['metric']!r} is neither mean nor a "
            "!function; write one"
        )
    call: Callable[[Sequence[Any]], float] = aggregation
    return Metric(entry["metric"], lambda values: _number(call(list(values))), better, is_mean=False)


def _number(value: Any) -> float:
    """What an aggregation returns; one that only writes a file for a server returns nothing."""
    return math.nan if value is None else float(value)


def _prompt(config: TaskConfig, prompts: str) -> Mapping[str, Any]:
    """The prompt's parts for a model, by lmms-eval's name of it; "default" where the file has none for it."""
    specific = config.get("lmms_eval_specific_kwargs") or {}
    if not any(isinstance(value, dict) for value in specific.values()):
        return specific
    chosen = specific.get(prompts, specific.get("default"))
    if chosen is None:
        raise InputError(
            f"argument --prompts: task {config.name!r} has none for {prompts!r}; give one of {', '.join(specific)}"
        )
    return chosen


def _read(how: Any, doc: Mapping[str, Any], prompt: Mapping[str, Any] | None = None) -> Any:
    """What a file says of a row: a function of it, one of its fields, a template, or what stands there."""
    if callable(how):
        return _call(how, doc, prompt)
    if isinstance(how, str) and how in doc:
        return doc[how]
    if isinstance(how, str) and "{" in how:
        from jinja2.sandbox import SandboxedEnvironment

        return SandboxedEnvironment(keep_trailing_newline=True).from_string(how).render(**doc)
    return how


def _call(function: Callable[..., Any], doc: Mapping[str, Any], prompt: Mapping[str, Any] | None) -> Any:
    """A function of a row, with the prompt's parts where it takes them."""
    parameters = [each for each in inspect.signature(function).parameters.values() if each.kind != each.VAR_KEYWORD]
    return function(doc, prompt) if len(parameters) > 1 and prompt is not None else function(doc)
