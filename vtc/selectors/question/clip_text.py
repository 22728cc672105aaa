"""The text tower of the CLIP model that a vision tower comes from: what of a picture a question asks for."""

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from vtc.calls.clip import in_windows, take_image_norm, text_vectors
from vtc.ops.similarity import as_float
from vtc.selectors.question.reading import Reader, load


class AsksClip:
    """Of methods with the fields `clip` and `tokenizer`: the text tower, loaded when it is first asked for."""

    clip: str | None
    tokenizer: str | None

    @cached_property
    def _clip_text(self) -> "ClipText":
        assert self.clip is not None and self.tokenizer is not None
        return ClipText(self.clip, self.tokenizer)


def text_score(features: Tensor, text: Tensor) -> Tensor:
    """How near visual tokens are to a text: cosine similarity, divided by the square root of the width.

    Args:
        features: [n, P].
        text: [P], in the same space.

    Returns:
        Tensor [n]; 0 where a vector is zero, NaN or Inf.
    """
    unit = torch.nn.functional.normalize(as_float(features), dim=-1)
    text = torch.nn.functional.normalize(as_float(text), dim=-1).to(unit.dtype)
    return unit @ text * features.shape[-1] ** -0.5


def check_clip(clip: object, tokenizer: object) -> None:
    """Check the fields `clip` and `tokenizer` of a method: both texts, or both None.

    Raises:
        TypeError: one is something else.
        ValueError: one is given without the other.
    """
    for name, value in (("clip", clip), ("tokenizer", tokenizer)):
        if value is not None and not isinstance(value, str):
            raise TypeError(f"{name}={value!r} is a {type(value).__name__}; give a folder or hub id, or None")
    if (clip is None) != (tokenizer is None):
        raise ValueError(
            f"clip={clip!r} and tokenizer={tokenizer!r}: the question is read by the tokenizer and scored by the CLIP "
            "model, so give both, or neither"
        )


class ClipText:
    """A CLIP model's text tower, its two projections and the norm of pictures, and the language model's tokenizer.

    Args:
        clip: folder or hub id of a CLIP model with its tokenizer.
        tokenizer: folder or hub id of the vision-language model's tokenizer.

    Raises:
        ValueError: one of them can't be loaded, or `clip` is no CLIP model.
    """

    def __init__(self, clip: str, tokenizer: str):
        from transformers import AutoConfig, AutoTokenizer, CLIPModel

        self.name = clip
        self.reader = Reader(tokenizer)
        wanted = "the CLIP model that the vision tower comes from, its tokenizer with it"
        config = load("clip", clip, AutoConfig, wanted)
        if config.model_type != "clip":
            raise ValueError(f"clip={clip!r} is a {config.model_type} model; give the folder or hub id of {wanted}")
        self.writer = load("clip", clip, AutoTokenizer, wanted)
        self.model = load("clip", clip, CLIPModel, wanted).float().eval().requires_grad_(False)
        self.norm = take_image_norm(self.model)
        self.longest = config.text_config.max_position_embeddings

    def question(self, ids: Tensor) -> str:
        """What the user says in token ids [T] of the language model; special tokens and the template's end left out."""
        return self.reader.question(ids)[0].strip()

    @torch.no_grad()
    def score(self, hidden: Tensor, question: str) -> Tensor:
        """`text_score` [n] of a question and of the last tower block's output [n, C].

        The projection is applied without the norm that CLIP puts in front of it for the CLS token. The text's vector is
        the one at its end-of-text token.

        Raises:
            ValueError: the CLIP model belongs to a tower of another width.
        """
        return text_score(self._projected(hidden), self.text(question, hidden.device)[0])

    @torch.no_grad()
    def image(self, hidden: Tensor) -> Tensor:
        """Vectors [n, P] of a tower block's output [n, C]: norm, then projection; not of length 1.

        Raises:
            ValueError: the CLIP model belongs to a tower of another width.
        """
        return self._projected(hidden, normed=True)

    @torch.no_grad()
    def text(self, question: str, device: torch.device, windows: bool = False) -> Tensor:
        """Vectors [windows, P] of a question, projected; not of length 1.

        Args:
            question: what is asked.
            device: where they are computed.
            windows: cut a question that is longer than the text tower reads (77 ids) into pieces of that length, as
                CDPruner does: only the first has the token that begins a text, only the last the one that ends it, and
                the last is filled up with id 0, which no token attends to. Default False: what is longer is cut off.

        Returns:
            Tensor [1, P], or one row for each piece.
        """
        self.model.to(device)
        if windows:
            tokens: Any = in_windows(self.writer(question, return_tensors="pt", verbose=False), self.longest)
        else:
            tokens = self.writer(question, truncation=True, max_length=self.longest, return_tensors="pt")
        return text_vectors(self.model, tokens, device)

    def _projected(self, hidden: Tensor, normed: bool = False) -> Tensor:
        width = self.model.visual_projection.in_features
        if hidden.shape[-1] != width:
            raise ValueError(
                f"clip={self.name!r} belongs to a vision tower of width {width}, and this one has {hidden.shape[-1]}; "
                "give the CLIP model that the tower comes from, or leave clip out"
            )
        self.model.to(hidden.device)
        rows = as_float(hidden).float()
        return self.model.visual_projection(self.norm.to(hidden.device)(rows) if normed else rows)
