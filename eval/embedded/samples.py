"""The questions of a split as a lazy sequence."""

from __future__ import annotations

import operator
import zlib
from collections.abc import Callable, Sequence
from typing import TypeVar, overload

import numpy as np
from PIL import Image

from .assets import check_split
from .questions import ask
from .render import render
from .sample import GROUPS, SPLITS, Sample
from .scenes import draw_scene


def generator(split: str, seed: int, index: int, purpose: str = "benchmark") -> np.random.Generator:
    """The random generator of one picture; different splits, seeds, indices and purposes never share a stream."""
    return np.random.default_rng([SPLITS.index(split), zlib.crc32(purpose.encode()), seed, index])


def make_sample(split: str, seed: int, index: int) -> Sample:
    """Makes question number `index`: draws scenes until one allows a question of the group whose turn it is."""
    rng = generator(split, seed, index)
    group = GROUPS[index % len(GROUPS)]
    while True:
        scene = draw_scene(rng, split)
        asked = ask(scene, group, rng)
        if asked is not None:
            image = Image.fromarray(render(scene))
            return Sample(f"{split}-{seed}-{index}", image, asked.question, asked.answer, group, asked.choices)


S = TypeVar("S")


class Benchmark(Sequence[S]):
    """The first `n` questions of a split, each made when it is looked at, by `make(split, seed, index)`."""

    def __init__(self, n: int, split: str, seed: int, make: Callable[[str, int, int], S]) -> None:
        check_split(split)
        for name, value in (("n", n), ("seed", seed)):
            if isinstance(value, bool) or not isinstance(value, int | np.integer):
                raise TypeError(f"{name}={value!r} must be an int, not {type(value).__name__}")
            if value < 0:
                raise ValueError(f"{name}={value} must not be negative")
        self.n, self.split, self.seed, self.make = int(n), split, int(seed), make

    def __len__(self) -> int:
        return self.n

    @overload
    def __getitem__(self, index: int) -> S: ...

    @overload
    def __getitem__(self, index: slice) -> list[S]: ...

    def __getitem__(self, index: int | slice) -> S | list[S]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.n))]
        i = operator.index(index)
        if not -self.n <= i < self.n:
            raise IndexError(f"index={index} is outside of the {self.n} questions")
        return self.make(self.split, self.seed, i % self.n)

    def __repr__(self) -> str:
        return f"Benchmark(n={self.n}, split={self.split!r}, seed={self.seed})"
