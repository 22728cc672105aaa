"""With nothing but what vtc itself asks for, every command works or says in a sentence which extra to install."""

import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from vtc.eval.bench.command import BENCHES
from vtc.eval.cli import COMMANDS
from vtc.eval.cli.extras import EXTRAS, way_to

PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]

#: What each command is asked for here; {folder} is an empty folder, {run} one of a run.
ASKED = {
    "eval": "--limit 1 --methods none --output {folder}/eval",
    "sweep": "--limit 1 --methods none --keep 0.5 --output {folder}/sweep",
    "report": "{run} --output {folder}/report.html",
    "compare": "{run}",
    "recipe": "list",
    "tasks": "",
    "ask": "--example images/5",
    "demo": "--port 0",
    "serve": "llava --compress divprune",
    "bench prefill": "--shape tiny --methods divprune --keep 0.5 --rounds 1 --new-tokens 1",
    "bench select": "--methods divprune --tokens 16 --rounds 1",
    "bench kernels": "--ops compact --rounds 1",
    "bench decode": "--methods divprune --rounds 1 --steps 1 --backend eager",
    "bench serve": "",
    "doctor": "",
    "solve": "--compress divprune --target tokens=64 --text-tokens 30",
    "methods": "",
    "presets": "",
    "pages": "--output {folder}/pages",
    "train-embedded": "--output {folder}/embedded",
    "train-clips": "--output {folder}/clips",
    "train-atp": "--output {folder}/atp",
    "train-diffrate": "--output {folder}/diffrate",
    "train-compressed": "--output {folder}/compressed",
}

#: Runs all commands in one process in which packages of extras can't be imported or found.
SCRIPT = """
import contextlib, importlib.metadata, io, json, sys, traceback

asked, hidden = json.loads(sys.argv[1]), set(json.loads(sys.argv[2]))

class Hides:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name.partition(".")[0] in hidden else find(name, package)
sys.meta_path.insert(0, Hides())

from vtc.eval.cli import main
from vtc.eval.doctor import tiny
tiny.TINY = {"llava": tiny.TINY["llava"]}
found = {}
for command, words in asked.items():
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            status = main([*command.split(), *words.split()])
        except SystemExit as stop:
            status = stop.code
        except BaseException:
            status = traceback.format_exc()
    found[command] = [status, said.getvalue()[-2000:]]
print(json.dumps(found))
"""


def base() -> set[str]:
    """Distributions that vtc needs, and what those need, as they are installed here."""
    found, left = set(), [Requirement(text) for text in PROJECT["dependencies"]]
    while left:
        need = left.pop()
        name = re.sub(r"[-_.]+", "-", need.name).lower()
        if name in found or (need.marker and not need.marker.evaluate({"extra": ""})):
            continue
        try:
            left += [Requirement(text) for text in requires(name) or ()]
        except PackageNotFoundError:
            continue
        found.add(name)
    return found


def of_extras() -> set[str]:
    """Names of packages that are installed here, and not by vtc's own needs."""
    kept = {*base(), "vtc", "pip", "setuptools"}
    return {
        package
        for package, names in packages_distributions().items()
        if package.isidentifier() and not {re.sub(r"[-_.]+", "-", name).lower() for name in names} & kept
    }


@pytest.fixture(scope="module")
def told(tmp_path_factory, both_tasks) -> dict[str, tuple]:
    """Command -> its exit status, or a traceback, and what it said."""
    folder = tmp_path_factory.mktemp("empty")
    asked = json.dumps({command: words.format(folder=folder, run=both_tasks) for command, words in ASKED.items()})
    command = [sys.executable, "-c", SCRIPT, asked, json.dumps(sorted(of_extras()))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_the_packages_of_extras_are_known_and_hidden():
    hidden = of_extras()
    assert {"PIL", "matplotlib", "sklearn", "skimage", "pytest", "ray", "gradio", "decord"} <= hidden
    assert not {"torch", "transformers", "numpy", "packaging", "vtc"} & hidden


@pytest.mark.parametrize("command", [*(name for name in COMMANDS if name != "bench"), *(f"bench {b}" for b in BENCHES)])
def test_a_command_works_or_names_its_extra(told, command):
    status, said = told[command]
    assert status in (0, 2), status
    if status == 2:
        (extra,) = re.findall(r"pip install [\"']vtc\[(\w+)\][\"']", said)
        assert extra in PROJECT["optional-dependencies"], said
        assert f"vtc {command.partition(' ')[0]}: error: " in said


@pytest.mark.parametrize("command", ["doctor", "methods", "presets", "solve", "bench kernels"])
def test_what_needs_no_extra_works_without(told, command):
    assert told[command][0] == 0, told[command]


def test_what_is_named_is_what_the_extra_brings():
    """The table of packages agrees with pyproject.toml, which names distributions."""
    other = {"pillow": "PIL", "scikit-image": "skimage", "scikit-learn": "sklearn", "decord2": "decord"}
    other["qwen-vl-utils"] = "qwen_vl_utils"
    for package, extra in EXTRAS.items():
        brought = {Requirement(text).name for text in PROJECT["optional-dependencies"][extra]}
        assert package in {other.get(name, name) for name in brought}


def test_a_package_that_is_no_extra_is_a_fault_and_shown_as_one():
    assert way_to(ModuleNotFoundError("No module named 'vtc.nonsense'", name="vtc.nonsense")) is None
    assert way_to(ModuleNotFoundError("No module named 'PIL'", name="PIL.Image")) == (
        "PIL is not installed; pip install 'vtc[eval]'"
    )
