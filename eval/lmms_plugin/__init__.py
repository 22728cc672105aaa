"""lmms-eval runs compressed: `lmms-eval --model llava_hf --model_args pretrained=…,compress=divprune:keep=0.25 …`.

The entry point `lmms_eval.models` puts a subclass in the place of each wrapper that holds a transformers model. The
model's name stays, and with it lmms-eval's prompts, which depend on the name. Without `compress` nothing is different.
"""

from typing import Any

#: lmms-eval's names of wrappers whose `model` is a transformers model that they call `generate` of.
WRAPPERS = (
    "llava_hf", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "internvl_hf", "huggingface", "gemma3", "gemma4",
    "glm4v", "mistral3_vl", "video_llava", "aria", "llama4_scout",
)  # fmt: skip


def manifests() -> list[Any]:
    """What lmms-eval asks the entry point for: `ModelManifest`s that take the places of its own."""
    from lmms_eval import models
    from lmms_eval.models.registry_v2 import ModelManifest

    known = {"simple": models.AVAILABLE_SIMPLE_MODELS, "chat": models.AVAILABLE_CHAT_TEMPLATE_MODELS}
    found = []
    for name in WRAPPERS:
        paths = {f"{kind}_class_path": f"{__name__}.wrappers.{kind}__{name}" for kind in known if name in known[kind]}
        if paths:
            found.append(ModelManifest(name, **paths))
    return found
