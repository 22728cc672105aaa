"""`vtc bench select`: every method is there, and the figures hang together. No time is checked."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from contract import IN_STEPS, ON_VIDEOS
from covering import REST
from eval_runs import exit_code

import vtc
from vtc.eval.bench.select import rounds as bench_rounds
from vtc.eval.bench.select.decision import Meter, Undecided, decision
from vtc.eval.bench.select.scene import CropPlan, Scene
from vtc.eval.bench.select.table import _growth
from vtc.eval.bench.select.video import NOISE, VideoScene
from vtc.eval.cli import main
from vtc.method.prune import Rows, Watch
from vtc.method.reducer import Reducer
from vtc.method.reduction import Reduction
from vtc.method.registry import method_class
from vtc.method.selector import Selector
from vtc.method.visual_tokens import Needs, VisualTokens
from vtc.model.parts import Parts

CPU = torch.device("cpu")
#: Selectors that leave pictures as they are.
LEAVE_PICTURES = {name for name in (*ON_VIDEOS, "prunevid") if method_class(name).kind == "selector"}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    file = tmp_path_factory.mktemp("bench") / "select.json"
    assert main(["bench", "select", "--tokens", "32,16", "--keep", "0.5", "--rounds", "1", "--json", str(file)]) == 0
    return json.loads(file.read_text())


def test_every_method_is_timed_at_every_size(report: dict[str, Any]) -> None:
    rows = report["methods"]
    assert [(r["method"], r["tokens"]) for r in rows] == [(m, n) for m in vtc.list_methods() for n in (16, 32)]
    for row in rows:
        assert row["kind"] == method_class(row["method"]).kind
        still = row["method"] in LEAVE_PICTURES and row["tokens"] == 16  # a picture
        if row["method"] in {"none", *IN_STEPS} or still:
            assert row["untimed"].startswith("keeps every token")
            assert row["share"] is None
            continue
        assert row["untimed"] is None, row["untimed"]
        assert row["rounds"] == 1
        assert row["share"]["median"] > 0
        assert row["tower_share"]["median"] > 0
        assert row["decide_ms"]["median"] > 0
        assert row["total_ms"]["median"] == pytest.approx(row["capture_ms"]["median"] + row["decide_ms"]["median"])
        assert (row["time_exponent"] is None) == (row["tokens"] == 16 or row["method"] in LEAVE_PICTURES)


def test_shares_are_of_the_decoder_and_the_tower(report: dict[str, Any]) -> None:
    sizes = {size["tokens"]: size for size in report["sizes"]}
    assert [(size["tokens"], size["crops"], size["side"]) for size in report["sizes"]] == [(16, 1, 4), (32, 2, 4)]
    for row in report["methods"]:
        if row["share"] is not None:  # a single round: its medians are its values
            size, total = sizes[row["tokens"]], row["total_ms"]["median"]
            assert row["share"]["median"] == pytest.approx(total / size["decoder_ms"]["median"])
            assert row["tower_share"]["median"] == pytest.approx(total / size["tower_ms"]["median"])


def test_the_growth_over_all_sizes_is_the_slope_of_the_logarithms() -> None:
    def at(tokens: int, milliseconds: float | None) -> Any:
        spread = None if milliseconds is None else {"median": milliseconds}
        return {"method": "one", "tokens": tokens, "total_ms": spread}

    assert _growth([at(10, 3.0), at(20, 12.0), at(40, 48.0)])[0].endswith(": one N^2.0")
    assert _growth([at(10, 4.0), at(20, 1.0), at(40, 4.0)])[0].endswith(": one N^0.0")
    assert _growth([at(10, 3.0)]) == _growth([at(10, None), at(20, None)]) == []


@REST
def test_of_a_video_every_selector_is_timed(tmp_path: Path) -> None:
    file = tmp_path / "select.json"
    arguments = ["bench", "select", "--video", "1,2", "--keep", "0.25", "--rounds", "1", "--json", str(file)]
    assert main(arguments) == 0
    report = json.loads(file.read_text())
    assert [(size["tokens"], size["crops"], size["side"]) for size in report["sizes"]] == [(196, 1, 28), (392, 2, 28)]
    rows = report["methods"]
    assert [(r["method"], r["tokens"]) for r in rows] == [
        (m, n) for m in vtc.list_methods("selector") for n in (196, 392)
    ]
    untimed = {(row["method"], row["tokens"]) for row in rows if row["untimed"]}
    assert untimed == {("none", 196), ("none", 392), *((name, 196) for name in ON_VIDEOS)}
    assert all(row["share"]["median"] > 0 for row in rows if not row["untimed"])
    grown = {row["method"] for row in rows if row["time_exponent"] is not None}
    assert grown == {*vtc.list_methods("selector")} - {"none", *ON_VIDEOS}
    assert "a still picture with noise" in report["notes"][0] and "28x28 patches" in report["notes"][2]


def test_the_tables_show_what_the_file_holds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "select", "--methods", "stride,none,fastv", "--tokens", "9,18", "--rounds", "2"]) == 0
    out = capsys.readouterr().out
    rows = [line.split("|")[1:-1] for line in out.splitlines() if line.startswith(("| stride", "| fastv"))]
    cells = [[cell.strip() for cell in row] for row in rows]
    assert [row[:3] for row in cells] == [
        ["fastv", "prune", "9"], ["fastv", "prune", "18"], ["stride", "selector", "9"], ["stride", "selector", "18"],
    ]  # fmt: skip
    assert [row[-1] for row in cells] == ["2"] * 4
    assert "not timed: none (selector) at 9, 18 tokens: keeps every token" in out
    assert "24 x one random decoder layer" in out
    assert re.search(r"^time over all sizes.*: fastv N\^-?\d+\.\d, stride N\^-?\d+\.\d$", out, re.M)
    assert f"{torch.get_num_threads()} threads" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--methods divprun", "did you mean 'divprune'?"),
        ("--tokens 576,0", "'0' is not a whole number of at least 1"),
        ("--tokens -5", "'-5' is not a whole number of at least 1"),
        ("--tokens 1.5", "'1.5' is not a whole number of at least 1"),
        ("--tokens many", "'many' is not a whole number of at least 1"),
        ("--keep 0", "keep=0 keeps no token"),
        ("--keep 0.1,0.2", "holds 2 budgets"),
        ("--rounds 0", "'0' is not a whole number of at least 1"),
        ("--video 8,0", "'0' is not a whole number of at least 1"),
        ("--frames 0", "'0' is not a whole number of at least 1"),
        ("--video --frame-tokens 200", "'200' is no square number; give e.g. 196"),
        ("--video 8 --tokens 576", "not allowed with argument"),
        ("--device tpu9", "argument --device: 'tpu9'"),
        ("--json nowhere/at/all.json", "folder 'nowhere/at' does not exist"),
    ],
)
def test_bad_input_is_told(arguments: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["bench", "select", *arguments.split()]) == 2
    assert message in capsys.readouterr().err


# ---------------------------------------------------------------- what methods are shown


@pytest.mark.parametrize(
    ("tokens", "count", "side"),
    [(1, 1, 1), (16, 1, 4), (7, 1, 3), (576, 1, 24), (577, 2, 17), (2880, 5, 24), (16384, 64, 16)],
)
def test_crops_are_equal_squares_that_hold_the_tokens(tokens: int, count: int, side: int) -> None:
    assert CropPlan.of(tokens) == CropPlan(count, side)
    assert (count - 1) * side**2 < tokens <= count * side**2


def test_a_video_mostly_repeats_itself() -> None:
    features = VideoScene(20, CPU).features().view(20, 196, -1)
    similar = torch.cosine_similarity(features[1:], features[:-1], dim=-1)
    static = similar > 0.8
    assert static.all(dim=1).sum() == 0 and not static[15].any()  # the square moves; a cut
    share = torch.cat([static[:15], static[16:]]).float().mean()
    assert 0.6 < share < 0.85
    assert similar[static].mean() == pytest.approx(1 / (1 + NOISE**2), abs=0.01)


@dataclass
class Seeing(Selector):
    """Asks for everything and takes note of what it is shown."""

    keep: float = 0.5
    with_cls: bool = True
    name = "seeing"

    def needs(self, parts: Parts) -> Needs:
        if parts.has_cls != self.with_cls:
            raise ValueError("the other tower, please")
        block = parts.block(parts.feature_layer, "seeing")
        return Needs((block, 3), (block,), (3,), (5,), {"own": (4, lambda a: a.key.mean(dim=1))}, True, True)

    def select(self, visual: VisualTokens, k: int) -> Reduction:
        self.seen = visual
        return Reduction.of(torch.arange(k)[None])


@pytest.mark.parametrize("with_cls", [True, False])
@pytest.mark.parametrize("tokens", [18, 7])
def test_a_selector_is_shown_all_that_it_asks_for(with_cls: bool, tokens: int) -> None:
    method, scene = Seeing(with_cls=with_cls), Scene(tokens, CPU)
    meter = Meter(CPU)
    run = decision(method, scene)
    run(meter)
    run(meter)  # nothing is left over from the first time
    seen = method.seen
    assert set(seen.received) == {22, 3}
    assert [set(seen.cls), set(seen.keys), set(seen.hidden), set(seen.observed)] == [{22}, {3}, {5}, {"own"}]
    assert all(value.shape == (1, tokens) for value in (*seen.received.values(), *seen.cls.values()))
    assert seen.keys[3].shape == (1, tokens, 16, 64)
    assert seen.observed["own"].shape == (1, tokens, 64)
    assert seen.hidden[5].shape == (1, tokens, 1024)
    assert torch.cat([grid.tokens().flatten() for grid in seen.grids]).tolist() == list(range(tokens))
    assert seen.crops is not None and seen.projection is not None
    assert (seen.projection.cls is not None) == with_cls
    assert seen.projection.apply(seen.projection.rows).shape == seen.features.shape == (1, tokens, 896)
    assert seen.text[0].shape == (20, 896)
    crop, place = seen.crops.index, seen.crops.place
    assert torch.equal(crop * scene.crops.side**2 + place, torch.arange(tokens))
    assert torch.equal(seen.keys[3][0], scene.tower_attention.key[crop, :, 1 + place])  # row 0 is CLS
    assert meter.capture_s > 0 and meter.decide_s > 0 and meter.peak_bytes is None


def test_of_a_video_a_token_is_the_mean_of_four_patches() -> None:
    method, scene = Seeing(), VideoScene(3, CPU)
    decision(method, scene)(Meter(CPU))
    seen = method.seen
    assert seen.kind == "video" and seen.projection is None
    (grid,) = seen.grids
    assert (grid.t, grid.h, grid.w, len(grid)) == (3, 14, 14, seen.features.shape[1])
    frame, row, column = 2, 5, 13
    token = grid.tokens()[frame, row, column]
    patches = [1 + 28 * (2 * row + down) + 2 * column + right for down in (0, 1) for right in (0, 1)]
    key = scene.tower_attention.key[frame, :, patches].mean(dim=1)
    torch.testing.assert_close(seen.keys[3][0, token], key)
    assert seen.crops is not None and (seen.crops.index[token], seen.crops.place[token]) == (frame, 14 * row + column)


@dataclass
class Dropping(Reducer):
    """Drops units in two blocks, and takes note of what it is shown."""

    keep: float = 0.25
    name = "dropping"

    def blocks(self, parts: Parts) -> tuple[int, ...]:
        return 2, 7

    def reduce(self, patches: Any) -> Reduction:
        self.shapes = [*getattr(self, "shapes", []), (patches.block, *patches.query.shape, patches.hidden.shape[1])]
        left = patches.target if patches.last else patches.units // 2
        return Reduction(torch.arange(left).expand(len(patches.hidden), -1))


def test_a_reducer_is_shown_fewer_rows_after_each_stage() -> None:
    method, meter = Dropping(), Meter(CPU, weigh=True)
    decision(method, Scene(32, CPU))(meter)
    assert method.shapes == [(2, 2, 16, 17, 64, 16), (7, 2, 16, 9, 64, 8)]
    assert meter.decide_s > 0 and meter.capture_s == 0


@dataclass
class Watching(vtc.Prune):
    """Watches layers 1 to 3, prunes in front of 2 and 4."""

    keep: float = 0.25
    name = "watching"

    def schedule(self, num_layers: int) -> tuple[int, ...]:
        return 2, 4

    def count_at(self, stage: int, present: int) -> int:
        return present // 2 ** (stage + 1)

    def watch(self, num_layers: int) -> Watch:
        return Watch(attention=(1, 3, 5), modules=(3,), probe=True)

    def on_attention(self, rows: Any, attention: Any, memory: dict[str, Any]) -> None:
        self.heard = [*getattr(self, "heard", []), (rows.layer, attention.query.shape[2])]
        memory[f"seen {rows.layer}"] = torch.zeros(1, attention.query.shape[2])

    def on_modules(self, rows: Any, module: str, before: Any, after: Any, memory: dict) -> None:
        self.heard.append((rows.layer, module, before.shape[1], after.shape[1], rows.valid.shape[1]))

    def score(self, rows: Rows, memory: dict[str, Any]) -> torch.Tensor:
        attention = rows.probe()
        assert attention.query.shape == (1, 14, rows.hidden.shape[1], 64) and attention.key.shape[1] == 2
        assert all(value.shape == rows.visual.shape for value in memory.values())
        assert int(rows.instruction.sum()) == 20
        self.heard.append(("score", rows.layer, int(rows.visual.sum())))
        return torch.zeros(rows.visual.shape)


def test_a_prune_sees_the_sequence_shrink() -> None:
    method = Watching()
    decision(method, Scene(16, CPU))(Meter(CPU))
    assert method.heard == [
        (1, 46), ("score", 2, 16), (3, 38), (3, "attention", 38, 38, 38), (3, "mlp", 38, 38, 38), ("score", 4, 8),
    ]  # fmt: skip


def test_what_keeps_every_token_is_said_to_decide_nothing() -> None:
    for name in ("divprune", "tome", "fastv"):
        method = method_class(name)(keep=1.0)  # type: ignore[call-arg]
        with pytest.raises(Undecided, match="keeps every token"):
            decision(method, Scene(16, CPU))


def test_methods_of_two_kinds_are_timed_in_both_places() -> None:
    meter = Meter(CPU)
    decision(method_class("flowcut")(keep=0.25, stages="both"), Scene(16, CPU))(meter)  # type: ignore[call-arg]
    assert meter.capture_s > 0 and meter.decide_s > 0


class Failing(Seeing):
    """Wants more of the model than there is."""

    name = "failing"

    def needs(self, parts: Parts) -> Needs:
        parts.composite.no_such_thing  # noqa: B018
        return Needs()


class Late(Seeing):
    """Fails only while it decides."""

    name = "late"

    def select(self, visual: VisualTokens, k: int) -> Reduction:
        raise ValueError("not like this")


def test_methods_that_fail_are_named_with_the_reason() -> None:
    _, rows = bench_rounds.bench_select([Failing(), Late(), Seeing()], [8], CPU, 1)
    assert [row["rounds"] for row in rows] == [0, 0, 1]
    assert rows[0]["untimed"] is not None and "no_such_thing" in rows[0]["untimed"]
    assert rows[1]["untimed"] == "failed on the stand-in: ValueError: not like this"


@pytest.mark.parametrize("arguments", ["--frames 3,1", "--video 1,3", "--video --frames 3,1"])
def test_frames_may_be_of_any_square_size(arguments: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "select.json"
    command = f"bench select {arguments} --frame-tokens 9 --methods stride --keep 0.5 --rounds 1 --json {file}"
    assert main(command.split()) == 0
    report = json.loads(file.read_text())
    assert [(size["tokens"], size["crops"], size["side"]) for size in report["sizes"]] == [(9, 1, 6), (27, 3, 6)]
    assert "over all frames of 6x6 patches, 2x2 of which make a token" in capsys.readouterr().out


def test_memory_is_the_same_in_every_run() -> None:
    weighed = [bench_rounds.bench_select([Seeing()], [8, 16], CPU, 1)[1] for _ in range(2)]
    first, again = ([row["extra_bytes"] for row in rows] for rows in weighed)
    assert first == again and all(first)


def test_a_slow_method_is_run_at_no_larger_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_rounds._Size, "slow", lambda size: {"seeing": "took 31 s at 8 tokens"})
    _, rows = bench_rounds.bench_select([Seeing()], [8, 16], CPU, 1)
    assert [(row["rounds"], row["untimed"]) for row in rows] == [(1, None), (0, "took 31 s at 8 tokens")]


def test_a_slow_method_is_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_rounds, "SLOW", -1.0)
    _, (row,) = bench_rounds.bench_select([Seeing()], [8], CPU, 3)
    assert row["rounds"] == 1
    assert row["share"] is not None and row["share"]["median"] > 0
