"""What commands import, and nothing besides: a newcomer waits for every import of `vtc ask`."""

import gc
import subprocess
import sys

import pytest
from covering import REST

from vtc.eval.cli.importing import importing

#: What no command below needs -> what it is there for. scipy is not among them: transformers imports it where it is
#: installed, for the losses of detectors.
UNNEEDED = {
    "datasets": "reads data sets of the hub",
    "sklearn": "carries pictures and digits, which are read as files",
    "skimage": "carries pictures, which are read as files",
    "pandas": "comes with those that are named here",
    "pyarrow": "comes with datasets and pandas",
    "matplotlib": "draws figures of runs; carries fonts and a picture, which are read as files",
    "gradio": "is the demo's page",
    "fastapi": "serves it",
    "decord": "reads video files",
    "torchvision": "is what some processors resize with; the bundled ones do without",
    "ray": "spreads a sweep over machines",
    "lmms_eval": "is run by itself",
    "peft": "is for adapters",
    "IPython": "is for notebooks",
    "pytest": "is for tests",
}
DRAWS = {"matplotlib"}
RAN = """
import sys
from vtc.eval.cli import main

status = main(sys.argv[1:])
print(*sorted(name for name in sys.modules if "." not in name), file=sys.stderr)
sys.exit(status)
"""


@pytest.mark.parametrize(
    ("command", "needed"),
    [
        ("ask --example images/5 --out {tmp}/kept.png", set()),
        pytest.param("ask --example video/0 --out {tmp}/kept.png", set(), marks=REST),
        pytest.param("doctor --model embedded --attn eager", set(), marks=REST),
        pytest.param("eval --methods stride --keep 16 --limit 1 --output {tmp}/run", DRAWS, marks=REST),
    ],
    ids=["ask about a picture", "ask about a video", "doctor", "eval"],
)
def test_a_command_imports_nothing_that_it_does_not_need(command, needed, tmp_path):
    words = [word.format(tmp=tmp_path) for word in command.split()]
    done = subprocess.run([sys.executable, "-c", RAN, *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    imported = set(done.stderr.splitlines()[-1].split())
    assert {"torch", "transformers"} <= imported
    assert {name: UNNEEDED[name] for name in imported & (set(UNNEEDED) - needed)} == {}


def test_nothing_is_collected_while_modules_are_imported():
    with importing():
        assert not gc.isenabled()
    assert gc.isenabled()
    gc.disable()
    try:
        with importing():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
    with pytest.raises(ImportError), importing():
        import vtc.no_such_module  # noqa: F401
    assert gc.isenabled()
