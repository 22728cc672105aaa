"""Published tables as recipes: which checkpoint, which settings, and which of our tasks each benchmark is."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vtc.eval.cli.errors import InputError
from vtc.presets import Published, presets


@dataclass(frozen=True)
class Checkpoint:
    """A model of the papers.

    Attributes:
        hub_id: of its checkpoint for transformers.
        tokens: visual tokens of a picture that the papers count; None where the picture decides.
        frames: of a video.
    """

    hub_id: str
    tokens: int | None = None
    frames: int = 8


#: A paper's name of a model -> its checkpoint. Others have none that transformers loads, or see no pictures.
CHECKPOINTS = {
    "LLaVA-1.5-7B": Checkpoint("llava-hf/llava-1.5-7b-hf", 576),
    "LLaVA-1.5-13B": Checkpoint("llava-hf/llava-1.5-13b-hf", 576),
    "LLaVA-1.6-7B": Checkpoint("llava-hf/llava-v1.6-vicuna-7b-hf", 2880),
    "LLaVA-NeXT-7B": Checkpoint("llava-hf/llava-v1.6-vicuna-7b-hf", 2880),
    "LLaVA-NeXT-13B": Checkpoint("llava-hf/llava-v1.6-vicuna-13b-hf", 2880),
    "LLaVA-NeXT-7B on videos": Checkpoint("llava-hf/llava-v1.6-vicuna-7b-hf", 2880),
    "LLaVA-NeXT-Video-7B": Checkpoint("llava-hf/LLaVA-NeXT-Video-7B-hf"),
    "LLaVA-OneVision-7B, 32 frames": Checkpoint("llava-hf/llava-onevision-qwen2-7b-ov-hf", frames=32),
    "Qwen2-VL-7B": Checkpoint("Qwen/Qwen2-VL-7B-Instruct"),
    "Qwen2.5-VL-7B": Checkpoint("Qwen/Qwen2.5-VL-7B-Instruct"),
    "Qwen2.5-VL-3B-Instruct": Checkpoint("Qwen/Qwen2.5-VL-3B-Instruct"),
    "Video-LLaVA": Checkpoint("LanguageBind/Video-LLaVA-7B-hf"),
}


@dataclass(frozen=True)
class Measure:
    """What a benchmark of the papers is here.

    Attributes:
        task: ours, or a group of which it is the mean.
        metrics: whose sum it is.
        factor: from our unit to the papers'.
        note: where the two differ.
    """

    task: str
    metrics: tuple[str, ...] = ("exact_match",)
    factor: float = 100.0
    note: str = ""

    def value(self, found: Mapping[str, Any]) -> float | None:
        """The number in the papers' unit, of a setting's metrics; None where one is missing."""
        if any(name not in found for name in self.metrics):
            return None
        return self.factor * sum(found[name]["value"] for name in self.metrics)


_MMB = Measure(
    "mmbench_en_dev_static", ("gpt_eval_score",), 1.0, "dev set, read by rules; papers let a judge read the rest"
)
_SQA = Measure("scienceqa_img")
_MME_P = Measure("mme", ("mme_perception_score",), 1.0)
#: A paper's name of a benchmark -> our task; others have none here.
MEASURES = {
    "GQA": Measure("gqa"),
    "POPE": Measure("pope", ("pope_f1_score",), note="F1 over all three categories"),
    "MME": Measure("mme", ("mme_perception_score", "mme_cognition_score"), 1.0, "perception and cognition"),
    "MME-P": _MME_P,
    "SQA": _SQA,
    "SQA-I": _SQA,
    "TextVQA": Measure("textvqa_val", note="without OCR tokens in the prompt"),
    "VQAv2": Measure("vqav2_val", note="validation; papers mostly test-dev"),
    "VizWiz": Measure("vizwiz_vqa_val", note="validation; papers mostly test"),
    "MMB": _MMB,
    "MMB-en": _MMB,
    "MMBench": _MMB,
    "SEED": Measure("seedbench", ("seed_all",)),
    "SEED-I": Measure("seedbench", ("seed_image",)),
    "MVBench": Measure("mvbench", ("mvbench_accuracy",), 1.0, "mean over its 20 tasks"),
    "EgoSchema": Measure("egoschema_subset", ("score",), note="the subset whose answers are public"),
    "LongVideoBench": Measure("longvideobench_val_v", ("lvb_acc",)),
    "VideoMME": Measure("videomme", ("videomme_perception_score",), 1.0),
    "MLVU": Measure("mlvu_dev", ("mlvu_percetion_score",), 1.0),
}


@dataclass(frozen=True)
class Recipe:
    """A published table of one method on one model.

    Attributes:
        name: "METHOD/MODEL".
        rows: its settings.
    """

    name: str
    rows: tuple[Published, ...]

    @property
    def model(self) -> str:
        """The paper's name of the model."""
        return self.rows[0].model

    @property
    def checkpoint(self) -> Checkpoint | None:
        """Where its weights are; None: nowhere that transformers loads as a vision-language model."""
        return CHECKPOINTS.get(self.model)

    @property
    def benchmarks(self) -> list[str]:
        """Of the table, in its order."""
        return list(dict.fromkeys(name for row in self.rows for name in row.results.scores))

    @property
    def tasks(self) -> list[str]:
        """Ours among them."""
        return list(dict.fromkeys(MEASURES[name].task for name in self.benchmarks if name in MEASURES))


def recipes() -> dict[str, Recipe]:
    """All published tables by name."""
    found: dict[str, list[Published]] = {}
    for record in presets().values():
        found.setdefault(record.name.rpartition("/")[0], []).append(record)
    return {name: Recipe(name, tuple(rows)) for name, rows in found.items()}


def recipe(name: str) -> Recipe:
    """A table, or one row of it, by "METHOD/MODEL" or "METHOD/MODEL/SETTING".

    Raises:
        InputError: there is none; the message suggests the nearest.
    """
    known = recipes()
    if name in known:
        return known[name]
    if name in presets():
        whole = known[name.rpartition("/")[0]]
        return dataclasses.replace(whole, rows=(presets()[name],))
    import difflib

    near = difflib.get_close_matches(name, [*known, *presets()], n=1)
    hint = f"did you mean {near[0]!r}?" if near else "`vtc recipe list` tells them all"
    raise InputError(f"argument NAME: no published table {name!r}; {hint}")


def published_average(row: Published) -> float | None:
    """Mean over benchmarks of the ratio to the untouched model, in %: as printed, else of the printed numbers."""
    results = row.results
    if results.average is not None:
        return results.average
    ratios = [score / results.untouched[name] for name, score in results.scores.items() if results.untouched.get(name)]
    return 100 * sum(ratios) / len(ratios) if ratios else None


def at_the_same_share(spec: str, tokens: int | None) -> str:
    """A spec whose counts of tokens are shares of `tokens`, for a model with another number of them.

    Raises:
        ValueError: there are counts, and the number of tokens that they are of is not known.
    """
    from vtc.eval.results.settings import label
    from vtc.spec import parse

    (method,) = parse(spec)
    changes = {
        name: _share(value, tokens) for name in ("keep", "keeps") if (value := getattr(method, name, None)) is not None
    }
    return label(dataclasses.replace(method, **changes))  # type: ignore[type-var]


def _share(value: Any, tokens: int | None) -> Any:
    if isinstance(value, tuple):
        return tuple(_share(each, tokens) for each in value)
    if not isinstance(value, int):
        return value
    if tokens is None:
        raise ValueError(f"{value} tokens of how many is not published")
    return round(value / tokens, 6)
