"""Every code block of README, CONTRIBUTING and documentation does what it says (`code_blocks.py` tells how)."""

import os
import re
import shlex
import tomllib
from pathlib import Path

import code_blocks
import pytest
from code_blocks import GIVEN, METHODS, PAGES, ROOT, SKIPPED, document, every_command
from code_place import build, given
from covering import REST
from eval_runs import made_once
from video_files import needs_ffmpeg

import vtc
from vtc import spec
from vtc.eval.cli import build_parser, main
from vtc.eval.lmms_plugin import WRAPPERS
from vtc.eval.lmms_plugin.wrappers import _methods
from vtc.eval.recipes.recipe import recipe
from vtc.eval.tasks.benchmarks import TASKS
from vtc.eval.tasks.index import find_tasks
from vtc.method import registry

COMMANDS = every_command()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MAKEFILE = (ROOT / "Makefile").read_text()
#: What takes longer than ten seconds, or is much like what is run anyway: run with --all.
LONG = (r"vtc doctor --model", r"vtc eval .*--tokens", r"vtc recipe run", r"vtc bench")


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def is_rest(command: code_blocks.Command) -> bool:
    pages_of_methods = command.page.startswith("docs/methods/") and not command.page.endswith("/divprune.md")
    return pages_of_methods or any(re.match(pattern, command.text) for pattern in LONG)


def cases(commands):
    return [
        pytest.param(each, id=f"{each.page}:{each.line}", marks=REST if is_rest(each) else ())
        for each in commands
    ]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return made_once(tmp_path_factory, "code-blocks", build)


@pytest.fixture
def here(place, tmp_path, monkeypatch):
    """A folder of this test's own that holds what pages name."""
    for entry in place.iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    (tmp_path / "runs").unlink()
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "first").symlink_to(place / "runs" / "first")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def registered():
    """Methods that a page registers are forgotten behind it."""
    before = dict(registry._registered)
    yield
    registry._registered.clear()
    registry._registered.update(before)


PROSE = [page for page in PAGES if page.parent != METHODS]


@needs_ffmpeg
@pytest.mark.parametrize("page", PROSE, ids=name)
def test_blocks_of_a_page_run_in_turn(page, here, registered):
    examples = list(document(page))
    if examples:
        examples[0].namespace.update(given())
    for example in examples:
        example.evaluate()


@pytest.mark.parametrize("page", sorted(METHODS.glob("*.md")), ids=name)
def test_blocks_of_a_methods_page_work_or_say_why_not(page, bundled, registered):
    ...


@needs_ffmpeg
@pytest.mark.parametrize("command", cases(each for each in COMMANDS if each.why_read_only is None))
def test_a_command_runs(command, here, capsys):
    words = [file for word in command.words(shorter=True) for file in (sorted(map(str, here.glob(word))) if "*" in word else [word])]
    code = main(words[1:])
    assert code == 0, capsys.readouterr().err
