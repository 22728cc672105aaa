"""More families, as `families.py` has them: variants of those, decoders of other makes, and videos."""

import importlib.util

import transformers
from releases import HERE
from tiny_base import Family
from tiny_grids import GRIDDED
from tiny_own import (
    Ernie4_5VLMoe,
    Gemma4,
    Gemma4Shared,
    Granite4Vision,
    Lfm2Vl,
    Llama4,
    MiniCPMV4_6,
    Molmo2,
    Qwen3_5,
    Qwen3VLMoe,
)
from tiny_plain import (
    Aria,
    AyaVision,
    Cohere2Vision,
    DeepseekVL,
    GotOcr2,
    Janus,
    LlavaNextVideo,
    Ovis2,
    PaliGemma2,
    VideoLlama3,
    VideoLlava,
)
from tiny_sparse import SPARSE
from tiny_squares import SQUARES
from tiny_timm import TIMM
from tiny_videos import (
    InternVLVideo,
    LlavaNextVideoVideo,
    LlavaOnevisionVideo,
    Qwen2_5VLVideo,
    Qwen2VLVideo,
    Qwen3VLVideo,
    VideoLlavaVideo,
)

PLAIN = (
    PaliGemma2,
    LlavaNextVideo,
    VideoLlava,
    AyaVision,
    Cohere2Vision,
    Ovis2,
    VideoLlama3,
    DeepseekVL,
    Janus,
    Aria,
    GotOcr2,
)
OWN = (Qwen3VLMoe, Qwen3_5, MiniCPMV4_6, Gemma4, Gemma4Shared, Granite4Vision, Ernie4_5VLMoe, Lfm2Vl, Llama4)
VIDEOS = (
    LlavaOnevisionVideo,
    LlavaNextVideoVideo,
    VideoLlavaVideo,
    Qwen2VLVideo,
    Qwen2_5VLVideo,
    Qwen3VLVideo,
    InternVLVideo,
)
#: Molmo2 came to transformers after 5.17.
NEW = (Molmo2,) if hasattr(transformers, "Molmo2Config") else ()
MORE: dict[str, Family] = {family.name: family() for family in (*PLAIN, *OWN, *NEW, *VIDEOS)}


def _is_here(family: type[Family]) -> bool:
    """Whether this release of transformers has a family that came to be tried in the survey of all classes."""
    name, since = getattr(family, "config_name", None), getattr(family, "since", (5, 17))
    return (name is None or hasattr(transformers, name)) and HERE.release[:2] >= since


def _has_timm() -> bool:
    """Whether timm can be imported, which needs a torchvision made for this torch."""
    try:
        return importlib.util.find_spec("timm") is not None and importlib.import_module("timm") is not None
    except (ImportError, RuntimeError):
        return False


HAS_TIMM = _has_timm()
#: Families of the survey of all classes (`survey.py`), refused ones among them.
SURVEYED: dict[str, Family] = {
    family.name: family() for family in (*GRIDDED, *SQUARES, *SPARSE, *(TIMM if HAS_TIMM else ())) if _is_here(family)
}
