"""More families, as `families.py` has them: variants of those, decoders of other makes, and videos."""

import transformers
from tiny_base import Family
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
