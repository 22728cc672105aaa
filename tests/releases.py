"""What a release of transformers can't do without vtc: nobody can compress there what does not run."""

import pytest
import transformers
from flash_stand_in import NAME as FLASH
from packaging.version import Version

HERE = Version(transformers.__version__)

#: (first release, last release, family, attention or None for each) in which the bare tiny model fails; tests hold it.
BROKEN = (
    ("5.17", "5.17", "granite4_vision", None),
    ("5.17", "5.17", "minicpmv4_6", None),
    ("5.17", "5.17", "mistral3", FLASH),
    ("5.24", "5.24", "llama4", None),
)

#: `generate` makes features ahead, and hands them over.
MAKES_AHEAD = hasattr(transformers.GenerationMixin, "_maybe_prepare_encoder_kwargs_for_generation")
#: Without a cache, PaliGemma's steps are computed as with one.
STEPS_AGREE = HERE.release[:2] != (5, 17)
#: A prefill in chunks keeps its pictures; before, the bare model forgets them.
CHUNKS_SHOW = Version("5.23") <= HERE


def is_broken(family: str, attention: str) -> bool:
    """Whether the bare model of a family does not run here under an attention implementation."""
    release = HERE.release[:2]
    return any(
        Version(first).release <= release <= Version(last).release and family == name and how in (None, attention)
        for first, last, name, how in BROKEN
    )


def skip_broken(family: str, attention: str) -> None:
    """Skip a test of a model that does not run here without vtc."""
    if is_broken(family, attention):
        pytest.skip(f"transformers {HERE} itself can't run {family} under {attention}")
