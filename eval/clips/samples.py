"""The questions of a split as a lazy sequence."""

from __future__ import annotations

from vtc.eval.embedded.samples import generator

from .questions import ask
from .render import render
from .sample import GROUPS, ClipSample
from .scenes import FRAMES, draw_clip


def make_sample(split: str, seed: int, index: int, frames: int = FRAMES) -> ClipSample:
    """Makes question number `index`: draws clips until one allows a question of the group whose turn it is."""
    rng = generator(split, seed, index, "clip benchmark")
    group = GROUPS[index % len(GROUPS)]
    while True:
        clip = draw_clip(rng, split)
        asked = ask(clip, group, rng)
        if asked is not None:
            name = f"clips-{split}-{seed}-{index}"
            return ClipSample(name, render(clip, frames), asked.question, asked.answer, group)
