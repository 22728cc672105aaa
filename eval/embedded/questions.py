"""Questions about a scene, one function per group.

Every function returns None when the scene doesn't allow such a question. Answers are drawn first and the question
is made to fit, so that no group can be answered well without looking.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .sample import GROUPS
from .scenes import BACKGROUNDS, COLOURS, KINDS, PATCH, SHAPES, SIZE, Scene, Thing

LETTERS = ("A", "B", "C", "D")
CORNERS = ("top left", "top right", "bottom left", "bottom right")
# Scenes with three of a kind are rarer; these weights make the answers about equally frequent.
_COUNT_WEIGHTS = {1: 1.0, 2: 1.8, 3: 5.0}
RELATIONS = ("left", "right", "above", "below")


class Asked(NamedTuple):
    """A question, its answer, and the options of the choice group."""

    question: str
    answer: str
    choices: tuple[str, ...] | None = None


def plural(kind: str) -> str:
    """More than one of a kind."""
    return f"{kind}es" if kind == "cross" else f"{kind}s"


def _pick(rng: np.random.Generator, options):
    return options[int(rng.integers(len(options)))]


def _named(scene: Scene, rng: np.random.Generator, colour_told: bool = True) -> list[tuple[Thing, str]]:
    """Things that a short name singles out: "star" if there is one star, or "red star" if one of the stars is red."""
    kinds = Counter(t.kind for t in scene.things)
    pairs = Counter((t.kind, t.colour) for t in scene.things)
    named = []
    for thing in scene.things:
        alone = kinds[thing.kind] == 1
        if alone and (not colour_told or rng.random() < 0.6):
            named.append((thing, thing.kind))
        elif colour_told and pairs[thing.kind, thing.colour] == 1:
            named.append((thing, f"{thing.colour} {thing.kind}"))
    return named


def _absent(scene: Scene, rng: np.random.Generator) -> list[str]:
    """Colour-kind pairs that are not there, though colour and kind are, each on something else."""
    there = {(t.colour, t.kind) for t in scene.things}
    colours, kinds = sorted({t.colour for t in scene.things}), sorted({t.kind for t in scene.things})
    pairs = [f"{c} {k}" for c in colours for k in kinds if (c, k) not in there]
    return [pairs[i] for i in rng.permutation(len(pairs))]


def _shapes(scene: Scene, rng: np.random.Generator) -> tuple[list[str], list[str]]:
    """Shapes that are there and shapes that are not, each in random order."""
    there = {t.kind for t in scene.things}
    mixed = [SHAPES[i] for i in rng.permutation(len(SHAPES))]
    return [s for s in mixed if s in there], [s for s in mixed if s not in there]


def _names(scene: Scene, rng: np.random.Generator) -> tuple[list[str], list[str]]:
    """Names of what is there and of what is not: half the time of shapes alone, half of pairs that need binding."""
    if rng.random() < 0.5:
        return _shapes(scene, rng)
    thing = _pick(rng, scene.things)
    return [f"{thing.colour} {thing.kind}"], _absent(scene, rng)


def _existence(scene: Scene, rng: np.random.Generator) -> Asked | None:
    """Whether something is there."""
    there, absent = _names(scene, rng)
    if not absent or not there:
        return None
    name, answer = (there[0], "yes") if rng.random() < 0.5 else (absent[0], "no")
    return Asked(f"Is there a {name} in the picture?", answer)


def _colour(scene: Scene, rng: np.random.Generator) -> Asked | None:
    named = _named(scene, rng, colour_told=False)
    if not named:
        return None
    thing, name = _pick(rng, named)
    return Asked(f"What colour is the {name}?", thing.colour)


def _count(scene: Scene, rng: np.random.Generator) -> Asked | None:
    numbers = Counter(t.kind for t in scene.things if t.kind in SHAPES)
    by_number: dict[int, list[str]] = {}
    for kind, number in numbers.items():
        by_number.setdefault(number, []).append(f"How many {plural(kind)} are there?")
    for colour, number in Counter(t.colour for t in scene.things).items():
        by_number.setdefault(number, []).append(f"How many {colour} things are there?")
    usable = [n for n in sorted(by_number) if n in _COUNT_WEIGHTS]
    if not usable:
        return None
    weights = np.array([_COUNT_WEIGHTS[n] for n in usable])
    number = int(rng.choice(usable, p=weights / weights.sum()))
    return Asked(_pick(rng, by_number[number]), str(number))


def _relation(scene: Scene, rng: np.random.Generator) -> Asked | None:
    named = _named(scene, rng)
    wanted = _pick(rng, RELATIONS)
    fitting = []
    for first, a in named:
        for second, b in named:
            dx, dy = first.x - second.x, first.y - second.y
            along, across = (abs(dx), abs(dy)) if wanted in ("left", "right") else (abs(dy), abs(dx))
            sign = dx if wanted in ("left", "right") else dy
            right_way = sign < 0 if wanted in ("left", "above") else sign > 0
            if right_way and along > 1.6 * across and along > 2 * PATCH:
                fitting.append((a, b))
    if not fitting:
        return None
    a, b = _pick(rng, fitting)
    return Asked(f"Where is the {a} relative to the {b}?", wanted)


def _quadrant(scene: Scene, rng: np.random.Generator) -> Asked | None:
    wanted, margin, middle = _pick(rng, CORNERS), 1.5 * PATCH, SIZE / 2
    fitting = []
    for thing, name in _named(scene, rng):
        if min(abs(thing.x - middle), abs(thing.y - middle)) < margin:
            continue
        if wanted == f"{'top' if thing.y < middle else 'bottom'} {'left' if thing.x < middle else 'right'}":
            fitting.append(name)
    if not fitting:
        return None
    return Asked(f"Which corner is the {_pick(rng, fitting)} in?", wanted)


def _read(kind: str, question: str) -> Callable[[Scene, np.random.Generator], Asked | None]:
    def ask_it(scene: Scene, rng: np.random.Generator) -> Asked | None:
        named = [(thing, name) for thing, name in _named(scene, rng) if thing.kind == kind]
        if not named:
            return None
        thing, name = _pick(rng, named)
        return Asked(question.format(name), thing.content)

    return ask_it


def _choice(scene: Scene, rng: np.random.Generator) -> Asked | None:
    """Which of four is there."""
    there, absent = _names(scene, rng)
    if len(absent) < 3 or not there:
        return None
    right = int(rng.integers(4))
    options = (*absent[:right], there[0], *absent[right:3])
    listed = " ".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=True))
    return Asked(f"Which one is in the picture? {listed}", LETTERS[right], options)


def _scene(scene: Scene, rng: np.random.Generator) -> Asked | None:
    return Asked("What is the background?", scene.background)


_ASK: dict[str, Callable[[Scene, np.random.Generator], Asked | None]] = {
    "existence": _existence,
    "colour": _colour,
    "count": _count,
    "relation": _relation,
    "quadrant": _quadrant,
    "digit": _read("card", "What digit is on the {}?"),
    "word": _read("sign", "What does the {} say?"),
    "choice": _choice,
    "scene": _scene,
}
assert tuple(_ASK) == GROUPS


def ask(scene: Scene, group: str, rng: np.random.Generator) -> Asked | None:
    """Asks one question of a group about a scene, or returns None where the scene doesn't allow it."""
    return _ASK[group](scene, rng)


