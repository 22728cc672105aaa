"""`vtc bench prefill --shape`: models of real sizes, and the bench on their miniatures."""

import json
from dataclasses import replace

import pytest
import torch
from covering import REST
from eval_runs import exit_code

import vtc
from vtc.eval.bench.prefill import model as bench_shape
from vtc.eval.bench.prefill import published
from vtc.eval.bench.prefill import rounds as prefill_rounds
from vtc.eval.bench.prefill.rounds import bench_prefill
from vtc.eval.bench.prefill.shapes import (
    END,
    IMAGE,
    SHAPES,
    START,
    TINY,
    VIDEO,
)
from vtc.eval.cli import main
from vtc.eval.results.settings import make_settings
from vtc.eval.results.table import shown
from vtc.ops import dispatch
from vtc.ops.clock import Moment

#: Parameters in billions, and visual tokens with newlines.
REAL = {
    "llava-1.5-7b": (7.06, 576),
    "llava-next-7b": (7.06, 5 * 576 + 48),
    "qwen2.5-vl-7b": (8.29, 2880),
    "llava-onevision-7b-video": (8.03, 32 * 196 + 1),
}


def placeholders(shape) -> int:
    return sum(each in (IMAGE, VIDEO) for each in shape.tokens())


@pytest.mark.parametrize("name", REAL)
def test_a_real_shape_has_the_parameters_and_tokens_of_the_real_model(name):
    billions, tokens = REAL[name]
    model = bench_shape.build(SHAPES[name], "meta", torch.bfloat16)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert parameters / 1e9 == pytest.approx(billions, rel=0.02)
    assert all(parameter.dtype == torch.bfloat16 for parameter in model.parameters())
    assert placeholders(SHAPES[name]) == tokens


@pytest.mark.parametrize("shape", [*SHAPES.values(), *TINY], ids=lambda shape: shape.name)
def test_the_tower_makes_as_many_features_as_there_are_placeholders(shape):
    """Of the shape's own pixels, by a tower with two narrow blocks."""
    narrow = {"hidden_size": 16, "intermediate_size": 16}
    blocks = {"num_hidden_layers": 2, "num_attention_heads": 2}
    if "depth" in shape.tower:
        blocks = {"depth": 2, "num_heads": 2, "fullatt_block_indexes": [1], "out_hidden_size": 64}
    small = replace(shape, decoder=TINY[0].decoder, tower={**shape.tower, **narrow, **blocks})
    model = bench_shape.build(small, "cpu", torch.float32).model
    inputs = {name: value for name, value in small.inputs(1).items() if "pixel" in name or name.startswith("image")}
    encode = model.get_video_features if "pixel_values_videos" in inputs else model.get_image_features
    with torch.inference_mode():
        (features,) = encode(**inputs).pooler_output
    assert features.shape == (placeholders(shape), 64)


@pytest.mark.parametrize("shape", TINY, ids=lambda shape: shape.name)
def test_a_miniature_is_as_deep_as_its_original_and_takes_its_inputs(shape):
    original = next(each for each in SHAPES.values() if type(each) is type(shape))
    layers = "depth" if "depth" in shape.tower else "num_hidden_layers"
    assert shape.tower[layers] == original.tower[layers]
    assert shape.decoder["num_hidden_layers"] == original.decoder["num_hidden_layers"]
    loaded = bench_shape.load(shape, None, "cpu", None)
    assert loaded.model.dtype == torch.float32
    inputs = bench_shape.inputs(shape, loaded, 2)
    rows = inputs["input_ids"]
    assert not torch.equal(rows[0], rows[1]) and inputs["attention_mask"].all()
    with torch.inference_mode(), vtc.patched(loaded.model, "none"):
        logits = loaded.model(**inputs, logits_to_keep=1).logits
        trace = vtc.trace(loaded.model)
    assert logits.isfinite().all() and logits.std() > 0.1
    assert trace.original_tokens.tolist() == [placeholders(shape)] * 2
    assert trace.text_tokens.tolist() == [30 + sum(each in (START, END) for each in shape.tokens())] * 2


@pytest.mark.parametrize(
    "shape", [pytest.param(shape, marks=REST if place else (), id=shape.name) for place, shape in enumerate(TINY)]
)
def test_every_method_is_timed_or_says_why_not(shape, monkeypatch):
    monkeypatch.setattr(prefill_rounds, "WARM_UP_ROUNDS", 0)
    methods = vtc.list_methods()
    loaded = bench_shape.load(shape, None, "cpu", None)
    settings = make_settings(methods, [0.25], [])
    result = bench_prefill(shape.name, loaded, settings, bench_shape.inputs(shape, loaded, 1), 1, 2)
    timed = [row["setting"].partition(":")[0] for row in result["settings"]]
    untimed = [setting.partition(":")[0] for setting in result["untimed"]]
    assert sorted([*timed, *untimed, "none"]) == sorted(methods)
    assert {name: why for name, why in zip(untimed, result["untimed"].values()) if not expected(why)} == {}
    for row in result["settings"]:
        assert row["prefill_ms"]["median"] > 0 and row["decode_tokens_per_s"]["median"] > 0
        assert row["equivalent_tokens"] <= result["visual_tokens"]
    with pytest.raises(ValueError):
        vtc.unpatch(loaded.model)  # the bench left no patch behind


def expected(why: str) -> bool:
    reasons = (
        "needs a vision tower with a CLS token",
        "a reducer inside it can't follow",
        "is not given them patch by patch",
    )
    return any(reason in why for reason in reasons)


