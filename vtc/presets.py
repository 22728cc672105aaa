"""Published settings by name: `vtc.preset("hiprune/llava-1.5/192")`, with the paper's numbers attached.

The numbers are in `presets.toml` beside this file; nothing else is read, and no model library is imported.
"""

import difflib
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

#: Keys of the file that become another field, or none.
_SHAPED = {"models", "settings", "remarks", "benchmarks", "numbers", "untouched", "average", "related"}


@dataclass(frozen=True)
class Numbers:
    """One row of a published table.

    Attributes:
        scores: benchmark -> number, in the source's unit.
        untouched: benchmark -> number of the model as it is, for those benchmarks of which it is published.
        average: mean over the source's benchmarks of the ratio to the untouched model, in %; None where not printed.
    """

    scores: Mapping[str, float] = field(default_factory=dict)
    untouched: Mapping[str, float] = field(default_factory=dict)
    average: float | None = None


@dataclass(frozen=True)
class Published:
    """What was published of one setting. Texts are empty where there is nothing to say.

    Attributes:
        name: "METHOD/MODEL/SETTING", what `preset` takes.
        spec: the spec string of the setting.
        source: arXiv id.
        model: the model that was measured.
        budget: the budget in the source's words.
        results: the numbers of the setting.
        related: numbers of variants that the spec does not make, by what they are.
        evidence: where the numbers were read.
        verified: False where they are second hand, or where the spec is partly inferred; `evidence`, `keep_note`
            or `note` tells which.
        prompt, precision, software: what the numbers depend on.
        keep_note: where our `keep` counts otherwise than the source.
        note: anything else to know before comparing.
        costs, untouched_costs: measured or computed costs, with and without; costs_on: on what.
    """

    name: str
    spec: str
    source: str
    model: str
    budget: str
    results: Numbers
    related: Mapping[str, Numbers]
    evidence: str
    verified: bool = True
    prompt: str = "not stated"
    precision: str = "not stated"
    software: str = "not stated"
    keep_note: str = ""
    note: str = ""
    costs: Mapping[str, float] = field(default_factory=dict)
    untouched_costs: Mapping[str, float] = field(default_factory=dict)
    costs_on: str = ""


def published(name: str) -> Published:
    """What was published of the setting `name`.

    Raises:
        ValueError: unknown name; the message suggests the nearest.
        TypeError: `name` is no string.
    """
    if not isinstance(name, str):
        raise TypeError(f"name={name!r} is a {type(name).__name__}; give a name such as 'hiprune/llava-1.5/192'")
    known = presets()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        beginning = [each for each in known if each.startswith(name.rstrip("/") + "/")]
        if beginning:
            hint = f"did you mean one of {', '.join(map(repr, beginning[:4]))}{' …' if beginning[4:] else ''}?"
        elif near:
            hint = f"did you mean {near[0]!r}?"
        else:
            hint = "`vtc presets` lists them all"
        raise ValueError(f"unknown preset {name!r}; {hint}")
    return known[name]


@cache
def presets() -> Mapping[str, Published]:
    """All published settings by name, those of one method together."""
    return {record.name: record for method in _file() for record in _of_method(method)}


def remarks(method: str) -> tuple[str, ...]:
    """Published numbers of a method that belong to no setting that can be stated; empty for an unknown method."""
    return tuple(_file().get(method, {}).get("remarks", ()))


@cache
def _file() -> dict[str, Any]:
    return tomllib.loads((files("vtc") / "presets.toml").read_text(encoding="utf-8"))


def _of_method(method: str) -> Iterator[Published]:
    shared = _file()[method]
    for model, about in shared.get("models", {}).items():
        for setting, own in about["settings"].items():
            said = {**shared, **about, **own}
            rest = {key: value for key, value in said.items() if key not in _SHAPED}
            yield Published(
                name=f"{method}/{model}/{setting}",
                results=_numbers(said),
                related={label: _numbers({**shared, **about, **row}) for label, row in own.get("related", {}).items()},
                **rest,
            )


def _numbers(row: Mapping[str, Any]) -> Numbers:
    """One row; a row without numbers (an average alone) has no scores, and so nothing to compare them with."""
    scores, untouched = row.get("numbers", ()), row.get("untouched", ())
    return Numbers(
        scores=dict(zip(row["benchmarks"], scores, strict=True)) if scores else {},
        untouched=dict(zip(row["benchmarks"], untouched, strict=True)) if scores and untouched else {},
        average=row.get("average"),
    )
