"""Writes `videos.json`: what lmms-eval 0.7.3's own functions make of made-up rows and answers of its video tasks.

Run in an environment with lmms-eval; see README.md. Its functions are called by themselves, for its task objects want
the videos. Where they draw a letter by chance, the answer is noted as one that can't be read.
"""

import json
import random
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lmms_eval.tasks.egoschema import utils as egoschema
from lmms_eval.tasks.longvideobench import utils as longvideobench
from lmms_eval.tasks.mlvu import utils as mlvu
from lmms_eval.tasks.mvbench import utils as mvbench
from lmms_eval.tasks.videomme import utils as videomme
from made_up_images import ANSWERS

FILE = Path(__file__).with_name("videos.json")
MORE = [
    "(A) the man", "Best option: (B)", "The answer is D.", "The best answer is E", "A. x\ny", "b. opens it", "e", "(e)",
    "a dog and a cat, I think, opens the door", "He is washing the dishes in the kitchen now", "Option C is right",
    "ABCDE",
    "the correct option is B because D is wrong", "C, D", "A.B.", "1,000", "don't know", "I'd say (C) or maybe A.",
]  # fmt: skip
OPTIONS = ["A. opens the door", "B. washing the dishes", "C. a dog", "D. nothing", "E. 1,000"]
SHORT = ["opens the door", "washing the dishes", "a dog", "nothing"]
VIDEOMME = {"duration": "short", "domain": "Knowledge", "sub_category": "Law", "task_type": "OCR Problems"}


def rows() -> dict[str, list[dict[str, Any]]]:
    """Made-up rows by task."""
    kinds = ["count", "ego", "needle"]
    lvb = {f"option{n}": option for n, option in enumerate([*SHORT, "N/A"])}
    return {
        "mvbench_object_shuffle": [
            {"video": f"{n}.mp4", "question": f"What {n}?", "candidates": SHORT[: n + 2], "answer": SHORT[n]}
            for n in range(3)
        ],
        "videomme": [
            {"videoID": f"v{n}", "question_id": f"{n}", "question": f"Which {n}?", "options": OPTIONS[:4],
             "answer": "ABCD"[n]}
            | VIDEOMME | {"duration": ["short", "medium", "long"][n]}
            for n in range(3)
        ],
        "egoschema_subset": [
            {"video_idx": f"e{n}", "question": f"What does C do, {n}?", "option": OPTIONS, "answer": str(n)}
            for n in range(3)
        ],
        "longvideobench_val_v": [
            {"id": f"l{n}", "video_path": f"{n}.mp4", "question": f"When {n}?", "correct_choice": n, "duration": 9.0,
             "duration_group": 15 * (n + 1), "question_category": "S2E", **(lvb if n else {**lvb, "option4": "all"})}
            for n in range(3)
        ],
        "mlvu_dev": [
            {"video_name": f"m{n}.mp4", "question": f"Who {n}?\n(A) x\n(B) y", "task_type": kinds[n],
             "answer": "ABC"[n]}
            for n in range(3)
        ],
    }  # fmt: skip


#: Task -> its module, doc_to_text, process_results, aggregation, metric, prompts by model.
THEIRS: dict[str, tuple[Any, str, str, str, str, dict[str, dict[str, str]]]] = {
    "mvbench_object_shuffle": (
        mvbench, "mvbench_doc_to_text", "mvbench_process_results", "mvbench_aggregate_results", "mvbench_accuracy",
        {"default": {"sub_task": "object_shuffle", "post_prompt": "Only give the best option.\n"}},
    ),
    "videomme": (
        videomme, "videomme_doc_to_text", "videomme_process_results", "videomme_aggregate_results",
        "videomme_perception_score", {},
    ),
    "egoschema_subset": (
        egoschema, "egoschema_doc_to_text", "egoschema_process_results_generation", "egoschema_aggregate_score",
        "score", {},
    ),
    "longvideobench_val_v": (
        longvideobench, "longvideobench_doc_to_text", "longvideobench_process_results",
        "longvideobench_aggregate_results", "lvb_acc", {},
    ),
    "mlvu_dev": (
        mlvu, "mlvu_doc_to_text", "mlvu_process_results", "mlvu_aggregate_results_dev", "mlvu_percetion_score", {},
    ),
}  # fmt: skip


class Drawn(Exception):
    """A letter was drawn by chance."""


def draw(*_: Any) -> None:
    """In the place of `random.choice`."""
    raise Drawn


def prompts_of(module: Any, name: str) -> dict[str, dict[str, str]]:
    """`lmms_eval_specific_kwargs` of their YAML file."""
    import yaml

    class Loader(yaml.SafeLoader):
        """Passes functions over."""

    Loader.add_constructor("!function", lambda loader, node: None)
    file = Path(module.__file__).with_name(f"{name}.yaml")
    return yaml.load(file.read_text(), Loader)["lmms_eval_specific_kwargs"]


def aggregated(function: Any, values: list[Any]) -> float:
    """Of their aggregations some want the run's arguments as well."""
    try:
        return float(function(values))
    except TypeError:
        return float(function(values, None))


def expected(name: str, docs: list[dict[str, Any]]) -> dict[str, Any]:
    """What their functions make of one task."""
    module, text, process, aggregate, metric, prompts = THEIRS[name]
    answers = [answer.strip() for answer in dict.fromkeys([*ANSWERS, *MORE])]
    runs, everything = [], []
    for row, doc in enumerate(docs):
        for number, answer in enumerate(answers):
            try:
                value = getattr(module, process)(doc, [answer])[metric]
            except Drawn:
                runs.append({"row": row, "answer": number, "metric": None})
                continue
            everything.append((row, number, value))
            runs.append({"row": row, "answer": number, "metric": aggregated(getattr(module, aggregate), [value])})
    total = aggregated(getattr(module, aggregate), [value for _, _, value in everything])
    return {
        "docs": docs,
        "answers": answers,
        "prompts": {
            model: [getattr(module, text)(doc, kwargs) for doc in docs]
            for model, kwargs in (prompts or prompts_of(module, name)).items()
        },
        "metric": metric,
        "runs": runs,
        "all": {"samples": [[row, number] for row, number, _ in everything], "metric": total},
    }


if __name__ == "__main__":
    assert version("lmms-eval") == "0.7.3", version("lmms-eval")
    random.choice = draw  # type: ignore[assignment]
    made = {name: expected(name, docs) for name, docs in rows().items()}
    FILE.write_text(json.dumps(made, ensure_ascii=False) + "\n", encoding="utf-8")
