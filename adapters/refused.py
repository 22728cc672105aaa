"""Families in which removed tokens would change what is not seen, so that nothing is patched: each says why."""

from typing import ClassVar

from torch import nn

from vtc.adapters.generic import Adapter

_BY_SLOTS = (
    "its attention tells distances by how many keys stand between two in the cache, so removing tokens would move the "
    "others nearer to each other; run it uncompressed"
)
_BY_ITSELF = (
    "its generate fills the placeholders and calls the language model by itself, past the module that is called "
    "otherwise, so what it put where is not seen; run it uncompressed"
)


class RefusedAdapter(Adapter):
    """Refuses the model, with the reason."""

    #: `config.model_type` -> why, and the way out.
    reasons: ClassVar[dict[str, str]] = {
        "inkling_mm_model": _BY_SLOTS,
        "inkling2": _BY_SLOTS,
        "inkling2_loop": _BY_SLOTS,
        "blip-2": _BY_ITSELF,
        "instructblip": _BY_ITSELF,
        "instructblipvideo": _BY_ITSELF,
        "qwen4_exp": (
            "its indexer turns all keys of the cache anew in each step, by positions that count every token, so it "
            "would choose by other positions than those of the tokens that are left; run it uncompressed"
        ),
        "diffusion_gemma": (
            "a second decoder reads the keys of the first and counts the prompt's tokens from the ids, so it would "
            "read others than it takes them for; run it uncompressed"
        ),
        "pi0": (
            "its action expert reads the keys of the language model and counts the prompt's tokens from the mask, so "
            "it would read others than it takes them for; compress the vision-language model alone"
        ),
    }
    families: ClassVar[tuple[str, ...]] = tuple(reasons)

    def __init__(self, model: nn.Module):
        family = getattr(getattr(model, "config", None), "model_type", None)
        raise ValueError(f"{family}: {self.reasons.get(str(family), 'it is a part of a model that is not compressed')}")
