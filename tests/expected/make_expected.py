"""Writes what lmms-eval itself makes of made-up rows and answers; needs an environment with lmms-eval 0.7.3.

    python tests/expected/make_expected.py [TASK ...]

Its own task objects are built from its own YAML files; only where the rows come from is changed: a file with the
made-up rows, without pictures. `README.md` tells the form of the files.
"""

import copy
import json
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lmms_eval.tasks
from lmms_eval.api.task import ConfigurableMessagesTask
from lmms_eval.utils import load_yaml_config
from made_up_images import ANSWERS, CASES, Case

VERSION = "0.7.3"
HERE = Path(__file__).parent
THEIR_TASKS = Path(lmms_eval.tasks.__file__).parent
#: Those of their metrics that are numbers; the others write a file to be handed in.
SUBMISSION = "submission"


def their_task(name: str, docs: list[dict[str, Any]], model: str, folder: Path) -> Any:
    """Their task `name` as they build it for `model`, its rows being `docs`."""
    rows = folder / f"{name}.json"
    rows.write_text(json.dumps(docs))
    (file,) = THEIR_TASKS.rglob(f"{name}.yaml")
    config = load_yaml_config(str(file)) | {"dataset_path": "json", "dataset_name": None, "process_docs": None}
    config["dataset_kwargs"] = {"data_files": {config["test_split"]: str(rows)}, "cache_dir": str(folder)}
    return ConfigurableMessagesTask(config=config, model_name=model)


def all_answers(case: Case) -> list[str]:
    """Every answer that a run of `case` holds, each once."""
    right = [case.docs[row]["answer"] for group in case.groups for row in group]
    return list(dict.fromkeys([*ANSWERS, *case.answers, *right]))


def runs(case: Case) -> Iterator[list[tuple[int, str]]]:
    """Sets of samples (number of the row, answer) that are scored together.

    Each answer to each row, the rest of its group answered rightly; all rows at once, each with another answer; and,
    where no rows belong together, all of these at once.
    """
    answers = all_answers(case)
    grouped = [row for group in case.groups for row in group]
    for group in [*case.groups, *([row] for row in range(len(case.docs)) if row not in grouped)]:
        for row in group:
            for answer in answers:
                yield [(each, answer if each == row else case.docs[each]["answer"]) for each in group]
    for start in range(len(answers)):
        yield [(row, answers[(start + 5 * row) % len(answers)]) for row in range(len(case.docs))]
    if not case.groups:
        yield [(row, answer) for row in range(len(case.docs)) for answer in answers]


def scored(task: Any, docs: list[dict[str, Any]], samples: list[tuple[int, str]], folder: Path) -> dict[str, float]:
    """Their metrics of these samples."""
    values: dict[str, list[Any]] = {}
    for row, answer in samples:
        (filtered,) = task._filters[0].filters[0].apply([[answer]], [docs[row]])
        # Some of their functions change the row.
        for name, value in task.process_results(copy.deepcopy(docs[row]), [filtered]).items():
            values.setdefault(name, []).append(value)
    metrics = {}
    for name, each in values.items():
        if name in task.aggregation() and name != SUBMISSION:
            needs_args = "args" in task.aggregation()[name].__code__.co_varnames[:2]
            args = (SimpleNamespace(output_path=str(folder)),) if needs_args else ()
            metrics[name] = float(task.aggregation()[name](each, *args))
    return metrics


def expected(name: str, case: Case, folder: Path) -> dict[str, Any]:
    """What is written for one task."""
    task = their_task(name, case.docs, "default", folder)
    models = ["default", *(task.config.lmms_eval_specific_kwargs or {})]
    prompts = {}
    for model in dict.fromkeys(models):
        prompted = their_task(name, case.docs, model, folder)
        prompts[model] = [prompted.doc_to_text(copy.deepcopy(doc)) for doc in case.docs]
    answers = all_answers(case)
    return {
        "docs": case.docs,
        "answers": answers,
        "prompts": prompts,
        "targets": [task.doc_to_target(copy.deepcopy(doc)) for doc in case.docs],
        "generation": {key: task.config.generation_kwargs.get(key) for key in ("max_new_tokens", "until")},
        "runs": [
            {
                "samples": [(row, answers.index(answer)) for row, answer in samples],
                "metrics": scored(task, case.docs, samples, folder),
            }
            for samples in runs(case)
        ],
    }


def main() -> None:
    """Writes `<task>.json` of the named tasks, or of all."""
    if (found := version("lmms_eval")) != VERSION:
        raise SystemExit(f"lmms-eval {found} is installed; these files are made with {VERSION}")
    for name in sys.argv[1:] or CASES:
        with tempfile.TemporaryDirectory() as folder:
            result = expected(name, CASES[name](), Path(folder))
        (HERE / f"{name}.json").write_text(json.dumps(result, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
