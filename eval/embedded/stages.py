"""The training recipe as data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """One stage of training.

    Attributes:
        name: Also the checkpoint's name.
        teaches: "tower" (pixels to labels and codes), "decoder" (codes to answers) or "model" (pixels to answers).
        starts_from: Stages whose weights this one continues.
        steps: Optimizer steps.
        batch: Pictures per step, over all processes.
        muon_lr: Step size of hidden matrices.
        adam_lr: Step size of everything else.
        decay: Share of the steps, at the end, over which both fall linearly to zero.
        dense: Weight of the patch-label loss beside the answer loss ("model" stages).
        words: Weight of the loss on the questions' own words beside the answer loss.
        statements: Share of true statements ("the star is red") among the questions.
        visual: Visual tokens per picture of a "decoder" stage, one entry per step in turn; below 256, all tokens
            that show a thing and a random part of the background.
    """

    name: str
    teaches: str
    starts_from: tuple[str, ...]
    steps: int
    batch: int
    muon_lr: float
    adam_lr: float
    decay: float = 0.0
    dense: float = 0.0
    words: float = 0.0
    statements: float = 0.0
    visual: tuple[int, ...] = (256,)


STAGES: tuple[Stage, ...] = (
    Stage("tower", "tower", (), 1600, 16, 0.02, 3e-3),
    Stage("reading", "tower", ("tower",), 500, 16, 0.007, 1e-3),
    Stage("reading_slow", "tower", ("reading",), 140, 16, 0.004, 1e-3),
    Stage("decoder", "decoder", (), 280, 8, 0.01, 2e-3, words=0.5, statements=0.3, visual=(48, 64)),
    Stage("binding", "decoder", ("decoder",), 260, 8, 0.008, 2e-3, words=0.1, statements=0.1, visual=(48, 64, 128)),
    Stage(
        "binding_slow", "decoder", ("binding",), 860, 8, 0.004, 1e-3, words=0.1, statements=0.1, visual=(48, 64, 128)
    ),
    Stage("joint", "model", ("reading_slow", "binding_slow"), 226, 16, 0.003, 6e-4, dense=0.3),
    Stage("final", "model", ("joint",), 220, 16, 0.003, 6e-4, decay=1.0),
)
