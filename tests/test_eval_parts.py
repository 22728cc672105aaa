"""The pieces of the harness: statistics, settings, the run folder, the stopwatch, results from hand-made records."""

import json

import pytest
import torch

import vtc
from vtc.eval import embedded, figure, report, results, stats
from vtc.eval.errors import InputError
from vtc.eval.folder import BATCHES, SAMPLES, RunFolder
from vtc.eval.models import load
from vtc.eval.settings import NONE, make_settings
from vtc.eval.stopwatch import Stopwatch


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("right", "asked", "low", "high"),
    [(8, 10, 0.4901625, 0.9433178), (0, 20, 0.0, 0.1611252), (20, 20, 0.8388748, 1.0), (0, 0, 0.0, 1.0)],
)
def test_wilson_gives_the_textbook_interval(right, asked, low, high):
    assert stats.wilson(right, asked) == pytest.approx((low, high), abs=1e-6)


def test_quartiles_and_relative_accuracy():
    assert stats.quartiles([4.0]) == (4.0, 4.0, 4.0)
    assert stats.quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 3.0, 4.0)
    assert stats.relative(3, 4) == 0.75
    assert stats.relative(0, 0) is None


def test_none_comes_first_and_once_and_every_name_meets_every_budget():
    settings = make_settings(["random", "none", "divprune"], [0.25, 64], ["divprune:keep=64", "random:keep=0.5+fastv"])
    assert [setting.name for setting in settings] == [
        "none",
        "random:keep=0.25",
        "random:keep=64",
        "divprune:keep=0.25",
        "divprune:keep=64",
        "random:keep=0.5+fastv:keep=0.5",
    ]
    assert [setting.series for setting in settings][1::2] == ["random", "divprune", "random+fastv"]
    assert [setting.keep for setting in settings] == [None, 0.25, 64, 0.25, 64, None]


def test_a_seed_moves_on_with_the_batch_and_nothing_else_does():
    random, divprune = make_settings(["random", "divprune"], [0.25], [])[1:]
    (first,), (second,) = random.for_batch(0), random.for_batch(3)
    assert second.seed == first.seed + 3
    assert second.keep == first.keep
    assert divprune.for_batch(3) == divprune.for_batch(0)


CONFIG = {"model": "m", "limit": 3}


def samples_of(batch: int, n: int = 2) -> list[dict]:
    return [{"batch": batch, "id": f"{batch}-{i}", "error": None} for i in range(n)]


def test_a_folder_goes_on_behind_the_last_whole_batch(tmp_path):
    folder = RunFolder.open(tmp_path / "run", CONFIG)
    folder.append(samples_of(0), {"batch": 0, "samples": 2, "settings": {}})
    folder.append(samples_of(1), {"batch": 1, "samples": 2, "settings": {}})
    folder.close()
    before = [(tmp_path / "run" / name).read_bytes() for name in (SAMPLES, BATCHES)]
    leftovers = [b'{"batch": 2, "id": "2-0", "error": null}\n{"batch": 2, "id": "\xc3', b'{"batch": 2, "samp']
    for name, content, leftover in zip((SAMPLES, BATCHES), before, leftovers):
        (tmp_path / "run" / name).write_bytes(content + leftover)
    folder = RunFolder.open(tmp_path / "run", CONFIG)
    assert [record["batch"] for record in folder.batches] == [0, 1]
    assert [(tmp_path / "run" / name).read_bytes() for name in (SAMPLES, BATCHES)] == before
    assert folder.samples() == samples_of(0) + samples_of(1)
    folder.close()


def test_a_folder_is_not_shared_by_two_runs_at_once(tmp_path):
    pytest.importorskip("fcntl")
    folder = RunFolder.open(tmp_path, CONFIG)
    with pytest.raises(InputError, match="in use"):
        RunFolder.open(tmp_path, CONFIG)
    folder.close()
    RunFolder.open(tmp_path, CONFIG).close()


def test_a_folder_that_lost_lines_is_refused(tmp_path):
    folder = RunFolder.open(tmp_path, CONFIG)
    folder.append(samples_of(0), {"batch": 0, "samples": 2, "settings": {}})
    folder.close()
    (tmp_path / SAMPLES).write_text(json.dumps(samples_of(0)[0]) + "\n")
    with pytest.raises(InputError, match="lost lines"):
        RunFolder.open(tmp_path, CONFIG)


def measured(decoder_ms: float, flops: float) -> dict:
    return {
        "rows": 2,
        "prefill_ms": decoder_ms + 10,
        "decoder_ms": decoder_ms,
        "first_token_ms": decoder_ms + 11,
        "decode_tokens_per_s": None,
        "selection_ms": 1.0,
        "kv_bytes": 600,
        "flops": flops + 100,
        "decoder_flops": flops,
        "flops_without": 900.0,
        "decoder_flops_without": 800.0,
    }


def answered(batch: int, name: str, setting: str, correct: bool) -> dict:
    tokens = {"visual_tokens": 256, "kept_tokens": 64, "equivalent_tokens": 64.0}
    return {"batch": batch, "id": name, "group": "g", "setting": setting, "correct": correct, "error": None, **tokens}


