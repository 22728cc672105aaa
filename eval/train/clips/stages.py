"""How the clip model is trained, as data: its decoder alone, for tower and projector stay the embedded model's."""

from __future__ import annotations

from dataclasses import dataclass

from vtc.eval.train.staged import Stage


@dataclass(frozen=True)
class ClipsStage(Stage):
    """One stage of training the decoder; the first starts from the embedded model's weights.

    Attributes:
        labels: Weight of the loss on what each token's thing does and on its frame, read behind `LABEL_LAYER`.
        visual: Visual tokens per clip, one entry per step in turn; below all, a random part is left out.
    """

    labels: float = 0.0
    visual: tuple[int, ...] = (512,)


CLIPS = 9600  # clips whose features are computed once
LABEL_LAYER = 2  # the decoder layer behind which tokens must know what their thing does, and their frame

STAGES: tuple[ClipsStage, ...] = (
    ClipsStage("motion", (), 900, 8, 0.006, 1e-3, labels=1.0, words=0.2, statements=0.3, visual=(192, 256, 320, 512)),
    ClipsStage(
        "answers", ("motion",), 300, 8, 0.004, 1e-3, labels=0.3, words=0.05, statements=0.1, visual=(256, 384, 512)
    ),
    ClipsStage("final", ("answers",), 400, 8, 0.003, 6e-4, decay=1.0),
)
