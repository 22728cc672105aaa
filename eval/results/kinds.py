"""Settings by the kind of their method, and the best of each kind."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from vtc import spec
from vtc.eval.results.settings import NONE
from vtc.method import registry

BASELINE, COMPOSITION, OTHER = "baseline", "composition", "other"
#: In the order in which they are shown, and what several are called.
KINDS = {BASELINE: "baselines", "selector": "selectors", "prune": "prunes", "reducer": "reducers",
         COMPOSITION: "compositions", OTHER: "other methods"}  # fmt: skip
#: Where the methods live that all others are to beat.
_BASELINES = "vtc.selectors.baselines"
#: So many of each kind are the best.
BEST = 4

#: Rows of a `results.json` by series; of a row are needed: setting, series, keep, overall, equivalent_tokens.
BySeries = Mapping[str, Sequence[Any]]


def kind_of(series: str) -> str:
    """A key of `KINDS`: of what a series is; `OTHER` where its method is not known here."""
    if "+" in series:
        return COMPOSITION
    try:
        cls = registry.method_class(series.partition(":")[0])
    except ValueError:  # of a package that is not imported
        return OTHER
    return BASELINE if cls.__module__ == _BASELINES else cls.kind


def signals_of(series: str) -> tuple[str, ...]:
    """What decides in the methods of a series, a word each; nothing where one is not known here, or doesn't tell."""
    try:
        classes = [registry.method_class(part.partition(":")[0]) for part in series.split("+")]
    except ValueError:  # of a package that is not imported
        return ()
    return tuple(dict.fromkeys(signal for cls in classes for signal in cls.signals))


def positions_of(series: str) -> str:
    """How the methods of a series number what is left, "packed" or "original", joined by "+" where they differ.

    Nothing where no method is, or one is not known here.
    """
    try:
        told = [spec.read_one(part) for part in spec.split(series) if part != NONE]
        found = [fields.get("positions", registry.method_class(name).positions) for name, fields in told]
    except ValueError:  # of a package that is not imported
        return ""
    return "+".join(dict.fromkeys(found))


def numbered(series: Iterable[str]) -> bool:
    """Whether any of some series says how what is left is numbered, so that a table should."""
    return any("positions=" in each for each in series)


def by_kind(rows: Iterable[Any]) -> dict[str, dict[str, list[Any]]]:
    """Kind -> series -> its rows; kinds in the order of `KINDS`, series the best first, "none" left out."""
    found: dict[str, dict[str, list[Any]]] = {}
    for row in rows:
        if row["setting"] != NONE:
            found.setdefault(kind_of(row["series"]), {}).setdefault(row["series"], []).append(row)
    return {kind: {name: found[kind][name] for name in ranked(found[kind])} for kind in KINDS if kind in found}


def ranked(series: BySeries) -> list[str]:
    """Names of series, the best first: by mean accuracy over budgets, of equals the one with fewer equivalent tokens.

    Budgets that fewer than half of the series were asked at don't count, where others do: a mean is of the same budgets
    for all. A series that lacks one of these stands behind those that have all.
    """
    asked = Counter(row["keep"] for rows in series.values() for row in rows)
    common = {keep for keep, count in asked.items() if 2 * count >= len(series)} or set(asked)

    def key(name: str) -> tuple[float, ...]:
        rows = [row for row in series[name] if row["keep"] in common] or series[name]
        accuracy = fmean(row["overall"]["accuracy"] for row in rows)
        lacking = -len(rows) if rows[0]["keep"] in common else 0
        return lacking, -round(accuracy, 9), round(fmean(row["equivalent_tokens"] for row in rows), 6)

    return sorted(series, key=key)
