"""`vtc bench prefill --model`: what it reports hangs together."""

import json

import pytest
from covering import REST

from vtc.eval.cli import main


def test_the_figures_of_a_bench_hang_together(tmp_path, capsys):
    command = "bench prefill --methods divprune,fastv --keep 0.125 --batch-size 2 --rounds 1 --new-tokens 3 --json"
    assert main([*command.split(), str(tmp_path / "bench.json")]) == 0
    run = json.loads((tmp_path / "bench.json").read_text())
    (model,) = run["models"]
    divprune, fastv = model["settings"]
    out = capsys.readouterr().out
    assert run["torch"] in out and run["date"] in out
    assert (run["batch_size"], run["rounds"], run["new_tokens"], run["device_name"]) == (2, 1, 3, "CPU")
    assert (model["model"], model["visual_tokens"]) == ("embedded", 256)
    for row in (divprune, fastv):
        assert row["setting"] in out and not row["kernels"]
        for part in ("prefill", "decoder"):
            speedup = model["untouched"][f"{part}_ms"]["median"] / row[f"{part}_ms"]["median"]
            assert row[f"{part}_speedup"]["median"] == pytest.approx(speedup)
            assert row[f"{part}_attained"]["median"] == pytest.approx(speedup / row[f"{part}_speedup_ideal"])
        assert row["selection_share"]["median"] == row["selection_ms"]["median"] / row["prefill_ms"]["median"]
        assert row["decoder_ms"]["median"] < row["prefill_ms"]["median"] <= row["first_token_ms"]["median"]
        assert row["decode_tokens_per_s"]["median"] > 0 and row["peak_memory_bytes"] is None
        assert row["decoder_speedup_ideal"] == pytest.approx(model["decoder_flops"] / row["decoder_flops"])
        assert row["prefill_speedup_ideal"] == pytest.approx(model["flops"] / row["flops"])
    assert divprune["equivalent_tokens"] == divprune["kept_tokens"] == 32
    assert divprune["decoder_speedup_ideal"] > 5
    assert divprune["bare_ms"]["median"] > 0
    assert fastv["bare_ms"] is None  # no bare decoder sees fewer tokens in later layers


@REST
def test_a_bench_of_clips(tmp_path, capsys):
    command = "bench prefill --tasks video --methods evs --keep 0.25 --batch-size 1 --rounds 1 --new-tokens 1 --json"
    assert main([*command.split(), str(tmp_path / "bench.json")]) == 0
    (model,) = json.loads((tmp_path / "bench.json").read_text())["models"]
    (evs,) = model["settings"]
    assert "prefill of 1 at once" in capsys.readouterr().out
    assert evs["equivalent_tokens"] == 8 * 64 / 4 + 1  # and the newline
    assert evs["decoder_speedup_ideal"] > 4
    assert evs["decode_tokens_per_s"] is None  # there is no token after the first


def test_what_a_model_refuses_is_told_and_the_rest_is_timed(tmp_path, capsys):
    specs = "--compress fastv:keep=0.5,layer=98 --compress random:keep=0.5"
    command = f"bench prefill {specs} --batch-size 1 --rounds 1 --new-tokens 1 --json"
    assert main([*command.split(), str(tmp_path / "bench.json")]) == 0
    (model,) = json.loads((tmp_path / "bench.json").read_text())["models"]
    assert [row["setting"] for row in model["settings"]] == ["random:keep=0.5"]
    (reason,) = model["untimed"].values()
    assert "98" in reason and f"not timed: {next(iter(model['untimed']))}: {reason}" in capsys.readouterr().out
