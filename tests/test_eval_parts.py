"""The pieces of the harness: statistics, settings, the run folder, the stopwatch, results from hand-made records."""

import pytest
import torch

import vtc
from vtc.eval import embedded
from vtc.eval.cli.errors import InputError
from vtc.eval.report import figure
from vtc.eval.report import tables as report
from vtc.eval.results import results, stats
from vtc.eval.results.folder import RunFolder
from vtc.eval.results.settings import NONE, make_settings
from vtc.eval.run.journal import Journal, busy, read
from vtc.eval.run.stopwatch import Stopwatch


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


def line(batch: int) -> dict:
    return {"batch": batch, "samples": [{"id": f"{batch}-{i}", "error": None} for i in range(2)], "rounds": []}


@pytest.mark.parametrize(
    "torn", [b'{"batch": 2, "samples": [{"id": "2-0", "gr\xc3', b'{"batch": 2, "samp', b"{}"[:1], b""]
)
def test_a_journal_goes_on_behind_the_last_whole_line(tmp_path, torn):
    journal = Journal(tmp_path)
    journal.append(line(0))
    journal.append(line(1))
    journal.close()
    before = journal.path.read_bytes()
    journal.path.write_bytes(before + torn)
    assert list(read(tmp_path).values()) == [line(0), line(1)]
    journal = Journal(tmp_path)
    journal.append(line(2))
    journal.close()
    assert journal.path.read_bytes().startswith(before)
    assert list(read(tmp_path)) == [0, 1, 2]


def test_of_a_batch_that_two_processes_did_the_first_counts(tmp_path):
    for number, batches in enumerate([(0, 2), (1, 2)]):
        journal = Journal(tmp_path, number)
        for batch in batches:
            journal.append({**line(batch), "by": number})
        journal.close()
    assert [(batch, each["by"]) for batch, each in read(tmp_path).items()] == [(0, 0), (1, 1), (2, 0)]


def test_a_journal_that_was_changed_by_hand_is_refused_and_left_alone(tmp_path):
    journal = Journal(tmp_path)
    journal.append(line(0))
    journal.append(line(1))
    journal.close()
    spoilt = journal.path.read_bytes().replace(b'"batch": 0', b'"batch": zero')
    journal.path.write_bytes(spoilt)
    with pytest.raises(InputError, match="changed by hand"):
        Journal(tmp_path)
    assert journal.path.read_bytes() == spoilt


def test_a_folder_is_not_shared_by_two_runs_at_once(tmp_path):
    pytest.importorskip("fcntl")
    folder = RunFolder.open(tmp_path, CONFIG)
    with pytest.raises(InputError, match="in use"):
        RunFolder.open(tmp_path, CONFIG)
    folder.close()
    RunFolder.open(tmp_path, CONFIG).close()
    journal = Journal(tmp_path, 3)
    assert busy(tmp_path, 3)
    with pytest.raises(InputError, match="in use"):
        Journal(tmp_path, 3)
    journal.close()
    assert not busy(tmp_path, 3)


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
    score = float(correct)
    said = {"prediction": str(correct), "score": score, "correct": correct, "metrics": {"exact_match": score}}
    tokens = {"visual_tokens": 256, "kept_tokens": 64, "equivalent_tokens": 64.0, "parsed": True, "cluster": None}
    return {"batch": batch, "id": name, "group": "g", "setting": setting, "error": None, **said, **tokens}


TORN = {"id": "torn", "group": "g", "setting": None, "correct": None, "error": "torn.png"}


def test_results_take_ratios_within_a_round_and_count_what_could_not_be_read():
    settings = make_settings(["divprune"], [0.25], [])
    short = settings[1].name
    samples = [
        [answered(b, f"{b}{i}", setting, setting == NONE or i == 0) for setting in (NONE, short) for i in range(2)]
        for b in range(3)
    ]
    times = [(100.0, 50.0), (300.0, 100.0), (80.0, 20.0)]
    lines = [
        {"batch": b, "samples": samples[b], "rounds": [{NONE: measured(none, 800.0), short: measured(mine, 200.0)}]}
        for b, (none, mine) in enumerate(times)
    ]
    lines.append({"batch": 3, "samples": [TORN], "rounds": []})
    lines[0]["peak_memory_bytes"] = {NONE: 7, short: 5}
    built = results.build({}, settings, lines)
    assert (built["questions"], built["failed"]) == (6, [{"id": "torn", "error": "torn.png"}])
    row = built["settings"][1]
    assert row["decoder_speedup"] == {"median": 3.0, "low": 2.5, "high": 3.5}
    assert row["decoder_speedup_ideal"] == 4.0
    assert row["prefill_speedup_ideal"] == 3.0
    assert (row["overall"]["right"], row["overall"]["asked"]) == (3, 6)
    assert row["relative_accuracy"] == 0.5
    assert (row["flips"]["right_to_wrong"], row["flips"]["wrong_to_right"], row["agreement"]) == (3, 0, 0.5)
    assert row["metrics"]["exact_match"]["difference"] == -0.5
    assert (row["kv_bytes"], row["decoder_flops"], row["peak_memory_bytes"]) == (300, 100.0, 5)


@pytest.fixture(scope="module")
def inputs(loaded):
    samples = embedded.benchmark(3)[:]
    return loaded.inputs([[sample.image] for sample in samples], [sample.question for sample in samples])


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
    line = {"batch": 0, "samples": samples, "rounds": [{s.name: measured(50.0, 300.0) for s in settings}]}
    config = {"model": "m", "benchmark": "b", "dtype": "float32", "batch_size": 2, "peak_memory": None}
    built = results.build(config, settings, [line], blind={"overall": 0.25, "g": 0.25})
    assert figure.draw(built).startswith(b"\x89PNG")
    for text in (report.plain(built), report.markdown(built)):
        assert all(setting.name in text for setting in settings)
        assert "50.0" in text and "none, blank picture" in text


def test_a_run_without_a_readable_picture_still_reports():
    config = {"model": "m", "benchmark": "b", "dtype": "float32", "batch_size": 2, "peak_memory": None}
    built = results.build(config, make_settings(["none"], []), [{"batch": 0, "samples": [TORN], "rounds": []}])
    assert built["settings"] == []
    assert "1 left out, they could not be asked: torn" in report.plain(built)
