"""Paints clips, and tells what every pooled cell of every frame shows."""

from __future__ import annotations

import numpy as np

from vtc.eval.embedded.render import background, paint, patch_owner
from vtc.eval.embedded.scenes import GRID, SIZE

from .scenes import FRAMES, MOTIONS, Clip

CELLS = GRID // 2  # pooled cells along each side of a frame
STATES: tuple[str, ...] = ("background", "still", *MOTIONS)


def render(clip: Clip, count: int = FRAMES) -> np.ndarray:
    """Paints a clip in `count` frames, each with noise of its own. uint8 [count, 224, 224, 3]."""
    canvas, frames = background(clip.scene(0)), []
    for frame in range(count):
        picture = canvas.copy()
        for thing in clip.scene(frame * FRAMES / count).things:
            paint(picture, thing, clip.split)
        noise = np.random.default_rng(clip.texture + 1 + frame)
        picture += noise.integers(-6, 7, (SIZE, SIZE, 1), dtype=np.int8)
        frames.append(np.clip(picture, 0, 255).astype(np.uint8))
    return np.stack(frames)


def cell_states(clip: Clip) -> np.ndarray:
    """What each cell shows: int64 [FRAMES, 64], index into `STATES`.

    A cell shows the thing that most of its four patches show, if any does.
    """
    states = np.zeros((FRAMES, CELLS, CELLS), np.int64)
    for frame in range(FRAMES):
        there = [actor for actor in clip.actors if actor.at(frame) is not None]
        of_thing = np.array([0, *(STATES.index(actor.motion or "still") for actor in there)])
        owner = of_thing[patch_owner(clip.scene(frame)) + 1]
        patches = owner.reshape(CELLS, 2, CELLS, 2).transpose(0, 2, 1, 3).reshape(CELLS, CELLS, 4)
        states[frame] = patches.max(axis=-1)
    return states.reshape(FRAMES, -1)
