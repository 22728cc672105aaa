"""The choice of cells that `make test` runs, by brute force, and what `--all`, `--part` and `--least` make of it."""

import os
import subprocess
import sys
from itertools import combinations, product
from pathlib import Path

import pytest
import test_contract
from contract import ATTENTIONS, EVERY, FAMILIES, METHODS, MORE, takes
from covering import covering
from families import SCENARIOS


def cells_of(test):
    (mark,) = (mark for mark in test.pytestmark if mark.name == "product")
    return mark.args[0]


def subsets(cells, strength):
    """Every choice of `strength` factors with every combination of values that some cell has."""
    return {
        (names, tuple(cell[name] for name in names)) for cell in cells for names in combinations(cells[0], strength)
    }


TESTS = [value for name, value in vars(test_contract).items() if name.startswith("test_")]
MADE_UP = [
    [dict(zip("abcd", cell)) for cell in product(range(3), range(4), "uvw", [None, True])],
    [dict(zip("ab", cell)) for cell in product(range(3), range(5)) if cell[0] != cell[1]],
    [{"a": 1}, {"a": 2}, {"a": 1}],
    [{"a": 1, "b": 2, "c": 3}],
]


@pytest.mark.parametrize("strength", [1, 2])
@pytest.mark.parametrize(
    "cells", [*(cells_of(test) for test in TESTS), *MADE_UP], ids=[*(t.__name__ for t in TESTS), *map(len, MADE_UP)]
)
def test_every_combination_that_occurs_is_chosen(cells, strength):
    chosen = covering(cells, strength, "salt")
    assert chosen == sorted(set(chosen))
    assert subsets([cells[place] for place in chosen], strength) == subsets(cells, strength)
    most = max(map(len, group_sizes(cells, strength).values()), default=0)
    assert len(chosen) <= 1.2 * most + 5  # few


def group_sizes(cells, strength):
    """The combinations of values, by the factors whose they are: the largest group is a bound from below."""
    groups: dict[tuple, set] = {}
    for names, values in subsets(cells, strength):
        groups.setdefault(names, set()).add(values)
    return groups


def test_the_matrix_holds_every_method_family_attention_and_scenario():
    cells = cells_of(test_contract.test_rows_equal_their_own_run)
    own = [name for name in FAMILIES if EVERY[name].flash and not EVERY[name].needs_4d_mask]
    pairs = [family for family, method in product(FAMILIES, METHODS) if takes(family, method)]
    assert len(cells) == len(SCENARIOS) * sum(2 + (family in own) for family in pairs)
    assert {(cell["family"], cell["attention"]) for cell in cells} == {
        *product(FAMILIES, [name for name in ATTENTIONS if "flash" not in name]),
        *product(own, [name for name in ATTENTIONS if "flash" in name]),
    }
    more = cells_of(test_contract.test_more_families_work_or_say_why_not)
    assert {(cell["family"], cell["method"]) for cell in more} == set(product(MORE, METHODS))


def test_another_salt_is_another_choice():
    cells = cells_of(test_contract.test_rows_equal_their_own_run)
    one, other = (set(covering(cells, 2, salt)) for salt in ("one", "other"))
    assert len(one & other) < 0.5 * len(one)


PROBE = """
import pytest
from covering import product

@product(a=range(6), b=range(5), c=range(4))
def test_pairs(a, b, c):
    pass

@product(a=range(6), b=range(5), c=range(4), each="value")
def test_values(a, b, c):
    pass

@pytest.mark.parametrize("size", [1, pytest.param(1000, marks=pytest.mark.rest)])
def test_sizes(size):
    pass

def test_alone():
    pass
"""


@pytest.fixture(scope="module")
def chosen(tmp_path_factory):
    """The tests that pytest collects, by options and the seed of Python's hashes."""
    folder = tmp_path_factory.mktemp("probe")
    (folder / "test_probe.py").write_text(PROBE)

    def collect(options="", seed=0):
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-c",
            os.devnull,
            "-p",
            "covering",
            "--collect-only",
            "-q",
            "--strict-markers",
        ]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "PYTHONHASHSEED": str(seed)}
        environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        done = subprocess.run(
            [*command, *options.split(), "--rootdir", ".", "."],
            cwd=folder, env=environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        return [line for line in done.stdout.splitlines() if "::" in line]

    return collect


def test_pytest_collects_few_or_all_or_a_part(chosen):
    few, every, parts = chosen(), chosen("--all"), [chosen(f"--part {number}/3") for number in range(3)]
    assert chosen(seed=1) == few
    assert len(every) == 6 * 5 * 4 * 2 + 3 == len(set(every))
    assert 30 <= sum("pairs" in test for test in few) <= 40 and sum("values" in test for test in few) <= 10
    assert {"test_probe.py::test_alone", "test_probe.py::test_sizes[1]"} <= set(few) <= set(every)
    assert "test_probe.py::test_sizes[1000]" in set(every) - set(few)
    assert sorted(test for part in parts for test in part) == sorted(set(every) - set(few))
    assert all(len(part) > 0.25 * (len(every) - len(few)) for part in parts)


def test_least_is_every_value(chosen):
    least, every = chosen("--least"), chosen("--all")
    assert set(least) <= set(every)
    assert sum("pairs" in test for test in least) <= 10 and "test_probe.py::test_alone" in least
    words = {word for test in every if "pairs" in test for word in test.partition("[")[2].rstrip("]").split("-")}
    assert words == {w for test in least if "pairs" in test for w in test.partition("[")[2].rstrip("]").split("-")}
