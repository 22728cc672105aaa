"""Inputs and outputs of the official implementations, against ours.

Every case of every `*.safetensors` file in VTC_GOLDEN_DIR (default: tests/golden) is compared by what it contains: the
names of its tensors say which check applies, so files with other cases, sizes and seeds run through the same checks.
None is skipped: a case that no check is for fails. Behind the run stands how many cases of each file were compared.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from golden_cases import FOLDER, Case, discovered
from golden_readers import FORMS, compare, form_of

COMPARED: Counter[str] = Counter()


@pytest.fixture(scope="module", autouse=True)
def report(request: pytest.FixtureRequest) -> Iterator[None]:
    """Says how many cases of each file were compared: a file with fewer than one expects is seen."""
    yield
    reporter = request.config.pluginmanager.getplugin("terminalreporter")
    capture = request.config.pluginmanager.getplugin("capturemanager")
    if reporter is not None and capture is not None:
        there = Counter(param.values[0].file.name for param in discovered())
        with capture.global_and_fixture_disabled():
            reporter.write_line("")
            for name, count in sorted(there.items()):
                reporter.write_line(f"golden {name}: {COMPARED[name]} of {count} cases compared and equal")


@pytest.mark.parametrize("case", discovered())
def test_golden(case: Case) -> None:
    compare(case, COMPARED)


def test_there_are_cases() -> None:
    """An empty folder, or one without such files, would pass without a single comparison."""
    assert discovered(), f"no golden files in {FOLDER}"


def test_the_default_folder_covers_every_method_of_this_release() -> None:
    default = discovered(Path(__file__).parent / "golden")
    checked = {form_of(param.values[0]).check.__name__ for param in default}
    assert {form.check.__name__ for form in FORMS} - OUTSIDE == checked


#: Forms that files elsewhere have: to keep the default folder small, it holds none of them.
OUTSIDE = {"check_every_kth", "check_packed_crops", "check_released_block"}
