"""Results as tables and sentences for a terminal."""

from collections.abc import Iterator, Sequence

from vtc.eval.doctor.checks import ALLOWED, CHECKS
from vtc.eval.doctor.examination import Result
from vtc.eval.doctor.installed import Part
from vtc.eval.results.table import aligned


def installed_table(parts: Sequence[Part]) -> list[str]:
    """The lines of the table of what is installed."""
    rows = [[part.name, part.version, part.tested, part.remark] for part in parts]
    return aligned([["part", "installed", "tested with", ""], *rows])


def results_table(results: Sequence[Result]) -> list[str]:
    """A row for each model and method over all attention implementations, then a line for each thing to be said."""
    cases = dict.fromkeys((result.model, result.method) for result in results)
    rows = [["model", "method", "attention", *CHECKS]]
    for model, method in cases:
        own = [result for result in results if (result.model, result.method) == (model, method)]
        cells = [_cell([result for result in own if result.check in (name, "")]) for name in CHECKS]
        rows.append([model, method, ", ".join(dict.fromkeys(result.attention for result in own)), *cells])
    return [*aligned(rows), "", *_sentences(results)]


def _cell(results: Sequence[Result]) -> str:
    """What a check said under all implementations: the worst, or the largest difference."""
    for status, shown in (("failed", "FAILED"), ("passed", ""), ("refused", "refused"), ("unchecked", "not checked")):
        found = [result for result in results if result.status == status]
        if found and shown:
            return shown
        if found:
            largest = max(result.difference or 0.0 for result in found)
            return f"{largest:.0e}" if largest else "equal"
    return ""


def _sentences(results: Sequence[Result]) -> Iterator[str]:
    """Why something did not pass, the same of several implementations once; failures last, where they are read."""
    for status in ("unchecked", "refused", "failed"):
        said: dict[tuple[str, str, str, str], list[str]] = {}
        for each in results:
            if each.status == status:
                key = each.model, each.method, each.check, each.detail
                said.setdefault(key, []).append(each.attention)
        for (model, method, check, detail), attentions in said.items():
            about = f", {check}" if check else ""
            shown = {"unchecked": "not checked", "refused": "refused", "failed": "FAILED"}[status]
            yield f"{shown}: {model}, {method}{about} ({', '.join(attentions)}): {detail}"


def legend(dtype: str) -> str:
    """What the figures of the table are."""
    allowed = {str(kind).removeprefix("torch."): value for kind, value in ALLOWED.items()}
    advice = "" if dtype == "float32" else "; --dtype float32 sees smaller faults"
    return (
        f"figures: the largest difference of two logits in standard deviations, of which {dtype} is allowed "
        f"{allowed.get(dtype, allowed['float32']):g}{advice}"
    )


def verdict(results: Sequence[Result], seconds: float) -> str:
    """The last line."""
    count = {status: sum(result.status == status for result in results) for status in ("passed", "failed")}
    refused = len({(result.model, result.method) for result in results if result.status == "refused"})
    rest = f"{refused} methods refused, {sum(r.status == 'unchecked' for r in results)} checks impossible"
    made = f"of {count['passed'] + count['failed']} checks in {seconds:.1f} s; {rest}"
    if count["failed"]:
        return f"verdict: {count['failed']} FAILED {made}"
    return f"verdict: none failed {made}" if count["passed"] else f"verdict: nothing could be checked; {rest}"
