"""`vtc bench kernels`: what is compared gives the same, and the figures hang together. No time is checked."""

import inspect
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from eval_runs import exit_code
from torch import Tensor

from vtc import ops
from vtc.eval.bench.kernels import bounds as bench_bounds
from vtc.eval.bench.kernels import command as bench_kernels
from vtc.eval.bench.kernels import loops as bench_loops
from vtc.eval.bench.kernels import work as bench_work
from vtc.eval.bench.kernels.work import Draw
from vtc.eval.cli import main
from vtc.ops import dispatch

CPU = torch.device("cpu")
TINY: dict[str, list[bench_work.Plan]] = {
    "compact": [partial(bench_work.compact, batch=b, tokens=12, dim=8, keep=0.25) for b in (1, 3)],
    "max_min": [
        partial(bench_work.max_min, tokens=40, k=10, dim=16),
        partial(bench_work.max_min, tokens=40, k=10, dim=16, rank=4),
        partial(bench_work.max_min, tokens=40, k=10, dim=16, seeded=True),
    ],
    "facility_location": [partial(bench_work.facility_location, tokens=40, k=10, dim=16)],
    "coverage": [partial(bench_work.coverage, tokens=40, k=10, dim=16, rank=4)],
    "dpp_map": [partial(bench_work.dpp_map, tokens=40, k=10, dim=16)],
    "density_peaks": [partial(bench_work.density_peaks, groups=2, tokens=30, dim=8, count=4, neighbours=3)],
    "attention_received": [
        partial(bench_work.attention_received, kind="whole", images=2, heads=(4, 4), tokens=9, dim=8),
        partial(bench_work.attention_received, kind="packed", images=1, heads=(4, 4), tokens=10, dim=8),
        partial(bench_work.attention_received, kind="causal", images=1, heads=(4, 2), tokens=9, dim=8),
    ],
    "attention_rows": [partial(bench_work.attention_rows, heads=(4, 2), tokens=9, dim=8)],
    "merge": [partial(bench_work.merge, tokens=12, k=5, dim=8)],
}


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_work, "plans", lambda device: TINY)
    monkeypatch.setattr(bench_bounds, "FLUSH_BYTES", 2**12)
    monkeypatch.setattr(bench_bounds, "SIDE", 16)


# ---------------------------------------------------------------- what is compared


@pytest.mark.parametrize("k", [1, 2, 17, 60])
def test_the_released_loop_and_ours_pick_the_same(k: int) -> None:
    features = Draw(CPU, torch.float32).normal(60, 32)
    picks = ops.max_min(features[None], k)[0]
    assert torch.equal(bench_loops.released_picks(bench_loops.released_distances(features), k), picks)
    assert torch.equal(bench_loops.running_minimum(features, k, None), picks)
    seed = torch.tensor([7])
    assert torch.equal(bench_loops.running_minimum(features, k, seed), ops.max_min(features[None], k, seed)[0])


@pytest.mark.parametrize("plan", [plan for plans in TINY.values() for plan in plans])
def test_all_forms_of_an_operation_give_the_same(plan: bench_work.Plan) -> None:
    case = plan(Draw(CPU, torch.float32))
    ours = case.ours()
    for form in (case.composition, case.loop, case.picking):
        made = ours if form is None else form()
        for mine, theirs in zip(*((x if isinstance(x, list) else [x]) for x in (ours, made)), strict=True):
            torch.testing.assert_close(theirs.view_as(mine), mine)


def test_what_must_be_moved_is_counted() -> None:
    draw = Draw(CPU, torch.float16)
    read_and_written = 3 * (2 * 8 * 2 + 2 * 8 + 2 * 1) * 3  # three rows of three images: hidden, positions, mask
    angles = 2 * 256 * (9 + 9)  # cos and sin
    assert bench_work.compact(draw, batch=3, tokens=12, dim=8, keep=0.25).bytes == read_and_written + angles + 9 * 8
    case = bench_work.attention_received(draw, "causal", images=1, heads=(4, 2), tokens=9, dim=8)
    assert case.flops == 2 * 4 * 45 * 8
    assert case.bytes == 2 * 9 * 8 * (4 + 2) + 4 * 9


def test_a_floor_is_the_longest_of_what_must_be_done() -> None:
    def same(value: float) -> Any:
        return {"median": value, "low": value, "high": value}

    bounds: bench_bounds.Bounds = {"bytes_per_s": same(1e9), "flops_per_s": same(1e12), "launch_us": same(5.0)}
    assert bench_bounds.floor_ms(2_000_000, 10, bounds) == pytest.approx(2.0)
    assert bench_bounds.floor_ms(10, 4_000_000_000, bounds) == pytest.approx(4.0)
    assert bench_bounds.floor_ms(10, 10, bounds) == pytest.approx(0.005)