def test_where_there_are_kernels_each_setting_runs_with_them_and_without(monkeypatch):
    monkeypatch.setattr(prefill_rounds._Bench, "_kernels", lambda self: (True, False))
    loaded = bench_shape.load(TINY[0], None, "cpu", None)
    seen, cls = [], type(vtc.spec.parse("random")[0])
    plain = cls.select
    monkeypatch.setattr(cls, "select", lambda self, *args: seen.append(dispatch._kernels.get()) or plain(self, *args))
    settings, inputs = make_settings(["random"], [0.5]), bench_shape.inputs(TINY[0], loaded, 1)
    result = bench_prefill("tiny", loaded, settings, inputs, 1, 1)
    assert [row["kernels"] for row in result["settings"]] == [True, False]
    prefills = 2  # one before tokens are generated, and the one that is timed
    assert seen.count(True) == seen.count(False) == prefills * (prefill_rounds.WARM_UP_ROUNDS + 1)
    assert dispatch._kernels.get()  # as before


@REST
def test_tiny_on_the_command_line(tmp_path, capsys):
    command = "bench prefill --shape tiny --methods divprune,fastv --keep 0.25 --rounds 1 --new-tokens 1 --json"
    assert main([*command.split(), str(tmp_path / "bench.json")]) == 0
    out, run = capsys.readouterr().out, json.loads((tmp_path / "bench.json").read_text())
    assert [model["model"] for model in run["models"]] == [shape.name for shape in TINY]
    assert run["batch_size"] == 1
    assert {"device", "device_name", "vtc", "torch", "transformers", "date", "threads"} <= set(run)
    for model in run["models"]:
        assert (model["dtype"], model["attn"]) == ("float32", "sdpa")
        assert [row["setting"] for row in model["settings"]] == ["divprune:keep=0.25", "fastv:keep=0.25"]
        divprune = model["settings"][0]
        assert divprune["equivalent_tokens"] == pytest.approx(model["visual_tokens"] / 4, abs=1)
        assert f"model {model['model']}: " in out


@REST
def test_published_settings_are_printed_beside_the_published_ratio(monkeypatch, tmp_path, capsys):
    by_type = {type(shape): shape for shape in TINY}
    small = tuple(replace(each, shape=by_type[type(each.shape)]) for each in published.PUBLISHED)
    monkeypatch.setattr(published, "PUBLISHED", small)
    command = "bench prefill --published --rounds 1 --new-tokens 1 --json"
    assert main([*command.split(), str(tmp_path / "bench.json")]) == 0
    out, run = capsys.readouterr().out, json.loads((tmp_path / "bench.json").read_text())
    for model, each in zip(run["models"], small, strict=True):
        (row,) = model["settings"]
        method = each.preset.partition("/")[0]
        assert row["setting"].startswith(method + ":")
        what = each.of.removesuffix("_speedup").replace("_", " ")
        assert f"published: {what} x {each.ratio} ({each.note}); here x {shown(row[each.of])} without kernels" in out


def test_published_ratios_are_those_of_the_published_times():
    """Times as the presets have them, where they do."""
    for each in published.PUBLISHED:
        record = vtc.presets.published(each.preset)
        with_, without = record.costs.get("prefill ms"), record.untouched_costs.get("prefill ms")
        if with_ is not None:
            assert without / with_ == pytest.approx(each.ratio, abs=0.05), each.preset


BAD = {
    "--shape lava-1.5-7b": ["--shape", "did you mean 'llava-1.5-7b'", "tiny"],
    "--shape llama": ["--shape", "'llama'", "qwen2.5-vl-7b"],
    "--shape tiny --model some/folder": ["--shape", "--model", "'some/folder'"],
    "--published --model some/folder": ["--published", "--model"],
    "--shape tiny --tasks video": ["--shape", "--tasks"],
    "--published --methods divprune": ["--published", "--methods"],
    "--shape llava-1.5-7b": ["--device", "llava-1.5-7b", "--shape tiny"],
    "--published": ["--device", "llava-1.5-7b"],
    "--shape tiny --attn flash_attention_7": ["--attn", "'flash_attention_7'"],
    "--shape tiny --device tpu": ["--device", "'tpu'"],
    "--shape tiny --keep 2.0": ["--keep"],
}


@pytest.mark.parametrize("arguments", BAD)
def test_bad_arguments_are_answered_with_a_sentence(arguments, capsys):
    code = exit_code(["bench", "prefill", *arguments.split()])
    error = capsys.readouterr().err
    assert code == 2 and all(word in error for word in BAD[arguments]), error


def test_help_names_every_shape(capsys):
    with pytest.raises(SystemExit):
        main(["bench", "prefill", "--help"])
    shown = "".join(capsys.readouterr().out.split())
    assert all(name in shown for name in [*SHAPES, "tiny"])


def test_a_moment_on_a_gpu_waits_only_when_it_is_asked(monkeypatch):
    calls = []

    class Event:
        def __init__(self, enable_timing):
            self.at = 5.0 * len(calls)

        def record(self, stream):
            calls.append(f"recorded in {stream}")

        def synchronize(self):
            calls.append("waited")

        def elapsed_time(self, later):
            return later.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"the stream of {device}")
    device = torch.device("cuda:1")
    first, second = Moment(device), Moment(device)
    assert calls == ["recorded in the stream of cuda:1"] * 2
    assert first.ms_until(second) == 5.0
    assert calls[2:] == ["waited"]
