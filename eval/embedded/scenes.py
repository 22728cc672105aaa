"""Scenes as data: a few small things on a background, drawn from a random generator."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import assets

SIZE = 224  # pixels
PATCH = 14  # pixels
GRID = SIZE // PATCH

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 25, 30),
    "orange": (250, 135, 10),
    "yellow": (245, 225, 40),
    "green": (30, 150, 50),
    "cyan": (60, 215, 225),
    "blue": (30, 60, 215),
    "purple": (125, 35, 160),
    "pink": (255, 150, 195),
}
SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "star", "cross", "ring")
KINDS: tuple[str, ...] = (*SHAPES, "card", "sign")
WORDS: tuple[str, ...] = (
    "bus",
    "cat",
    "dog",
    "exit",
    "fish",
    "hot",
    "jam",
    "key",
    "map",
    "milk",
    "open",
    "pizza",
    "sun",
    "taxi",
    "wood",
    "zoo",
)
BACKGROUNDS: tuple[str, ...] = ("photo", "clouds", "stripes", "dots", "plain")
MOST = 6  # things in one scene


@dataclass(frozen=True)
class Thing:
    """A coloured shape, a card with a handwritten digit, or a sign with a word.

    Attributes:
        kind: One of `KINDS`.
        colour: A key of `COLOURS`.
        x: Centre, pixels from the left.
        y: Centre, pixels from the top.
        width: Pixels.
        height: Pixels.
        content: Digit of a card or word of a sign; empty for a shape.
        look: Which digit sample (index in `load_digits`), or font and word look of the split, draws it; 0 for a shape.
        tint: Colour shift per channel, grey levels.
    """

    kind: str
    colour: str
    x: int
    y: int
    width: int
    height: int
    content: str = ""
    look: int = 0
    tint: tuple[int, int, int] = (0, 0, 0)


@dataclass(frozen=True)
class Scene:
    """Things on a background; `texture` seeds the background's pixels."""

    split: str
    background: str
    texture: int
    things: tuple[Thing, ...]


def _measure(kind: str, rng: np.random.Generator) -> tuple[int, int]:
    if kind == "sign":
        return int(rng.integers(44, 51)), int(rng.integers(19, 23))
    if kind == "card":
        side = int(rng.integers(30, 36))
        return side, side
    side = int(rng.integers(22, 33))
    return side, side


def _place(width: int, height: int, taken: list[Thing], rng: np.random.Generator) -> tuple[int, int] | None:
    for _ in range(30):
        x = int(rng.integers(width // 2 + 2, SIZE - width // 2 - 2))
        y = int(rng.integers(height // 2 + 2, SIZE - height // 2 - 2))
        if all(abs(x - t.x) > (width + t.width) / 2 + 4 or abs(y - t.y) > (height + t.height) / 2 + 4 for t in taken):
            return x, y
    return None


def _kinds_and_colours(rng: np.random.Generator) -> list[tuple[str, str]]:
    """Draws what is in the scene; half of the scenes repeat a shape or a colour, so that counting has work to do."""
    shapes = int(rng.integers(2, 5))
    kinds = [SHAPES[i] for i in rng.integers(len(SHAPES), size=shapes)]
    kinds += ["card"] * int(rng.choice(3, p=(0.3, 0.5, 0.2)))
    kinds += ["sign"] * int(rng.choice(3, p=(0.3, 0.5, 0.2)))
    kinds = kinds[:MOST]
    colours = [list(COLOURS)[i] for i in rng.integers(len(COLOURS), size=len(kinds))]
    if rng.random() < 0.6:
        repeats = int(rng.integers(2, 5))
        if rng.random() < 0.5:
            kinds[:repeats] = [kinds[0]] * min(repeats, len(kinds))
        else:
            order = rng.permutation(len(kinds))[:repeats]
            for i in order:
                colours[i] = colours[order[0]]
    return list(zip(kinds, colours, strict=True))


def _content(kind: str, split: str, rng: np.random.Generator) -> tuple[str, int]:
    if kind == "card":
        digit = int(rng.integers(10))
        return str(digit), int(rng.choice(assets.digit_indices(split)[digit]))
    if kind == "sign":
        return WORDS[rng.integers(len(WORDS))], int(
            rng.integers(len(assets.FONTS[split]) * len(assets.WORD_LOOKS[split]))
        )
    return "", 0


def _crowd(rng: np.random.Generator) -> list[tuple[str, str]]:
    kinds = rng.choice((*SHAPES, "card", "sign"), size=11, p=(*[0.05] * len(SHAPES), 0.35, 0.35))
    return [(str(kind), list(COLOURS)[rng.integers(len(COLOURS))]) for kind in kinds]


def draw_scene(rng: np.random.Generator, split: str, crowded: bool = False) -> Scene:
    """Draws one scene from the things that a split owns.

    Args:
        rng: Source of every choice.
        split: One of `SPLITS`.
        crowded: About ten things, mostly cards and signs, instead of 2 to `MOST`: pictures to teach the tower with.

    Returns:
        A scene whose things do not overlap.
    """
    things: list[Thing] = []
    for kind, colour in _crowd(rng) if crowded else _kinds_and_colours(rng):
        width, height = _measure(kind, rng)
        place = _place(width, height, things, rng)
        if place is None:
            continue
        content, look = _content(kind, split, rng)
        tint = tuple(int(v) for v in rng.integers(-14, 15, size=3))
        things.append(Thing(kind, colour, *place, width, height, content, look, tint))  # type: ignore[arg-type]
    background = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
    return Scene(split, background, int(rng.integers(2**31)), tuple(things))
