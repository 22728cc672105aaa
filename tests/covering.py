"""Which cells of a product are run: few in which every pair occurs, or with `pytest --all` each of them.

A test states its factors once::

    @product(family=FAMILIES, attention=ATTENTIONS, method=METHODS, where=lambda cell: ...)
    def test_something(family, attention, method): ...

`make test` runs a choice in which every pair of values that occurs in the product (`each="value"`: every value) occurs.
The choice is a function of the values and of the test's name: another name, other cells, so that several tests with the
same factors complement each other.
"""

import itertools
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pytest

Cell = Mapping[str, Any]
#: How many factors at a time all combinations occur of.
STRENGTH = {"value": 1, "pair": 2}


def product(*, each: str = "pair", where: Callable[[Cell], bool] = lambda cell: True, **factors: Iterable[Any]):
    """Parametrizes a test by the cells of a product of `factors` for which `where` is true."""
    values = [list(values) for values in factors.values()]
    cells = [dict(zip(factors, cell)) for cell in itertools.product(*values)]
    return of_cells([cell for cell in cells if where(cell)], each=each)


def of_cells(cells: Sequence[Cell], *, each: str = "pair"):
    """The same for cells that are given one by one."""
    return pytest.mark.product(list(cells), STRENGTH[each])


def combinations(cell: Cell, strength: int) -> list[tuple]:
    """What a cell covers: the values, or pairs of values, in it."""
    return list(itertools.combinations([(name, text(value)) for name, value in cell.items()], strength))


def covering(cells: Sequence[Cell], strength: int = 2, salt: str = "") -> list[int]:
    """Places of few cells in which every combination of `strength` values that occurs in `cells` occurs.

    Greedy: for each combination in turn, of the cells that have it the one with the most that are still missing; among
    equals, the one whose checksum is lowest.
    """
    covers = [combinations(cell, strength) for cell in cells]
    order = [zlib.crc32(f"{salt} {[text(value) for value in cell.values()]}".encode()) for cell in cells]
    having: dict[tuple, list[int]] = {}
    for place, covered in enumerate(covers):
        for combination in covered:
            having.setdefault(combination, []).append(place)
    missing, chosen = set(having), []
    for combination in sorted(having, key=lambda combination: len(having[combination])):  # the rarest first
        if combination in missing:
            best = max(having[combination], key=lambda place: (len(missing.intersection(covers[place])), -order[place]))
            missing.difference_update(covers[best])
            chosen.append(best)
    return sorted(chosen)


def text(value: Any) -> str:
    """What stands for a value in ids and checksums; values that differ have to differ in it."""
    return getattr(value, "__name__", None) or str(value)  # that of a function, whose address each process has its own


#: Marks what `make test` leaves out.
REST = pytest.mark.rest
#: Marks what takes long, also by waiting: it begins first, so that no process is left with it at the end.
FIRST = pytest.mark.first


# ---------------------------------------------------------------- hooks and a fixture, which conftest.py imports


@pytest.fixture
def compared(request: pytest.FixtureRequest) -> Callable[[int], Sequence[int]]:
    """Which of so many rows of a batch are run alone as well: one, by the test's name; with `--all` each of them."""
    if request.config.getoption("all"):
        return range
    place = zlib.crc32(request.node.name.encode())
    return lambda rows: [place % rows]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("products", "the contract matrix and other products of factors (tests/covering.py)")
    group.addoption("--all", action="store_true", help="every cell; without it, few with every pair")
    group.addoption("--part", type=part, metavar="K/N", help="of N parts of what --all adds, the K-th, from 0")
    group.addoption("--least", action="store_true", help="few cells with every value")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "product(cells, strength): parametrized by cells of a product, see covering.py")
    config.addinivalue_line("markers", "rest: run with --all alone")
    config.addinivalue_line("markers", "first: takes long, and begins first")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    every = metafunc.config.getoption("all") or metafunc.config.getoption("part") is not None
    least = metafunc.config.getoption("least")
    for mark in metafunc.definition.iter_markers("product"):
        cells, strength = mark.args
        strength = 1 if least else strength
        chosen = set(covering(cells, strength, metafunc.function.__name__))
        params = [
            pytest.param(*cell.values(), id="-".join(map(text, cell.values())), marks=() if place in chosen else REST)
            for place, cell in enumerate(cells)
            if every or place in chosen
        ]
        metafunc.parametrize(list(cells[0]), params)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("all"):
        part = config.getoption("part")
        kept = [rest(item) is None if part is None else is_in(item, *part) for item in items]
        config.hook.pytest_deselected(items=[item for item, own in zip(items, kept) if not own])
        items[:] = [item for item, own in zip(items, kept) if own]
    items.sort(key=lambda item: item.get_closest_marker("first") is None)


def part(text: str) -> tuple[int, int]:
    """(K, N) of a word K/N."""
    number, parts = map(int, text.split("/"))
    if not 0 <= number < parts:
        raise ValueError(f"{text}: give K/N with K from 0 to N - 1")
    return number, parts


def rest(item: pytest.Item) -> int | None:
    """A number for what `--all` alone runs, by the name of the test, so that it stays when others come or go."""
    return None if item.get_closest_marker("rest") is None else zlib.crc32(item.nodeid.encode())


def is_in(item: pytest.Item, number: int, parts: int) -> bool:
    """Whether an item is in one of so many parts of what `--all` alone runs."""
    place = rest(item)
    return place is not None and place % parts == number
