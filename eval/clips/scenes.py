"""Clips as data: a few coloured shapes that stay, move, or are there for a while, drawn from a random generator."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from vtc.eval.embedded.scenes import BACKGROUNDS, COLOURS, SHAPES, SIZE, Scene, Thing

from .sample import FRAMES

MOTIONS: dict[str, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
# First and last frame of a thing that is not there all the time.
VISITS: dict[str, tuple[tuple[int, int], ...]] = {
    "start": ((0, 1), (0, 2)),
    "middle": ((3, 4), (2, 4), (3, 5)),
    "end": ((5, 7), (6, 7)),
}
_MOVERS, _MOVERS_P = (0, 1, 2, 3), (0.08, 0.52, 0.22, 0.18)
_MOST = 5  # things in one clip
_GAP = 4  # pixels between things


@dataclass(frozen=True)
class Actor:
    """A shape and what it does; shapes of one clip are all different.

    Attributes:
        thing: the shape, where it is in the first frame.
        motion: "" or a key of `MOTIONS`.
        step: pixels from one frame to the next.
        visit: "" (always there) or a key of `VISITS`.
        first: first frame in which it is there.
        last: last frame in which it is there.
    """

    thing: Thing
    motion: str = ""
    step: float = 0.0
    visit: str = ""
    first: int = 0
    last: int = FRAMES - 1

    def at(self, moment: float) -> Thing | None:
        """The shape at a moment, counted in frames of a clip that has `FRAMES`, or None; behind the last it stays."""
        if not self.first <= int(moment) <= self.last:
            return None
        dx, dy = MOTIONS.get(self.motion, (0, 0))
        way = self.step * min(moment, FRAMES - 1)
        return replace(self.thing, x=round(self.thing.x + dx * way), y=round(self.thing.y + dy * way))

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of all places that it ever takes."""
        dx, dy = MOTIONS.get(self.motion, (0, 0))
        way, half = self.step * (FRAMES - 1), self.thing.width / 2 + 2
        xs, ys = (self.thing.x, self.thing.x + dx * way), (self.thing.y, self.thing.y + dy * way)
        return min(xs) - half, min(ys) - half, max(xs) + half, max(ys) + half


@dataclass(frozen=True)
class Clip:
    """Actors on a background that stays; `texture` seeds the pixels."""

    split: str
    background: str
    texture: int
    actors: tuple[Actor, ...]

    def scene(self, moment: float) -> Scene:
        """What is seen at a moment, counted in frames of a clip that has `FRAMES`."""
        things = tuple(thing for actor in self.actors if (thing := actor.at(moment)) is not None)
        return Scene(self.split, self.background, self.texture, things)


def _apart(box: tuple[float, float, float, float], taken: list[Actor]) -> bool:
    left, top, right, bottom = box
    if left < 0 or top < 0 or right > SIZE or bottom > SIZE:
        return False
    others = (actor.box for actor in taken)
    return all(left > o[2] + _GAP or right < o[0] - _GAP or top > o[3] + _GAP or bottom < o[1] - _GAP for o in others)


def _actor(kind: str, motion: str, visit: str, taken: list[Actor], rng: np.random.Generator) -> Actor | None:
    """A shape with a colour, a size and a free place; None where none was found."""
    side, colour = int(rng.integers(24, 34)), list(COLOURS)[rng.integers(len(COLOURS))]
    tint = tuple(int(v) for v in rng.integers(-14, 15, size=3))
    step = float(rng.uniform(9, 17)) if motion else 0.0
    first, last = VISITS[visit][rng.integers(len(VISITS[visit]))] if visit else (0, FRAMES - 1)
    for _ in range(40):
        x, y = (int(v) for v in rng.integers(side // 2 + 2, SIZE - side // 2 - 2, size=2))
        thing = Thing(kind, colour, x, y, side, side, tint=tint)  # type: ignore[arg-type]
        actor = Actor(thing, motion, step, visit, first, last)
        if _apart(actor.box, taken):
            return actor
    return None


def draw_clip(rng: np.random.Generator, split: str) -> Clip:
    """Draws one clip: up to three things that move, up to two that come or go, others that stay.

    Args:
        rng: Source of every choice.
        split: One of the embedded benchmark's splits; backgrounds are that split's own.
    """
    kinds = [SHAPES[i] for i in rng.permutation(len(SHAPES))]
    movers = int(rng.choice(_MOVERS, p=_MOVERS_P))
    visitors = int(rng.choice(3, p=(0.25, 0.3, 0.45)))
    still = int(rng.integers(0, 3))
    roles = [("move", "")] * movers
    roles += [("", list(VISITS)[i]) for i in rng.permutation(len(VISITS))[:visitors]]
    roles = (roles + [("", "")] * still)[:_MOST]
    if len(roles) < 2:
        roles += [("", "")] * (2 - len(roles))
    actors: list[Actor] = []
    for kind, (moves, visit) in zip(kinds, roles):
        motion = list(MOTIONS)[rng.integers(len(MOTIONS))] if moves else ""
        actor = _actor(kind, motion, visit, actors, rng)
        if actor is not None:
            actors.append(actor)
    background = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
    return Clip(split, background, int(rng.integers(2**31)), tuple(actors))
