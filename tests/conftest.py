"""Methods that only tests use: prunes whose decision does not depend on the text, so that runs can be compared."""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import ClassVar

import pytest
import torch
from covering import (  # noqa: F401
    compared,
    pytest_addoption,
    pytest_collection_modifyitems,
    pytest_configure,
    pytest_generate_tests,
)
from surroundings import settle
from torch import Tensor

from vtc.method.budget import Keep
from vtc.method.prune import Prune, Rows
from vtc.method.registry import register

settle()  # before anything here imports transformers, which looks at variables once
torch.set_num_threads(1)
collect_ignore = [] if find_spec("vllm") else ["serve"]  # `make test-serve` has an environment of its own


@pytest.fixture(scope="module", autouse=True)
def threads_as_before():
    """Commands set torch's threads; the next module gets those that were there."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def no_grad():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def loaded():
    """The bundled model for pictures."""
    from vtc.eval import models

    return models.load("embedded", None, "cpu", None)


@pytest.fixture(scope="session")
def both_tasks(tmp_path_factory):
    """The folder of a run of `two_tasks`, shared by all processes; tests leave it as it is."""
    from eval_runs import made_once, two_tasks

    from vtc.eval.cli import main

    def make(folder):
        assert main(two_tasks(folder)) == 0

    return made_once(tmp_path_factory, "both-tasks", make)


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The folder of the documentation's site, shared by all processes."""
    from eval_runs import made_once
    from site_build import build

    return made_once(tmp_path_factory, "site", build)


@pytest.fixture(scope="module")
def browser():
    """A running browser, for tests that are `NEEDED` of `chromium`."""
    from chromium import started

    with started() as running:
        yield running


@pytest.fixture(scope="module")
def two_questions(loaded):
    """Inputs of a short question and a long one."""
    from vtc.eval import embedded

    samples = [embedded.benchmark(9, "train")[index] for index in (2, 7)]
    return loaded.inputs([[sample.image] for sample in samples], [sample.question for sample in samples])


@pytest.fixture(scope="module")
def service():
    """The demo's service on the bundled model."""
    from demo_server import service_without_page

    with service_without_page() as made:
        yield made


@register("test-norm")
@dataclass
class NormPrune(Prune):
    """Keep the visual tokens with the largest hidden state; original positions."""

    keep: Keep = 0.5
    layer: int = 2
    positions: ClassVar[str] = "original"

    def schedule(self, num_layers: int) -> tuple[int, ...]:
        return (self.layer,)

    def score(self, rows: Rows, memory: dict[str, Tensor]) -> Tensor:
        return rows.hidden.float().norm(dim=-1)


@register("test-norm-packed")
@dataclass
class PackedNormPrune(NormPrune):
    """The same, numbered anew."""

    positions: ClassVar[str] = "packed"
