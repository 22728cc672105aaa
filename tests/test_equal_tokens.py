"""`vtc eval --tokens` and `vtc solve`: methods at the same equivalent tokens."""

import argparse
import json

import pytest
import torch

import vtc
from vtc.eval.cli import arguments, main
from vtc.eval.cli.errors import InputError
from vtc.eval.commands import solve
from vtc.eval.models import load
from vtc.eval.run import equal_tokens
from vtc.eval.run.equal_tokens import batches_of, specs_at, specs_before
from vtc.eval.tasks.benchmarks import bundled_task


@pytest.fixture(scope="module")
def model():
    return load("embedded", None, "cpu", None).model


@pytest.fixture(scope="module")
def batches():
    return batches_of(load("embedded", None, "cpu", None), bundled_task("image", 4, "train", 0), 2)


def measured(model, spec, batch):
    with torch.no_grad(), vtc.patched(model, spec):
        model(**batch)
        return vtc.trace(model).equivalent_tokens.mean().item()


def test_methods_of_every_kind_come_out_with_as_many_tokens(model, batches, capsys):
    specs = specs_at(model, ["none", "divprune", "fastv", "flowcut", "tome", "transprune", "todre"], [96.0], batches)
    assert [spec.partition(":")[0] for spec in specs] == ["divprune", "fastv", "flowcut", "tome", "todre"]
    for spec in specs:
        assert measured(model, spec, batches[0]) == pytest.approx(96, rel=0.01)
    said = capsys.readouterr().err
    assert "left out: transprune at 96" in said and "from 109.6 to 256" in said  # its first layers see all tokens
    assert "todre:keep=" in said and "96 asked for" in said and "divprune" not in said


def test_prompts_of_unequal_length_are_calibrated_on(model, batches, monkeypatch):
    monkeypatch.setattr(equal_tokens, "_planner", lambda model, batches: None)
    (spec,) = specs_at(model, ["stride"], [64.0], batches[:1])
    assert measured(model, spec, batches[0]) == pytest.approx(64, rel=0.01)


def test_a_method_that_cannot_be_set_is_named(model, batches):
    with pytest.raises(InputError, match=r"--tokens: divprun at 64: .*did you mean 'divprune'"):
        specs_at(model, ["divprun"], [64.0], batches)


ASKED = [
    *("eval", "--methods", "none,random,fastv", "--tokens", "96", "--keep", "0.5"),
    *("--limit", "1", "--max-new-tokens", "1"),
]


def test_a_run_at_equal_tokens_is_resumed_with_the_specs_that_it_began_with(tmp_path, monkeypatch):
    folder = str(tmp_path / "run")
    assert main([*ASKED, "--output", folder]) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    rows = {row["setting"]: row["equivalent_tokens"] for row in results["settings"]}
    assert list(rows)[:3] == ["none", "random:keep=0.5", "fastv:keep=0.5"]
    assert list(rows.values()) == [256, 128, 160, 96, pytest.approx(96, rel=0.01)]
    asked = {"tokens": [96.0], "methods": ["none", "random", "fastv"], "specs": None}
    assert len(specs_before(tmp_path / "run", asked)) == 2
    assert specs_before(tmp_path / "run", {**asked, "tokens": [64.0]}) is None
    assert specs_before(tmp_path, asked) is None
    monkeypatch.setattr(equal_tokens, "specs_at", None)  # not solved again
    assert main([*ASKED, "--output", folder]) == 0


@pytest.mark.parametrize(
    ("given", "expected"),
    [([], [0.5, 64]), (["--tokens", "96"], []), (["--keep", "0.1"], [0.1]), (["--tokens", "96", "--keep", "9"], [9])],
)
def test_keep_has_no_default_beside_tokens(given, expected):
    parser = argparse.ArgumentParser()
    arguments.add_setting_arguments(parser, "none", "0.5,64", tokens=True)
    assert arguments.budgets(parser.parse_args(given)) == expected


@pytest.mark.parametrize("value", ["0", "0.5", "nan", "inf", "many", ""])
def test_a_bad_number_of_tokens_is_named(value, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["eval", "--tokens", value, "--output", str(tmp_path / "new")])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "--tokens" in error and repr(value) in error
    assert not (tmp_path / "new").exists()


def solved(*argv):
    parser = argparse.ArgumentParser()
    solve.add_arguments(parser)
    solve.main(parser.parse_args(argv))


def test_vtc_solve_prints_the_spec_and_says_the_plan(model, capsys):
    solved("--compress", "divprune+transprune", "--target", "flops=0.6", "--text-tokens", "12")
    out, err = capsys.readouterr()
    assert out.strip() == vtc.planning.solve.solve(model, "divprune+transprune", "flops=0.6", text_tokens=12)
    assert "plan of divprune" in err and "GFLOP (60.0 %)" in err


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--compress", "divprune", "--target", "flops=2"], "flops=2"),
        (["--compress", "divprun", "--target", "flops=0.6"], "did you mean"),
        (["--compress", "fastv", "--target", "tokens=4"], "out of reach"),
        (["--compress", "fastv", "--target", "tokens=99", "--model", "{files}/nowhere"], "--model"),
    ],
)
def test_vtc_solve_refuses_in_a_sentence(argv, expected, tmp_path):
    with pytest.raises(InputError, match=expected):
        solved(*(word.format(files=tmp_path) for word in argv), "--text-tokens", "12")
