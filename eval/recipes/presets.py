"""`vtc presets`: published settings, and the numbers that were published for them."""

import argparse
from collections.abc import Iterator, Mapping

from vtc.eval.cli.errors import InputError
from vtc.presets import Numbers, Published, presets, published, remarks

#: Benchmarks that most sources share: what a line of the list shows where it can.
HEADLINE = ("GQA", "POPE")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `vtc presets`."""
    parser.add_argument("name", nargs="?", help="a preset, shown whole; without it all are listed")
    parser.add_argument("--method", help="list those of this method only")


def main(args: argparse.Namespace) -> None:
    """List the presets, or show one.

    Raises:
        InputError: no such preset, or no preset of such a method.
    """
    if args.name is not None:
        try:
            print("\n".join(show(published(args.name))))
        except ValueError as error:
            raise InputError(f"argument NAME: {error}") from None
        return
    found = [each for each in presets().values() if args.method in (None, method_of(each))]
    if not found and not remarks(args.method):
        known = ", ".join(dict.fromkeys(method_of(each) for each in presets().values()))
        raise InputError(f"argument --method: no preset of {args.method!r}; there are presets of {known}")
    for record in found:
        print(f"{record.name}\n    {record.spec}\n    {record.budget}\n    {headline(record)}")
    if args.method is not None:
        print("\n".join(remarks(args.method)))


def method_of(record: Published) -> str:
    """Name of the method that the preset configures."""
    return record.name.partition("/")[0]


def headline(record: Published) -> str:
    """One or two numbers, with those of the untouched model."""
    results = record.results
    common = [name for name in HEADLINE if name in results.scores]
    parts = [_against(results, name) for name in [*common, *results.scores][: len(common) or 2]]
    if results.average is not None:
        parts = [f"average {results.average:g} %", *parts[:1]]
    if not parts:
        averages = {label: row.average for label, row in record.related.items() if row.average is not None}
        parts = [f"{label}: average {average:g} %" for label, average in averages.items()]
    return "; ".join(parts) + ("" if record.verified else "; unverified")


def show(record: Published) -> Iterator[str]:
    """The lines that tell all of one preset."""
    yield record.name
    about = {
        "spec": record.spec,
        "model": record.model,
        "budget": record.budget,
        "source": f"arXiv {record.source}",
        "evidence": record.evidence + ("" if record.verified else " (unverified)"),
        "prompt": record.prompt,
        "precision": record.precision,
        "software": record.software,
        "keep": record.keep_note,
        "note": record.note,
    }
    for label, text in about.items():
        if text:
            yield f"  {label:<10} {text}"
    yield from _table("published", record.results)
    for label, row in record.related.items():
        yield from _table(label, row)
    yield from _rows("costs", record.costs, record.untouched_costs)
    if record.costs_on:
        yield f"  costs on   {record.costs_on}"


def _table(title: str, numbers: Numbers) -> Iterator[str]:
    yield from _rows(title, numbers.scores, numbers.untouched)
    if numbers.average is not None:
        yield from () if numbers.scores else (f"  {title}",)
        yield f"    {'average, % of untouched':<24} {numbers.average:>9g}"


def _rows(title: str, own: Mapping[str, float], untouched: Mapping[str, float]) -> Iterator[str]:
    names = list({**own, **untouched})
    if names:
        yield f"  {title}"
    for name in names:
        mine = f"{own[name]:g}" if name in own else "–"
        yield f"    {name:<24} {mine:>9}" + (f"   untouched {untouched[name]:g}" if name in untouched else "")


def _against(numbers: Numbers, name: str) -> str:
    before = f" (untouched {numbers.untouched[name]:g})" if name in numbers.untouched else ""
    return f"{name} {numbers.scores[name]:g}{before}"
