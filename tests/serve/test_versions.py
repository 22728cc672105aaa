"""On an engine that was not tested, or that has a hook otherwise: one warning, and the engine as it was."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import vllm.logger
from engines import engine, folder, picture, right
from test_equal import eight, question
from vllm import ModelRegistry
from vllm.multimodal.processing import BaseMultiModalProcessor
from vllm.multimodal.processing.processor import ResolvedPromptUpdate

from vtc.serve import plugin, versions

SPEC = "divprune:keep=0.5"


@pytest.fixture
def warnings(monkeypatch):
    """What is warned of; that it is seen, the last test here shows."""
    messages = []
    logger = SimpleNamespace(warning=lambda message, *given: messages.append(message % given))
    real = vllm.logger.init_logger
    monkeypatch.setattr("vllm.logger.init_logger", lambda name: logger if name == "vllm.vtc" else real(name))
    monkeypatch.setenv("VTC_SERVE_WARNED", "")
    versions.unusable.cache_clear()
    yield messages
    versions.unusable.cache_clear()


def later_release(monkeypatch):
    monkeypatch.setattr(vllm, "__version__", "0.41.0")


def renamed_hook(monkeypatch):
    monkeypatch.setattr(ResolvedPromptUpdate, "with_details", ResolvedPromptUpdate.with_content, raising=False)
    monkeypatch.delattr(ResolvedPromptUpdate, "with_content")


def other_signature(monkeypatch):
    hashes = BaseMultiModalProcessor._get_mm_hashes
    monkeypatch.setattr(BaseMultiModalProcessor, "_get_mm_hashes", lambda self, request: hashes(self, request))


LATER = {
    later_release: "vLLM 0.41.0 was not tested",
    renamed_hook: "ResolvedPromptUpdate has no with_content",
    other_signature: "BaseMultiModalProcessor._get_mm_hashes takes self, request, not self, inputs",
}


@pytest.mark.parametrize(("play", "reason"), LATER.items(), ids=[play.__name__ for play in LATER])
def test_one_warning_and_the_engine_as_it_was(play, reason, warnings, monkeypatch):
    play(monkeypatch)
    asks = eight()[:3]
    for _ in range(2):
        with engine("llava", SPEC) as running:
            assert running.ask(asks) == [right("llava", ask, None) for ask in asks]
            assert not type(running.runner.model).__name__.startswith("Vtc")
    (told,) = warnings
    assert "this engine runs WITHOUT pruning" in told
    assert reason in told


def test_a_registry_that_looks_otherwise_is_left_alone(warnings, monkeypatch):
    before = ModelRegistry.inspect_model_cls
    monkeypatch.delattr(ModelRegistry, "_vtc")
    monkeypatch.setattr(type(ModelRegistry), "inspect_model_cls", lambda self, names, config: None)
    plugin.register()
    assert ModelRegistry.inspect_model_cls == before
    (told,) = warnings
    assert "_ModelRegistry.inspect_model_cls takes self, names, config" in told


def test_an_untested_release_with_the_same_hooks_can_be_asked_for(warnings, monkeypatch):
    later_release(monkeypatch)
    monkeypatch.setenv("VTC_SERVE_UNTESTED", "1")
    asks = eight()[:2]
    with engine("llava", SPEC) as running:
        assert running.ask(asks) == [right("llava", ask, SPEC) for ask in asks]
    assert not warnings


PROCESSES = """
import sys, vllm
vllm.__version__ = "0.41.0"
if __name__ == "__main__":
    from engines import Engine, NEW
    from test_equal import question
    from engines import picture
    from vllm import LLM
    llm = LLM(sys.argv[1], dtype="float32", enforce_eager=True, max_model_len=256, hf_overrides={"vtc": sys.argv[2]})
    print("ANSWER", Engine("llava", llm).ask([question(0, picture(1))]))
"""


def test_over_all_processes_of_an_engine(tmp_path):
    """The engine's core is a process of its own, and registers for itself."""
    script = tmp_path / "script.py"
    script.write_text(PROCESSES)
    here = os.path.dirname(__file__)
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join([os.environ["PYTHONPATH"], here]),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_LOGGING_LEVEL": "WARNING",
    }  # fmt: skip
    environment.pop("VTC_SERVE_WARNED", None)
    run = subprocess.run(
        [sys.executable, str(script), str(folder("llava")), SPEC],
        capture_output=True, text=True, env=environment, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    assert (run.stdout + run.stderr).count("WITHOUT pruning") == 1
    assert f"ANSWER [{right('llava', question(0, picture(1)), None)}]" in run.stdout
