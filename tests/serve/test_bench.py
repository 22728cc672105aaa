"""`vtc bench serve` with two real engines, at its smallest; and what it says where a server does not start."""

import json
import subprocess

import pytest

pytest.importorskip("vllm")

from vtc.eval.cli import main

SMALLEST = ["--shape", "64", "--clients", "1", "--rounds", "1", "--requests", "2", "--output-tokens", "4"]


def servers() -> list[str]:
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if "api_server" in line and "vtc-bench-model" in line]


def test_both_servers_are_measured_and_stopped(tmp_path, capsys):
    assert main(["bench", "serve", *SMALLEST, "--json", str(tmp_path / "b.json")]) == 0
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


def test_a_server_that_does_not_start_is_told_with_its_log(capsys):
    assert main(["bench", "serve", *SMALLEST, "--server-arguments=--no-such-argument"]) == 2
    error = capsys.readouterr().err
    assert "ended with status 2" in error and "no-such-argument" in error and "/0.log" in error
    assert not servers()
