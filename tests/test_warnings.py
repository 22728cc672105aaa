"""vtc causes no warning of transformers: no name that a release calls old is used, in calls or on outputs."""

import logging
import warnings
from collections.abc import Callable
from contextlib import contextmanager

import pytest
import torch
from contract import FAMILIES, batch, greedy, spec_of
from covering import product
from transformers.utils import logging as library

import vtc
from vtc.eval.cli import main

METHODS = ("divprune", "hiprune", "fastv", "transprune", "lazyllm", "tome", "spatten")


@contextmanager
def overheard():
    """What is said by warnings and by the library's loggers, also what they say once in a process."""
    said: list[str] = []
    listening = logging.Handler()
    listening.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    for once in (library.warning_once, library.info_once):
        if hasattr(once, "cache_clear"):
            once.cache_clear()
    logger = logging.getLogger("transformers")
    logger.addHandler(listening)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield said
        finally:
            logger.removeHandler(listening)
            said += [str(warning.message) for warning in caught]


def said_by(run: Callable[[], object]) -> set[str]:
    with overheard() as said, torch.no_grad():
        run()
    return set(said)


@product(family=FAMILIES, method=METHODS, each="value")
def test_a_patch_adds_no_warning(family, method):
    model, inputs = batch(family)

    def run():
        greedy(model, inputs, 3)
        model(**inputs, output_hidden_states=True)

    before = said_by(run)
    with vtc.patched(model, spec_of(method, family)):
        assert said_by(run) <= before


@pytest.mark.parametrize(
    "command",
    [
        ["ask", "--example", "images/5", "--compress", "divprune:keep=0.5+fastv:layer=2"],
        ["ask", "--example", "videos/1", "--compress", "holitom:keep=0.25"],
        ["bench", "prefill", "--methods", "divprune,fastv", "--keep", "0.25", "--rounds", "1"],
    ],
)
def test_a_command_causes_none(command, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # answers leave a picture
    said = said_by(lambda: main(command))
    assert not [text for text in said if "deprecat" in text.lower() or "removed in" in text]


def test_what_is_said_is_heard():
    with overheard() as said:
        library.get_logger("transformers.models").warning_once("`old` is deprecated")
        warnings.warn("`older` will be removed in version 9", FutureWarning, stacklevel=1)
    assert said == ["`old` is deprecated", "`older` will be removed in version 9"]
