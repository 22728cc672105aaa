"""The package as a whole: light, quiet, and what the README says."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from contract import EVERY, FAMILIES, model_of
from covering import REST
from families import scenario

import vtc
from vtc.method.registry import shipped

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


#: One process imports one thing after the other, and says after each what is there that was not there before.
IMPORTS = """
import sys
def tell():
    global before
    print(*sorted(set(sys.modules) - before), sep=",")
    before = set(sys.modules)
before = set(sys.modules)
import vtc.presets; vtc.presets.presets(); tell()
import torch; before = set(sys.modules)
import vtc; vtc.preset("divprune/llava-1.5/0.098"); tell()
import transformers; before = set(sys.modules)
import vtc.adapters.llava_package; tell()
"""


@pytest.fixture(scope="module")
def imported() -> dict[str, set[str]]:
    """What comes with the list of presets, with the package and a preset, and with the adapter of the llava package."""
    done = subprocess.run([sys.executable, "-W", "error", "-c", IMPORTS], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return dict(zip(("presets", "vtc", "llava"), (set(line.split(",")) for line in done.stdout.splitlines())))


def test_importing_is_quiet_and_brings_nothing_optional(imported):
    assert "vtc.spec" in imported["vtc"]
    new = {name.split(".")[0] for name in imported["presets"] | imported["vtc"]}
    assert not new & {"matplotlib", "sklearn", "skimage", "tqdm", "PIL", "accelerate"}


def test_a_preset_imports_no_transformers_and_the_list_no_torch(imported):
    assert "vtc.presets" in imported["presets"] and "torch" not in imported["presets"]
    assert not any(name.split(".")[0] == "transformers" for name in imported["presets"] | imported["vtc"])


def test_the_adapter_of_the_llava_package_does_not_import_it(imported):
    assert "vtc.adapters.llava_package" in imported["llava"]
    assert not any(name.split(".")[0] == "llava" for name in imported["llava"])


def test_every_public_name_is_there():
    assert all(getattr(vtc, name) is not None for name in vtc.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = vtc.nonsense
    importlib.import_module("vtc.tracing")  # a module must not take the place of the function
    assert callable(vtc.trace)


def test_the_readme_and_the_index_of_methods_list_what_there_is():
    """The index, which `vtc pages` writes, and the README's rows of methods have every method, and none that is not."""
    index = (ROOT / "docs" / "methods" / "README.md").read_text()
    assert all(f"[`{name}`]({name}.md)" in index for name in shipped())
    rows = [line for line in README.splitlines() if "(docs/methods/README.md)" in line and line.startswith("|")]
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert sorted(named) == sorted(shipped()) and f"{len(named)} methods" in README


def test_the_page_of_families_has_those_of_the_matrix_and_the_readme_is_short():
    page = (ROOT / "docs" / "families.md").read_text()
    assert all(f"`{family}`" in page for family in FAMILIES)
    assert len(README.splitlines()) <= 150


def test_the_twelve_lines_of_the_readme_run(capsys):
    code = re.search(r"## Twelve lines\n\n```python\n(.*?)```", README, re.S).group(1)
    exec(compile(code, "README.md", "exec"), {})
    assert "divprune:keep=0.25: 256 -> 64 visual tokens" in capsys.readouterr().out


@REST
def test_torch_compile_gives_the_same_logits():
    model = model_of("llava")
    inputs = EVERY["llava"].inputs(model, scenario(EVERY["llava"], "ragged"))
    with torch.no_grad(), vtc.patched(model, "divprune:keep=0.5+fastv:layer=2"):
        expected = model(**inputs).logits
        compiled = torch.compile(model, backend="eager")
        torch.testing.assert_close(compiled(**inputs).logits, expected, atol=1e-4, rtol=1e-4)
        assert vtc.trace(model).tokens_per_layer[-1].tolist() == [4, 4, 4]
    torch._dynamo.reset()
