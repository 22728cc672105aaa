"""Training batches: features of clips, what each token's thing does, and many questions packed behind one clip."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from vtc.eval.embedded.data import Questions, pack_texts
from vtc.eval.embedded.samples import generator

from .processor import build_tokenizer
from .questions import ask, state
from .render import cell_states, render
from .sample import GROUPS
from .scenes import Clip, draw_clip

# How often each group is asked in training.
_WEIGHTS = {"moved": 1.0, "direction": 2.0, "count": 1.0, "colour": 1.0, "order": 2.5, "when": 1.5}
_TRIES = 36


@lru_cache(maxsize=1)
def _core():
    return build_tokenizer().backend_tokenizer


def clip(index: int) -> Clip:
    """Training clip number `index`."""
    return draw_clip(generator("train", 0, index, "clips"), "train")


def pixels(clips: list[Clip]) -> Tensor:
    """Pixels as the processor makes them, float32 [B, F, 3, 224, 224]."""
    raw = torch.from_numpy(np.stack([render(c) for c in clips])).permute(0, 1, 4, 2, 3).float() / 255
    mean, std = (torch.tensor(v).view(1, 1, 3, 1, 1) for v in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    return (raw - mean) / std


def labels(clips: list[Clip]) -> Tensor:
    """Index into `render.STATES` and frame of every token, int64 [B, F * 64, 2]."""
    states = torch.from_numpy(np.stack([cell_states(c) for c in clips]))
    frames = torch.arange(states.shape[1])[:, None].expand_as(states)
    return torch.stack((states, frames), dim=-1).flatten(1, 2)


def _texts(clip: Clip, rng: np.random.Generator, statements: float) -> list[tuple[int, int, str]]:
    """Different questions and statements about a clip: (group or -1, tokens of the answer, text)."""
    weights = np.array([_WEIGHTS[g] for g in GROUPS])
    texts: dict[str, tuple[int, int, str]] = {}
    for index in rng.choice(len(GROUPS), size=_TRIES, p=weights / weights.sum()).tolist():
        if rng.random() < statements:
            said = state(clip, rng)
            texts.setdefault(said, (-1, 0, f"{said}</s>"))
        elif (one := ask(clip, GROUPS[index], rng)) is not None:
            text = f"{one.question} ASSISTANT: {one.answer}</s>"
            texts.setdefault(one.question, (index, 1 + len(one.answer.split()), text))
    return list(texts.values())


def pack_batch(clips: list[Clip], round_: int, statements: float) -> Questions:
    """Questions behind each clip; other ones in every round."""
    packed = [pack_texts(_texts(c, np.random.default_rng([c.texture, round_]), statements), _core()) for c in clips]
    return Questions(*torch.from_numpy(np.stack(packed, axis=1)))
