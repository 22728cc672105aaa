"""How a CLIP model is asked for the vector of a text, and for what makes vectors of pictures."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


def text_vectors(model: Any, tokens: Any, device: Any) -> Tensor:
    """The vectors [texts, P] of tokenised texts: those at the end-of-text tokens, projected.

    Args:
        model: a `CLIPModel`.
        tokens: what its tokenizer made of the texts.
        device: where the model is.
    """
    made = model.get_text_features(
        input_ids=tokens["input_ids"].to(device), attention_mask=tokens["attention_mask"].to(device)
    )
    return getattr(made, "pooler_output", made)


def in_windows(tokens: Any, longest: int) -> Any:
    """The tokens of one text in pieces of `longest`, a row for each; the last is filled with id 0, which none sees."""
    pieces = tokens["input_ids"][0].split(longest)
    rows = {"input_ids": list(pieces), "attention_mask": [torch.ones_like(piece) for piece in pieces]}
    return {name: pad_sequence(row, batch_first=True) for name, row in rows.items()}


def take_image_norm(model: Any) -> Any:
    """The norm that a `CLIPModel` puts in front of its projection of pictures; the vision tower goes with it."""
    norm = model.vision_model.post_layernorm
    del model.vision_model
    return norm
