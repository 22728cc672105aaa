"""LLaVA-1.5 and families of its make: every crop is an image, its patches make the tokens in raster order."""

from typing import ClassVar

from vtc.adapters.generic import Adapter


class LlavaAdapter(Adapter):
    """One patch is one token, by an MLP."""

    families: ClassVar[tuple[str, ...]] = ("llava", "vipllava")
    projects_rows: ClassVar[bool] = True
    follows_patches: ClassVar[bool] = True


class SquareAdapter(Adapter):
    """Square cells of patches, of one patch each or more, are pooled or merged into one token."""

    families: ClassVar[tuple[str, ...]] = (
        "gemma3", "paligemma", "mistral3", "aya_vision", "cohere2_vision", "deepseek_vl", "janus",
    )  # fmt: skip
    follows_patches: ClassVar[bool] = True
