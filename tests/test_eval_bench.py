"""`vtc bench prefill`: what it reports hangs together."""

import json

import pytest
import torch

from vtc.eval.cli import main


@pytest.fixture(scope="module", autouse=True)
def threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_figures_of_a_bench_hang_together(tmp_path, capsys):
    command = "bench prefill --methods divprune,fastv --keep 0.125 --batch-size 2 --rounds 1 --json"
    assert main([*command.split(), str(tmp_path / "bench.json")]) == 0
    divprune, fastv = json.loads((tmp_path / "bench.json").read_text())["settings"]
    out = capsys.readouterr().out
    for row in (divprune, fastv):
        assert row["setting"] in out
        assert row["attained"]["median"] == row["decoder_speedup"]["median"] / row["decoder_speedup_ideal"]
        assert row["selection_share"]["median"] == row["selection_ms"]["median"] / row["decoder_ms"]["median"]
        assert row["decoder_ms"]["median"] < row["prefill_ms"]["median"]
    assert divprune["equivalent_tokens"] == 32
    assert divprune["decoder_speedup_ideal"] > 5
    assert divprune["bare_ms"]["median"] > 0
    assert fastv["bare_ms"] is None  # no bare decoder sees fewer tokens in later layers


def test_a_bench_of_clips(tmp_path, capsys):
    command = "bench prefill --tasks video --methods evs --keep 0.25 --batch-size 1 --rounds 1 --json"
    assert main([*command.split(), str(tmp_path / "bench.json")]) == 0
    (evs,) = json.loads((tmp_path / "bench.json").read_text())["settings"]
    assert "prefill of 1 clips, model embedded" in capsys.readouterr().out
    assert evs["equivalent_tokens"] == 8 * 64 / 4 + 1  # and the newline
    assert evs["decoder_speedup_ideal"] > 4