def test_results_take_ratios_within_a_round_and_count_what_could_not_be_read():
    settings = make_settings(["divprune"], [0.25], [])
    short = settings[1].name
    samples = [
        answered(b, f"{b}{i}", setting, setting == NONE or i == 0)
        for b in range(3)
        for setting in (NONE, short)
        for i in range(2)
    ]
    samples.append({"batch": 3, "id": "torn", "group": "g", "setting": None, "correct": None, "error": "torn.png"})
    times = [(100.0, 50.0), (300.0, 100.0), (80.0, 20.0)]
    batches = [
        {"batch": b, "samples": 4, "settings": {NONE: measured(none, 800.0), short: measured(mine, 200.0)}}
        for b, (none, mine) in enumerate(times)
    ]
    batches.append({"batch": 3, "samples": 1, "settings": {}})
    batches[0]["peak_memory_bytes"] = {NONE: 7, short: 5}
    built = results.build({}, settings, samples, batches)
    assert (built["questions"], built["unreadable"]) == (6, ["torn"])
    row = built["settings"][1]
    assert row["decoder_speedup"] == {"median": 3.0, "low": 2.5, "high": 3.5}
    assert row["decoder_speedup_ideal"] == 4.0
    assert row["prefill_speedup_ideal"] == 3.0
    assert (row["overall"]["right"], row["overall"]["asked"]) == (3, 6)
    assert row["relative_accuracy"] == 0.5
    assert (row["kv_bytes"], row["decoder_flops"], row["peak_memory_bytes"]) == (300, 100.0, 5)


@pytest.fixture(scope="module")
def loaded():
    return load("embedded", None, "cpu", None)


@pytest.fixture(scope="module")
def inputs(loaded):
    samples = embedded.benchmark(3)[:]
    return loaded.inputs([sample.image for sample in samples], [sample.question for sample in samples])


@pytest.mark.parametrize("spec", [None, "divprune:keep=0.25", "fastv:keep=0.25"])
def test_the_stopwatch_changes_no_token_and_weighs_the_cache(loaded, inputs, spec):
    model = loaded.model
    if spec:
        vtc.patch(model, spec)
    try:
        plain = model.generate(**inputs, max_new_tokens=6, do_sample=False)
        with Stopwatch(loaded) as watch:
            watched = model.generate(**inputs, max_new_tokens=6, do_sample=False, stopping_criteria=[watch])
        tokens = vtc.trace(model).tokens_per_layer.max(dim=1).values if spec else torch.full((8,), 256)
    finally:
        if spec:
            vtc.unpatch(model)
    assert torch.equal(plain, watched)
    assert watch.decode_steps == watched.shape[1] - inputs["input_ids"].shape[1] - 1
    assert 0 < watch.decoder_ms < watch.prefill_ms < watch.first_token_ms
    assert watch.decode_ms > 0
    text = loaded.model.config.text_config
    others = inputs["input_ids"].shape[1] - 256
    row_bytes = 2 * text.num_key_value_heads * text.head_dim * 4
    assert watch.kv_bytes == len(plain) * row_bytes * int((tokens + others).sum())
    assert not model._forward_hooks and not loaded.decoder._forward_hooks


def test_the_decoder_share_holds_the_selection(loaded, inputs):
    """The hooks of the stopwatch stand outside those of the patch."""
    with vtc.patched(loaded.model, "divprune:keep=0.5"):
        with Stopwatch(loaded) as watch, torch.no_grad():
            loaded.model(**inputs)
        assert watch.decoder_ms > vtc.trace(loaded.model).selection_ms > 0


@pytest.mark.parametrize("methods", [["none"], ["random", "stride", "pool", "divprune", "fastv"]])
def test_a_figure_and_a_table_are_made_of_any_run(methods):
    settings = make_settings(methods, [0.5, 0.25], [])
    samples = [answered(0, str(i), setting.name, i == 0) for setting in settings for i in range(2)]
    batch = {"batch": 0, "samples": len(samples), "settings": {s.name: measured(50.0, 300.0) for s in settings}}
    config = {"model": "m", "benchmark": "b", "dtype": "float32", "batch_size": 2, "peak_memory": None}
    built = results.build(config, settings, samples, [batch], {"overall": 0.25, "g": 0.25})
    assert figure.draw(built).startswith(b"\x89PNG")
    for text in (report.plain(built), report.markdown(built)):
        assert all(setting.name in text for setting in settings)
        assert "50.0" in text and "none, blank picture" in text


def test_a_run_without_a_readable_picture_still_reports():
    config = {"model": "m", "benchmark": "b", "dtype": "float32", "batch_size": 2, "peak_memory": None}
    torn = {"batch": 0, "id": "torn", "group": "g", "setting": None, "correct": None, "error": "torn.png"}
    built = results.build(config, make_settings(["none"], []), [torn], [{"batch": 0, "samples": 1, "settings": {}}])
    assert built["settings"] == []
    assert "1 left out, their files can't be read: torn" in report.plain(built)
