"""Commands of the pages that are not run are read: each by what would read it, and what it names has to exist."""

import itertools
import json
import re
import tomllib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from code_blocks import ROOT

from vtc import spec
from vtc.eval.cli import build_parser
from vtc.eval.lmms_plugin import WRAPPERS
from vtc.eval.lmms_plugin.wrappers import _methods
from vtc.eval.recipes.recipe import recipe
from vtc.eval.tasks.benchmarks import TASKS
from vtc.eval.tasks.index import find_tasks
from vtc.method import registry
from vtc.serve import SPEC
from vtc.serve.setting import Setting

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MAKEFILE = (ROOT / "Makefile").read_text()


def read(words: Sequence[str]) -> None:
    """Read a command, whoever's it is."""
    READERS.get(Path(words[0]).name, lambda words: None)(words)


def several(value):
    """None, one or several, as the parsers of different commands leave them."""
    return () if value is None else (value,) if isinstance(value, str) else value


def read_vtc(words):
    """What the command's own parser says, and whether everything that it names exists."""
    args = vars(build_parser(words[1]).parse_args(words[1:]))
    for each in several(args.get("compress")):
        spec.parse(each)
    for each in several(args.get("methods")):
        registry.method_class(each)
    for each in several(args.get("tasks")):
        assert each in TASKS or find_tasks(each, args.get("include_path") or ())
    if words[1:3] == ["recipe", "run"]:
        recipe(words[3])


def read_make(words):
    """The targets, and the variables given, are the Makefile's."""
    for word in words[1:]:
        variable, equals, _ = word.partition("=")
        pattern = rf"^{variable}\s*\?=" if equals else rf"^{re.escape(word)}:"
        assert re.search(pattern, MAKEFILE, re.M), f"the Makefile has no {word!r}"


def read_pip(words):
    """The extras of vtc that are named exist."""
    for word in words:
        for extra in re.findall(r"[\w-]+", word.partition("[")[2].partition("]")[0]):
            assert extra in PROJECT["optional-dependencies"], f"no extra {extra!r}"


def read_python(words):
    """A file that is there, or a module of vtc; `vtc.eval` is the command."""
    if "-m" not in words:
        assert (ROOT / words[1]).is_file(), words[1]
        return
    module, *rest = words[words.index("-m") + 1 :]
    if module == "vtc.eval":
        read_vtc(["vtc", "eval", *rest])
    elif module.startswith("vtc"):
        assert find_spec(module) or find_spec(f"{module}.__main__"), module


def read_lmms_eval(words):
    """A wrapper that vtc takes the place of, with a spec that it reads as we do, and a task that lmms-eval has."""
    options = dict(itertools.pairwise(words))
    assert options["--model"] in WRAPPERS
    arguments = dict(each.split("=", 1) for each in re.split(r",(?![^{]*\})", options["--model_args"]))
    assert arguments["pretrained"] == "PATH_OR_ID"
    _methods(arguments.pop("compress", "none"), arguments)
    for each in options["--tasks"].split(","):
        assert find_tasks(each)


def read_vllm(words):
    """Its server, whose overrides hold a spec that can be served."""
    options = dict(itertools.pairwise(words))
    assert words[1] == "serve"
    Setting.of(json.loads(options["--hf-overrides"])[SPEC])


READERS = {
    "vtc": read_vtc,
    "vllm": read_vllm,
    "make": read_make,
    "pip": read_pip,
    "python": read_python,
    "accelerate": read_python,
    "torchrun": read_python,
    "lmms-eval": read_lmms_eval,
}
