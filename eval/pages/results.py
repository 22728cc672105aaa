"""What a run measured, cut down to what the pages show: a small file beside them, a table and a curve."""

import json
from pathlib import Path
from typing import Any

from vtc.eval.cli.errors import InputError
from vtc.eval.results.results import VERSION, Results, SettingResult
from vtc.eval.results.settings import NONE

#: Of a run's config: what tells what was asked of which model with what.
_CONFIG = ("model", "weights", "benchmark", "dtype", "batch_size", "versions")
#: Of each setting: what the table and the curve show.
_SETTING = (
    "setting", "series", "keep", "overall", "relative_accuracy", "visual_tokens", "kept_tokens", "equivalent_tokens",
    "decoder_speedup_ideal",
)  # fmt: skip

#: The series that every method's page shows beside its own.
BESIDE = "random"


def of_run(folder: Path) -> dict[str, Any]:
    """The part of a run's `results.json` that pages show; same keys and meanings as there.

    Raises:
        InputError: the folder holds no results, or results of another schema.
    """
    try:
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"argument --run: {str(folder)!r} holds no results.json that can be read ({error}); "
            "give the --output of a vtc eval that has ended"
        ) from None
    if results.get("version") != VERSION or not results.get("settings"):
        raise InputError(
            f"argument --run: results.json in {str(folder)!r} has version {results.get('version')!r} and "
            f"{len(results.get('settings', []))} settings, not version {VERSION} with some; run vtc eval anew"
        )
    return {
        "version": VERSION,
        "config": {key: results["config"].get(key) for key in _CONFIG},
        "questions": results["questions"],
        "blind": {"overall": results["blind"]["overall"]} if results["blind"] else None,
        "settings": [{key: row[key] for key in _SETTING} for row in results["settings"]],
    }


def for_method(results: dict[str, Any], name: str) -> Results | None:
    """The results with "none", `random` and the settings of the method `name` alone; None where it was not run."""
    mine = [row for row in results["settings"] if _method(row) == name]
    others = [row for row in results["settings"] if _method(row) in (NONE, BESIDE) and row not in mine]
    return {**results, "settings": others + mine} if mine else None  # type: ignore[return-value]


def table(results: Results) -> list[list[str]]:
    """Rows of cells, the heading first."""
    rows = [["setting", "equivalent tokens", "tokens in the last layer", "right, %", "95 %", "of `none`, %"]]
    for row in results["settings"]:
        low, high = row["overall"]["interval_95"]
        relative = row["relative_accuracy"]
        rows.append(
            [
                f"`{row['setting']}`",
                f"{row['equivalent_tokens']:.1f}",
                f"{row['kept_tokens']:.1f}",
                f"{100 * row['overall']['accuracy']:.1f}",
                f"{100 * low:.1f}–{100 * high:.1f}",
                "–" if relative is None else f"{100 * relative:.1f}",
            ]
        )
    return rows


def _method(row: SettingResult) -> str:
    """Name of the one method of a setting; empty for several."""
    return "" if "+" in row["series"] else row["series"].partition(":")[0]
