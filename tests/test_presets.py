"""Published settings: every one is a method, and carries numbers that agree with themselves."""

import re
import tomllib
from itertools import accumulate, chain
from pathlib import Path

import pytest

import vtc
from vtc import spec
from vtc.eval.cli import main
from vtc.presets import Numbers, Published, presets, published

NAMES = list(presets())

#: Rows whose printed average is not that of the printed numbers: over more or other benchmarks, or the source's slip.
OTHER_AVERAGE = {
    ("hiprune/llava-1.5/128", "HiPrune++ (its numbers give 98.6 on average)"),
    ("kcenter/llava-next-13b/720", "ToDRE, both stages (its numbers give 97.6 on average)"),
    ("todre/llava-next-13b/720", ""),
    ("fastv/llava-1.5-by-transprune/k2r50", ""),
    ("vidcom2/llava-onevision-7b/25", ""),
    *((f"visionzip/llava-1.5/{count}", "") for count in (192, 128, 64)),
    *((f"visionzip/llava-next/{count}", "") for count in (640, 320, 160)),
}  # fmt: skip


def rows(record: Published) -> dict[str, Numbers]:
    return {"": record.results} | dict(record.related)


@pytest.mark.parametrize("name", NAMES)
def test_every_preset_is_the_method_that_its_spec_says(name):
    record = published(name)
    method = vtc.preset(name)
    assert spec.parse(record.spec) == [method]
    assert method.name == name.split("/")[0]
    assert method.published is record
    assert vtc.preset(name) is not method


@pytest.mark.parametrize("name", [name for name in NAMES if re.search(r"\d+ of \d+", published(name).budget)])
def test_keep_leaves_as_many_tokens_as_the_budget_says(name):
    kept, present = map(int, re.search(r"(\d+) of (\d+)", published(name).budget).groups())
    assert vtc.preset(name).count(present) == kept


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("diffrate/")])
def test_the_schedules_of_diffrate_leave_the_published_counts(name):
    """A count that rises again is met by no block: what was left before stays."""
    method = vtc.preset(name)
    pruned, merged = (
        [int(count) - 1 for count in re.search(rf"after {what} ([\d, ]+)", published(name).budget)[1].split(", ")]
        for what in ("pruning", "merging")
    )
    ours = [method.counts(stage, len(pruned), 196, method.count(196)) for stage in range(len(pruned))]
    left, expected = (list(accumulate(chain.from_iterable(steps), min)) for steps in (ours, zip(pruned, merged)))
    assert left == expected


@pytest.mark.parametrize("name", NAMES)
def test_numbers_are_there_and_each_is_told_where_it_was_read(name):
    record = published(name)
    assert re.fullmatch(r"\d{4}\.\d{4,5}", record.source)
    assert record.model and record.budget and record.evidence
    assert any(row.scores or row.average is not None for row in rows(record).values())
    assert set(record.costs) <= {*record.untouched_costs} or not record.untouched_costs
    if not record.verified:
        assert re.search("secondary|inferred|ours", record.evidence + record.keep_note)


def test_printed_averages_are_those_of_the_printed_numbers():
    """Each row was copied by hand; its printed average is a second witness of nearly all of them."""
    found = {(name, label): row for name in NAMES for label, row in rows(published(name)).items()}
    found = {key: row for key, row in found.items() if row.average is not None and row.untouched}
    off = set()
    for key, row in found.items():
        mean = 100 * sum(score / row.untouched[benchmark] for benchmark, score in row.scores.items()) / len(row.scores)
        if abs(mean - row.average) > 0.1:
            off.add(key)
    assert len(found) >= 40
    assert off == OTHER_AVERAGE


def test_a_method_made_from_a_preset_equals_the_one_made_by_hand():
    preset = vtc.preset("hiprune/llava-1.5/192")
    assert preset == vtc.HiPrune(keep=192) and repr(preset) == repr(vtc.HiPrune(keep=192))
    assert preset.published.results.scores["GQA"] == 59.2
    assert preset.published.results.untouched["GQA"] == 61.9
    assert preset.published.results.average == 99.3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hiprune/llava-1.5/193", "unknown preset 'hiprune/llava-1.5/193'; did you mean 'hiprune/llava-1.5/192'"),
        ("hiprune/llava-1.5", "did you mean one of 'hiprune/llava-1.5/192', 'hiprune/llava-1.5/128'"),
        ("divprune", "did you mean one of 'divprune/llava-1.5/0.098'"),
        ("", "`vtc presets` lists them all"),
    ],
)
def test_an_unknown_name_gets_the_nearest(name, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        vtc.preset(name)


def test_a_name_that_is_no_string_is_refused():
    with pytest.raises(TypeError, match="name=192 is a int"):
        vtc.preset(192)


def test_the_numbers_are_shipped():
    config = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
    assert "presets.toml" in config["tool"]["setuptools"]["package-data"]["vtc"]


def test_the_list_has_every_preset_with_spec_and_a_number(capsys):
    assert main(["presets"]) == 0
    out = capsys.readouterr().out
    entries = re.findall(r"(?m)^(\S+)\n    (\S+)\n    (.+)\n    (.*\d.*)$", out)
    assert [entry[:2] for entry in entries] == [(name, published(name).spec) for name in NAMES]
    assert "GQA 59.2 (untouched 61.9)" in out


def test_one_preset_is_shown_whole(capsys):
    assert main(["presets", "kcenter/llava-next/288"]) == 0
    out = capsys.readouterr().out
    record = published("kcenter/llava-next/288")
    for name in ("spec", "model", "budget", "source", "evidence", "keep_note", "note"):
        assert getattr(record, name) in out
    for label, row in rows(record).items():
        assert label in out
        for benchmark, score in row.scores.items():
            assert re.search(rf"{benchmark} +{score:g} +untouched {row.untouched[benchmark]:g}", out)


def test_a_method_without_presets_tells_why(capsys):
    assert main(["presets", "--method", "tokencorr"]) == 0
    assert "no preset" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "expected"),
    [("presets hiprun/llava-1.5/192", "did you mean 'hiprune/llava-1.5/192'"), ("presets --method tom", "--method")],
)
def test_a_bad_argument_of_presets_is_named(command, expected, capsys):
    assert main(command.split()) == 2
    assert expected in capsys.readouterr().err
