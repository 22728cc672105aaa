"""Training batches: scenes, pixels, patch labels, and many questions packed behind one picture."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from .codes import patch_labels
from .questions import ask, state
from .render import render
from .sample import GROUPS
from .samples import generator
from .scenes import Scene, draw_scene
from .tokenizer import SPECIALS, build_tokenizer

CHUNK = 64  # tokens; a question never crosses the border of a chunk
QUESTION_TOKENS = 4 * CHUNK  # question and answer tokens packed behind one picture

# How often each group is asked in training: more where looking alone isn't enough.
GROUP_WEIGHTS: dict[str, float] = {
    "existence": 1.2,
    "colour": 0.5,
    "count": 4.0,
    "relation": 2.0,
    "quadrant": 0.7,
    "digit": 0.7,
    "word": 1.2,
    "choice": 0.8,
    "scene": 0.3,
}


@dataclass
class Questions:
    """Questions packed behind each picture; S = `QUESTION_TOKENS`.

    Attributes:
        ids: int64 [B, S].
        block: int64 [B, S], the question a token belongs to; padding has blocks of its own.
        position: int64 [B, S], place within the question, from 0.
        target: int64 [B, S], the next token, -100 where there is none.
        group: int64 [B, S], index into `GROUPS` where the next token is part of an answer, -1 elsewhere.
    """

    ids: Tensor
    block: Tensor
    position: Tensor
    target: Tensor
    group: Tensor


@lru_cache(maxsize=1)
def _core():
    return build_tokenizer().backend_tokenizer


def _texts(scene: Scene, rng: np.random.Generator, statements: float) -> list[tuple[int, int, str]]:
    """Different questions and statements about a scene: (group or -1, tokens of the answer, text)."""
    weights = np.array([GROUP_WEIGHTS[g] for g in GROUPS])
    texts: dict[str, tuple[int, int, str]] = {}
    for index in rng.choice(len(GROUPS), size=40, p=weights / weights.sum()).tolist():
        if rng.random() < statements:
            said = state(scene, rng)
            if said is not None:
                texts.setdefault(said, (-1, 0, f"{said}</s>"))
        elif (one := ask(scene, GROUPS[index], rng)) is not None:
            text = f"{one.question} ASSISTANT: {one.answer}</s>"
            texts.setdefault(one.question, (index, 1 + len(one.answer.split()), text))
    return list(texts.values())


def pack(scene: Scene, rng: np.random.Generator, statements: float = 0.0) -> np.ndarray:
    """Asks as many questions about a scene as fit.

    Args:
        scene: What they are about.
        rng: Source of every choice.
        statements: Share of true statements among the questions.

    Returns:
        int64 [5, S], rows as the fields of `Questions`.
    """
    return pack_texts(_texts(scene, rng, statements), _core())


def pack_texts(texts: list[tuple[int, int, str]], core: Tokenizer) -> np.ndarray:
    """Packs as many texts as fit.

    Args:
        texts: (index of the group or -1, tokens of the answer, text) of each.
        core: The tokenizer's backend.

    Returns:
        int64 [5, S], rows as the fields of `Questions`.
    """
    encoded = core.encode_batch([text for _, _, text in texts], add_special_tokens=False)
    out = np.zeros((5, QUESTION_TOKENS), np.int64)
    out[1], out[3], out[4] = np.arange(QUESTION_TOKENS), -100, -1  # a block is named by the place it starts at
    filled = np.zeros(QUESTION_TOKENS // CHUNK, int)
    for (group, answer, _), encoding in zip(texts, encoded, strict=True):
        ids = encoding.ids[:-1]  # the end token is predicted, never fed
        room = np.flatnonzero(filled + len(ids) <= CHUNK)
        if not len(room):
            continue
        start = int(room[0] * CHUNK + filled[room[0]])
        end = start + len(ids)
        filled[room[0]] += len(ids)
        out[:4, start:end] = ids, [start] * len(ids), range(len(ids)), encoding.ids[1:]
        out[4, end - answer : end] = group
    return out


def draw_batch(split: str, seed: int, first: int, size: int, purpose: str, crowded: bool = False) -> list[Scene]:
    """Scenes number `first` to `first + size` of a stream."""
    return [draw_scene(generator(split, seed, i, purpose), split, crowded) for i in range(first, first + size)]


def pack_batch(scenes: list[Scene], statements: float = 0.0) -> Questions:
    """Packs questions behind each scene; which ones depends on the scene's texture seed and the share of statements."""
    packed = np.stack([pack(s, np.random.default_rng(s.texture + 2), statements) for s in scenes], axis=1)
    return Questions(*torch.from_numpy(packed))


def label_batch(scenes: list[Scene]) -> Tensor:
    """Patch labels, int64 [B, 256, 4]."""
    return torch.from_numpy(np.stack([patch_labels(s) for s in scenes]))


def pixel_batch(scenes: list[Scene]) -> Tensor:
    """Pixels as the processor makes them, float32 [B, 3, 224, 224]."""
    raw = torch.from_numpy(np.stack([render(s) for s in scenes])).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    return (raw - mean) / std


def prefix_ids() -> list[int]:
    """Ids in front of the visual tokens: `<s> USER:`."""
    return [SPECIALS.index("<s>"), SPECIALS.index("USER:")]
