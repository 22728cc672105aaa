"""The part of a method's page that tells its published settings: one table a model."""

from collections.abc import Callable, Sequence
from itertools import groupby

from vtc.presets import Numbers, Published, presets, remarks

Table = Callable[[Sequence[Sequence[str]]], str]

#: Label -> field of `Published` that holds what the numbers of a model depend on.
_ABOUT = {
    "Evidence": "evidence",
    "Prompt": "prompt",
    "Precision": "precision",
    "Software": "software",
    "Keep": "keep_note",
    "Note": "note",
    "Costs on": "costs_on",
}


def preset_section(method: str, table: Table) -> str:
    """The section "Published settings"; empty for a method of which nothing was published.

    Args:
        method: its name.
        table: makes Markdown of rows of cells, the heading first.
    """
    mine = [record for record in presets().values() if record.name.startswith(f"{method}/")]
    models = [list(group) for _, group in groupby(mine, key=lambda record: record.name.rsplit("/", 1)[0])]
    parts = [part for records in models for part in _model(records, table)]
    if remarks(method):
        parts.append("### Without a setting of their own\n\n" + "\n".join(f"- {text}" for text in remarks(method)))
    if not parts:
        return ""
    note = "The sources' numbers, not ours: none was reproduced here. `vtc presets NAME` shows one setting alone."
    return "\n\n".join(["## Published settings", note, *parts])


def _model(records: Sequence[Published], table: Table) -> list[str]:
    """Heading, settings, numbers and conditions of one model."""
    first = records[0]
    settings = [["preset", "spec", "budget in the source's words"]]
    settings += [[f"`{each.name}`", f"`{each.spec}`", each.budget] for each in records]
    rows: dict[str, Numbers] = {}
    for each in records:
        own = each.name.rsplit("/", 1)[1]
        rows[own] = each.results
        rows |= {f"{own}, {label}": row for label, row in each.related.items()}
    unverified = "" if first.verified else ", second hand or partly inferred"
    heading = f"### {first.model} (`{first.name.rsplit('/', 1)[0]}`{unverified})"
    parts = [heading, table(settings), _scores(rows, table), _costs(records, table)]
    return [part for part in (*parts, _about(records)) if part]


def _scores(rows: dict[str, Numbers], table: Table) -> str:
    rows = {label: row for label, row in rows.items() if row.scores or row.average is not None}
    names = list(dict.fromkeys(name for row in rows.values() for name in row.scores))
    untouched = {name: value for row in rows.values() for name, value in row.untouched.items()}
    averages = any(row.average is not None for row in rows.values())
    heading = ["", *names, *(["average, %"] if averages else [])]
    cells = [["untouched", *(_cell(untouched.get(name)) for name in names), *(["100"] if averages else [])]]
    for label, row in rows.items():
        cells.append([label, *(_cell(row.scores.get(name)) for name in names)])
        cells[-1] += [_cell(row.average)] if averages else []
    return table([heading, *(cells if untouched else cells[1:])]) if rows else ""


def _costs(records: Sequence[Published], table: Table) -> str:
    names = list(records[0].untouched_costs) or list(dict.fromkeys(name for each in records for name in each.costs))
    rows = {"untouched": records[0].untouched_costs} | {each.name.rsplit("/", 1)[1]: each.costs for each in records}
    cells = [[label, *(_cell(row.get(name)) for name in names)] for label, row in rows.items() if row]
    return table([["costs", *names], *cells]) if cells else ""


def _about(records: Sequence[Published]) -> str:
    """What the numbers depend on: once where it holds for all settings, else for each that differs."""
    lines = []
    for label, name in _ABOUT.items():
        texts: dict[str, list[str]] = {}
        for each in records:
            texts.setdefault(getattr(each, name), []).append(each.name.rsplit("/", 1)[1])
        for text, settings in texts.items():
            if text:
                which = "" if len(texts) == 1 else f" ({', '.join(settings)})"
                lines.append(f"- {label}{which}: {text}")
    for each in records:
        if not each.verified and records[0].verified:
            lines.append(f"- {each.name.rsplit('/', 1)[1]}: not verified")
    return "\n".join(lines)


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:g}"