def test_plans_for_all_devices_fit_what_they_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for kind in ("cpu", "cuda"):
        plans = bench_work.plans(torch.device(kind))
        assert tuple(plans) == bench_work.OPS
        for op, of_op in plans.items():
            for plan in of_op:
                assert isinstance(plan, partial) and plan.func is getattr(bench_work, op)
                inspect.signature(plan.func).bind(None, **plan.keywords)
        sizes = [plan.keywords for plan in plans["max_min"] if isinstance(plan, partial)]
        assert all({"tokens": 2880, "k": 320, "dim": dim} in sizes for dim in (1024, 4096))


# ---------------------------------------------------------------- the command


@pytest.fixture
def report(tmp_path: Path) -> dict[str, Any]:
    file = tmp_path / "kernels.json"
    assert main(["bench", "kernels", "--rounds", "1", "--json", str(file)]) == 0
    return json.loads(file.read_text())


def test_the_file_holds_what_is_documented(report: dict[str, Any]) -> None:
    assert set(report) == set(bench_kernels.KernelRun.__annotations__)
    assert set(report["bounds"]) == set(bench_bounds.Bounds.__annotations__)
    assert [row["op"] for row in report["results"]] == [op for op, plans in TINY.items() for _ in plans]
    assert not report["kernels"] and report["dtype"] == "float32" and report["threads"] == torch.get_num_threads()
    for row in report["results"]:
        assert set(row) == set(bench_kernels.KernelResult.__annotations__)
        assert row["kernel_ms"] is None
        assert row["floor_ms"] > 0 and row["bytes"] > 0
        released = (row["op"], row["shape"]) == ("compact", "[3, 12, 8] keep 0.25") or (
            row["op"] == "max_min" and "given" not in row["shape"]
        )
        assert (row["loop_ms"] is not None) == (row["over_loop"] is not None) == released


def test_ratios_are_within_a_round(report: dict[str, Any]) -> None:
    for row in report["results"]:  # a single round: its medians are its values
        ours = row["reference_ms"]["median"]
        assert row["floors"]["median"] == pytest.approx(ours / row["floor_ms"])
        launches = 10 if row["op"] in ("max_min", "facility_location", "coverage", "dpp_map") else 1
        assert row["steps_ms"] == pytest.approx(1e-3 * launches * report["bounds"]["launch_us"]["median"])
        for form in ("composition", "loop", "picking"):
            if row[f"{form}_ms"] is not None:
                assert row[f"over_{form}"]["median"] == pytest.approx(row[f"{form}_ms"]["median"] / ours)


def test_where_a_kernel_runs_it_is_ours() -> None:
    case = TINY["max_min"][0](Draw(CPU, torch.float32))
    same: Any = {"median": 1e9, "low": 1e9, "high": 1e9}
    bounds: bench_bounds.Bounds = {"bytes_per_s": same, "flops_per_s": same, "launch_us": same}
    times = {"kernel": [2.0], "reference": [6.0], "composition": [8.0], "loop": [20.0], "picking": [10.0]}
    row = bench_kernels._result(case, times, bounds)
    assert row["kernel_ms"] is not None and row["over_loop"] is not None
    assert (row["kernel_ms"]["median"], row["over_composition"]["median"], row["over_loop"]["median"]) == (2, 4, 10)
    assert row["floors"]["median"] == pytest.approx(2 / row["floor_ms"])
    heading, _, line = bench_kernels._table([row])
    assert "| kernel " in heading and "2.00 [2.00, 2.00]" in line


def test_the_reference_is_timed_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def ours() -> Tensor:
        seen.append(dispatch._kernels.get())
        return torch.zeros(1)

    case = bench_work.Case("merge", "", ours, (torch.zeros(1),), ours, 1, 1)
    monkeypatch.setattr("vtc.ops.cuda.kernel_for", lambda *_: ours)
    forms = bench_kernels._forms(case, torch.device("cuda"))
    forms["reference"]()
    forms["kernel"]()
    assert seen == [False, True]
    assert "kernel" not in bench_kernels._forms(case, CPU)


def test_the_table_shows_what_was_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "kernels", "--ops", "merge,max_min", "--rounds", "2", "--dtype", "bfloat16"]) == 0
    out = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line.startswith("|")]
    heading = rows[0]
    assert "kernel" not in heading and "no kernels here" in out
    assert [row[0] for row in rows[2:]] == ["merge", "max_min", "max_min", "max_min"]
    assert all(row[heading.index("ours / floor")] for row in rows[2:])
    assert [bool(row[heading.index("loop")]) for row in rows[2:]] == [False, True, True, False]
    assert "bfloat16" in out and torch.__version__ in out and f"{torch.get_num_threads()} CPU threads" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--ops merge,gather", "argument --ops: 'gather' is none of compact, max_min"),
        ("--ops merge,", "has an empty name"),
        ("--rounds 0", "'0' is not a whole number of at least 1"),
        ("--dtype float64", "unknown 'float64'; did you mean 'float"),
        ("--device tpu9", "argument --device: 'tpu9'"),
        ("--json nowhere/at/all.json", "folder 'nowhere/at' does not exist"),
    ],
)
def test_bad_input_is_told(arguments: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["bench", "kernels", *arguments.split()]) == 2
    assert message in capsys.readouterr().err
