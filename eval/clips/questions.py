"""Questions about a clip, one function per group; None where the clip doesn't allow such a question."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vtc.eval.embedded.questions import Asked, vocabulary

from .sample import GROUPS
from .scenes import MOTIONS, VISITS, Actor, Clip

_FIRST = {"start": 0, "middle": 1, "end": 2}
# Three movers are rarer than one; these weights make the answers about equally frequent.
_COUNT_KEEP = {1: 0.35, 2: 0.8, 3: 1.0}


def _pick(rng: np.random.Generator, options):
    return options[int(rng.integers(len(options)))]


def _movers(clip: Clip) -> list[Actor]:
    return [actor for actor in clip.actors if actor.motion]


def _name(clip: Clip, actor: Actor, rng: np.random.Generator) -> str:
    thing = actor.thing
    return thing.kind if rng.random() < 0.7 else f"{thing.colour} {thing.kind}"


def _moved(clip: Clip, rng: np.random.Generator) -> Asked | None:
    movers = _movers(clip)
    if len(movers) != 1 or len(clip.actors) < 2:
        return None
    return Asked("What moves?", movers[0].thing.kind)


def _direction(clip: Clip, rng: np.random.Generator) -> Asked | None:
    movers, wanted = _movers(clip), _pick(rng, list(MOTIONS))
    fitting = [actor for actor in movers if actor.motion == wanted]
    if not fitting:
        return None
    if len(movers) == 1 and rng.random() < 0.3:
        return Asked("Where does the moving thing move?", wanted)
    return Asked(f"Where does the {_name(clip, _pick(rng, fitting), rng)} move?", wanted)


def _count(clip: Clip, rng: np.random.Generator) -> Asked | None:
    number = len(_movers(clip))
    if number not in _COUNT_KEEP or rng.random() > _COUNT_KEEP[number]:
        return None
    return Asked("How many things move?", str(number))


def _colour(clip: Clip, rng: np.random.Generator) -> Asked | None:
    movers = _movers(clip)
    if len(movers) != 1 or len({actor.thing.colour for actor in clip.actors}) < 2:
        return None
    return Asked("What colour is the moving thing?", movers[0].thing.colour)


def _order(clip: Clip, rng: np.random.Generator) -> Asked | None:
    visitors = [actor for actor in clip.actors if actor.visit]
    if len(visitors) < 2:
        return None
    a, b = (visitors[i] for i in rng.permutation(len(visitors))[:2])
    first = a if _FIRST[a.visit] < _FIRST[b.visit] else b
    comes = "first" if rng.random() < 0.5 else "last"
    answer = first if comes == "first" else (b if first is a else a)
    return Asked(f"Which comes {comes}, the {a.thing.kind} or the {b.thing.kind}?", answer.thing.kind)


def _when(clip: Clip, rng: np.random.Generator) -> Asked | None:
    visitors, wanted = [actor for actor in clip.actors if actor.visit], _pick(rng, list(VISITS))
    fitting = [actor for actor in visitors if actor.visit == wanted]
    if not fitting:
        return None
    return Asked(f"When is the {_name(clip, _pick(rng, fitting), rng)} there?", wanted)


_ASK: dict[str, Callable[[Clip, np.random.Generator], Asked | None]] = {
    "moved": _moved,
    "direction": _direction,
    "count": _count,
    "colour": _colour,
    "order": _order,
    "when": _when,
}
assert tuple(_ASK) == GROUPS


def ask(clip: Clip, group: str, rng: np.random.Generator) -> Asked | None:
    """Asks one question of a group about a clip, or returns None where the clip doesn't allow it."""
    return _ASK[group](clip, rng)


def state(clip: Clip, rng: np.random.Generator) -> str:
    """Says something true about one thing of a clip, for the early stages of training."""
    actor = _pick(rng, clip.actors)
    kind = actor.thing.kind
    if rng.random() < 0.2:
        return f"the {kind} is {actor.thing.colour}"
    if actor.motion:
        return f"the {kind} moves {actor.motion}"
    return f"the {kind} is there {actor.visit}" if actor.visit else f"the {kind} is still"


def new_words() -> tuple[str, ...]:
    """Words that the embedded model's questions don't have, in the order of their token ids."""
    more = "moves move moving thing up down comes first last or when start middle end video still"
    known = set(vocabulary())
    return tuple(word for word in more.split() if word not in known)
