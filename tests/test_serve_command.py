"""`vtc serve`: what is checked, what is passed on, and what becomes of the process. The engine is pretended."""

import json
import sys

import pytest
from eval_runs import exit_code

from vtc.eval.cli import build_parser
from vtc.serve import command, versions
from vtc.serve.bench.checkpoint import make

SPEC = "divprune:keep=0.25"
PORT = ["--port", "8001", "--max-model-len", "4096"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model")
    make("64", folder)
    return str(folder)


@pytest.fixture
def started(monkeypatch) -> list[list[str]]:
    """Command lines that the process would have become, with an engine that was tested."""
    found = []
    monkeypatch.setattr(command, "engine_release", lambda: f"{next(iter(versions.TESTED))}+cpu")
    monkeypatch.setattr(command.os, "execv", lambda program, words: found.append([program, *words]))
    return found


def words_of(started: list[list[str]]) -> tuple[dict, list[str]]:
    """The overrides of the only server that was started, and all that stands behind them."""
    ((program, *words),) = started
    at = words.index("--hf-overrides")
    assert program == words[0] == sys.executable and words.count("--hf-overrides") == 1
    assert words[1:4] == ["-m", "vllm.entrypoints.openai.api_server", "--model"]
    return json.loads(words[at + 1]), words[at + 2 :]


def test_arguments_of_the_engine_are_passed_on_as_they_stand(model, started, capsys):
    given = [*PORT, "-tp", "2", "-O3", "--enable-x", "--limit-mm-per-prompt", '{"image": 1}', "--y=-1", "--z", "-2"]
    assert exit_code(["serve", model, *given[:4], "--compress", SPEC, *given[4:]]) == 0
    assert words_of(started) == ({"vtc": SPEC}, given)
    assert started[0][5] == model
    out = capsys.readouterr().out
    assert f"{SPEC} on {model} (LlavaForConditionalGeneration)" in out and "(tested: " in out
    assert "64 visual tokens, 16 are left" in out


def test_a_double_dash_may_stand_before_them(model, started):
    assert exit_code(["serve", model, "--compress", SPEC, "--", "--check", *PORT]) == 0
    assert words_of(started)[1] == ["--check", *PORT]


def test_check_starts_nothing(model, started, capsys):
    assert exit_code(["serve", model, "--compress", SPEC, "--check"]) == 0
    assert not started and SPEC in capsys.readouterr().out


def test_requests_may_be_trusted_with_a_keep(model, started):
    assert exit_code(["serve", model, "--compress", SPEC, "--trust-request-keep"]) == 0
    assert words_of(started)[1] == ["--trust-request-mm-kwargs"]


@pytest.mark.parametrize("name", ["--hf-overrides {}", "--hf_overrides {}", "--hf-overrides={}", "--hf_overrides={}"])
def test_the_readers_overrides_are_merged(name, model, started):
    words = name.format('{"a":{"b":1}}').split()
    assert exit_code(["serve", model, "--compress", SPEC, "--port", "1", *words, "--seed", "2"]) == 0
    assert words_of(started) == ({"a": {"b": 1}, "vtc": SPEC}, ["--port", "1", "--seed", "2"])


BAD = [
    ("{model}", ["--compress"]),
    ("{model} --compress dvprune", ["--compress", "did you mean 'divprune'"]),
    ("{model} --compress divprune:keep=1.5", ["--compress", "1.5"]),
    ("{model} --compress fastv", ["--compress", "between decoder layers"]),
    ("{model} --compress hiprune:object_layer=99", ["--compress", "hiprune", "99"]),
    ("{model} --compress divprune --hf-overrides {{", ["--hf-overrides", "'{'", "JSON"]),
    ("{model} --compress divprune --hf-overrides", ["--hf-overrides", "''", "JSON"]),
    ("{model} --compress divprune --hf-overrides=[1]", ["--hf-overrides", "'[1]'"]),
    ('{model} --compress divprune --hf-overrides {{"vtc":"x"}}', ["--hf-overrides", "'x'", "--compress"]),
    ("{model} --compress divprune --hf-overrides.vtc x", ["--hf-overrides.vtc", "JSON"]),
    ("{model} --compress divprune --model other", ["--model", "'other'", "first"]),
    ("{folder}/nowhere --compress divprune", ["MODEL", "nowhere", "before all other arguments"]),
    ("--port {folder}/nowhere --compress divprune", ["MODEL", "nowhere", "before all other arguments"]),
    ("{folder} --compress divprune", ["MODEL", "BertModel", "LlavaForConditionalGeneration"]),
]


@pytest.mark.parametrize(("words", "expected"), BAD, ids=[words for words, _ in BAD])
def test_what_cannot_be_served_is_refused_with_a_sentence(words, expected, model, started, tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    assert exit_code(["serve", *(word.format(model=model, folder=tmp_path) for word in words.split())]) == 2
    told = capsys.readouterr()
    assert not started and not told.out and "Traceback" not in told.err
    assert [part for part in expected if part not in told.err] == []


def test_without_an_engine_the_extra_is_named(model, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "vllm", None)
    assert exit_code(["serve", model, "--compress", SPEC]) == 2
    assert "vllm is not installed; pip install 'vtc[vllm]'" in capsys.readouterr().err


def test_an_engine_that_was_not_tested_has_to_be_asked_for(model, started, monkeypatch, capsys):
    monkeypatch.setattr(command, "engine_release", lambda: "9.9.9")
    assert exit_code(["serve", model, "--compress", SPEC]) == 2
    error = capsys.readouterr().err
    assert "9.9.9" in error and next(iter(versions.TESTED)) in error and "VTC_SERVE_UNTESTED=1" in error

    monkeypatch.setenv("VTC_SERVE_UNTESTED", "1")
    monkeypatch.setattr(versions, "unusable", lambda architecture: f"{architecture} has no hook")
    assert exit_code(["serve", model, "--compress", SPEC]) == 2
    assert "LlavaForConditionalGeneration has no hook" in capsys.readouterr().err and not started

    monkeypatch.setattr(versions, "unusable", lambda architecture: None)
    assert exit_code(["serve", model, "--compress", SPEC]) == 0
    assert "vLLM 9.9.9 (not tested: never seen)" in capsys.readouterr().out and len(started) == 1


def test_an_engine_that_is_told_to_leave_vtc_out_is_refused(model, started, monkeypatch, capsys):
    monkeypatch.setenv("VLLM_PLUGINS", "other")
    assert exit_code(["serve", model, "--compress", SPEC]) == 2
    assert "VLLM_PLUGINS='other'" in capsys.readouterr().err and not started
    monkeypatch.setenv("VLLM_PLUGINS", "other,vtc")
    assert exit_code(["serve", model, "--compress", SPEC]) == 0


def test_other_commands_still_refuse_what_they_do_not_know(capsys):
    assert exit_code(["methods", "--port", "8001"]) == 2
    assert "unrecognized arguments: --port 8001" in capsys.readouterr().err
    assert not hasattr(build_parser("methods").parse_args(["methods"]), "passed_on")
