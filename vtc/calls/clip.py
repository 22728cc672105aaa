"""How a CLIP model is asked for the vector of a text."""

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
