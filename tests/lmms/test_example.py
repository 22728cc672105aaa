"""examples/with_lmms_eval.py under the real lmms-eval. Run by `make test-lmms`."""

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

pytest.importorskip("lmms_eval", reason="in an environment of its own: make test-lmms")


def test_the_example_runs_lmms_eval_compressed(tmp_path):
    from example_runs import right, run

    lines = run("with_lmms_eval.py", PYTHONPATH=str(HERE / "stand_in"), HF_HOME=str(tmp_path))
    assert not any("not installed" in line for line in lines)
    expected = right("divprune:keep=0.25", 6)
    assert lines[-1] == f"divprune:keep=0.25: {expected} of 6 right, with 64 of 256 visual tokens"
