"""Inputs and outputs of the official implementations, against ours.

Every case of every `*.safetensors` file in VTC_GOLDEN_DIR (default: tests/golden) is compared by what it contains: the
names of its tensors say which check applies, so files with other cases, sizes and seeds run through the same checks.
"""

import os

import golden_holitom
import golden_inner
import golden_merging
import golden_prunes
import golden_reducers
import golden_selectors
import golden_ssm
import pytest
from golden_cases import Case, discovered

MODULES = (
    golden_selectors, golden_prunes, golden_inner, golden_holitom, golden_ssm, golden_reducers, golden_merging,
)  # fmt: skip
CHECKS = [check for module in MODULES for check in module.CHECKS]


@pytest.mark.parametrize("case", discovered())
def test_golden(case: Case) -> None:
    for applies, check in CHECKS:
        if applies(case):
            check(case)
            return
    pytest.skip(f"no method of this release has a check for {', '.join(sorted(case.tensors))[:100]}")


def test_the_default_folder_covers_every_method_of_this_release() -> None:
    if "VTC_GOLDEN_DIR" in os.environ:
        pytest.skip("another folder was asked for")
    checked = {check.__name__ for param in discovered() for applies, check in CHECKS if applies(param.values[0])}
    assert {check.__name__ for _, check in CHECKS} == checked
