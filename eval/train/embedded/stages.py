"""How the embedded model is trained, as data."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from vtc.eval.train.staged import Stage


@dataclass(frozen=True)
class EmbeddedStage(Stage):
    """One stage of training the embedded model.

    Attributes:
        teaches: "tower" (pixels to labels and codes), "decoder" (codes to answers) or "model" (pixels to answers).
        dense: Weight of the patch-label loss beside the answer loss ("model" stages).
        visual: Visual tokens per picture of a "decoder" stage, one entry per step in turn; below 256, all tokens
            that show a thing and a random part of the background.
    """

    teaches: str = "model"
    dense: float = 0.0
    visual: tuple[int, ...] = (256,)


_tower = partial(EmbeddedStage, teaches="tower")
_decoder = partial(EmbeddedStage, teaches="decoder")

STAGES: tuple[EmbeddedStage, ...] = (
    _tower("tower", (), 1600, 16, 0.02, 3e-3),
    _tower("reading", ("tower",), 500, 16, 0.007, 1e-3),
    _tower("reading_slow", ("reading",), 140, 16, 0.004, 1e-3),
    _decoder("decoder", (), 280, 8, 0.01, 2e-3, words=0.5, statements=0.3, visual=(48, 64)),
    _decoder("binding", ("decoder",), 260, 8, 0.008, 2e-3, words=0.1, statements=0.1, visual=(48, 64, 128)),
    _decoder("binding_slow", ("binding",), 860, 8, 0.004, 1e-3, words=0.1, statements=0.1, visual=(48, 64, 128)),
    EmbeddedStage("joint", ("reading_slow", "binding_slow"), 226, 16, 0.003, 6e-4, dense=0.3),
    EmbeddedStage("final", ("joint",), 220, 16, 0.003, 6e-4, decay=1.0),
)
