"""How a CLIP model is asked for the vector of a text, and for what makes vectors of pictures."""

from typing import Any

from torch import Tensor


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


def take_image_norm(model: Any) -> Any:
    """The norm that a `CLIPModel` puts in front of its projection of pictures; the vision tower goes with it."""
    norm = model.vision_model.post_layernorm
    del model.vision_model
    return norm