def state(scene: Scene, rng: np.random.Generator) -> str | None:
    """Says something true about one thing of a scene, for the early stages of training; None where nothing fits."""
    template = int(rng.integers(3))
    if template == 0:
        asked = _colour(scene, rng)
        return asked and f"{asked.question.removeprefix('What colour is ').rstrip('?')} is {asked.answer}"
    if template == 1:
        asked = _quadrant(scene, rng)
        return asked and f"{asked.question.removeprefix('Which corner is ').removesuffix(' in?')} is {asked.answer}"
    asked = _relation(scene, rng)
    if asked is None:
        return None
    first, second = asked.question.removeprefix("Where is ").rstrip("?").split(" relative to ")
    return f"relative to {second} {first} is {asked.answer}"


def vocabulary() -> list[str]:
    """Every word that questions and answers can hold, lower case, sorted."""
    from .scenes import WORDS

    known = (
        "is there a in the picture ? what colour how many are things where relative to which corner digit on does say "
        "one . background yes no top bottom an of and , ! it this image"
    )
    plurals = [plural(kind) for kind in SHAPES]
    digits = [str(d) for d in range(10)]
    letters = [letter.lower() for letter in LETTERS]
    return sorted({*known.split(), *plurals, *digits, *letters, *KINDS, *COLOURS, *WORDS, *BACKGROUNDS, *RELATIONS})
