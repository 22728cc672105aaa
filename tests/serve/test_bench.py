"""`vtc bench serve` with two real engines, at its smallest."""

import json
import subprocess

import pytest

from vtc.eval.cli import main

SMALLEST = ["--shape", "64", "--clients", "1", "--rounds", "1", "--requests", "2", "--output-tokens", "4"]
#: One process less for each engine, and so less to wait for.
FEWER = "--distributed-executor-backend uni --max-model-len 256"


def servers() -> list[str]:
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if "api_server" in line and "vtc-bench-model" in line]


def test_both_servers_are_measured_and_stopped(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # else the engine has its worker in a process of its own
    words = [*SMALLEST, "--server-arguments", FEWER, "--json", str(tmp_path / "b.json")]
    assert main(["bench", "serve", *words]) == 0
    told = capsys.readouterr()
    found = json.loads((tmp_path / "b.json").read_text())
    stock, pruned = found["results"]
    assert (stock["setting"], pruned["setting"]) == ("none", "divprune:keep=0.25")
    assert stock["prompt_tokens"] - pruned["prompt_tokens"] == 64 - 16
    assert all(each["output_tokens"] == 4 and each["requests"] == 2 for each in found["results"])
    assert all(each[key]["median"] > 0 for each in found["results"] for key in ("first_token_ms", "token_ms"))
    ratio = pruned["requests_per_s"]["median"] / stock["requests_per_s"]["median"]
    assert pruned["requests_speedup"]["median"] == pytest.approx(ratio)
    assert "| 1       | divprune:keep=0.25 | 43 " in told.out and not servers()
