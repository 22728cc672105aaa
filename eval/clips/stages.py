"""The training recipe as data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """One stage of training the decoder; tower and projector are the embedded model's and stay as they are.

    Attributes:
        name: Also the checkpoint's name.
        starts_from: The stage whose weights this one continues; "" for the embedded model's.
        steps: Optimizer steps.
        batch: Clips per step.
        muon_lr: Step size of hidden matrices.
        adam_lr: Step size of everything else.
        decay: Share of the steps, at the end, over which both fall linearly to zero.
        labels: Weight of the loss on what each token's thing does and on its frame, read behind `LABEL_LAYER`.
        words: Weight of the loss on the questions' own words beside the answer loss.
        statements: Share of true statements ("the star moves left") among the texts.
        visual: Visual tokens per clip, one entry per step in turn; below all, a random part is left out.
    """

    name: str
    starts_from: str
    steps: int
    batch: int
    muon_lr: float
    adam_lr: float
    decay: float = 0.0
    labels: float = 0.0
    words: float = 0.0
    statements: float = 0.0
    visual: tuple[int, ...] = (512,)


CLIPS = 9600  # clips whose features are computed once
LABEL_LAYER = 2  # the decoder layer behind which tokens must know what their thing does, and their frame

STAGES: tuple[Stage, ...] = (
    Stage("motion", "", 900, 8, 0.006, 1e-3, labels=1.0, words=0.2, statements=0.3, visual=(192, 256, 320, 512)),
    Stage("answers", "motion", 300, 8, 0.004, 1e-3, labels=0.3, words=0.05, statements=0.1, visual=(256, 384, 512)),
    Stage("final", "answers", 400, 8, 0.003, 6e-4, decay=1.0),
)
