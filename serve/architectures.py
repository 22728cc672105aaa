"""The models that can be served: the engine's own classes, with ours in front."""

import functools
import importlib
from dataclasses import dataclass
from typing import Any

#: What our names begin with in the engine's registry.
PREFIX = "Vtc"


@dataclass(frozen=True)
class Architecture:
    """One of the engine's models.

    Attributes:
        module: where its class is.
        name: of the class.
        mrope: whether positions have several axes.
    """

    module: str
    name: str
    mrope: bool = False


_MODELS = "vllm.model_executor.models."

#: The name in a checkpoint's config -> what the engine runs.
ARCHITECTURES = {
    "LlavaForConditionalGeneration": Architecture(f"{_MODELS}llava", "LlavaForConditionalGeneration"),
    "LlavaNextForConditionalGeneration": Architecture(f"{_MODELS}llava_next", "LlavaNextForConditionalGeneration"),
    "LlavaOnevisionForConditionalGeneration": Architecture(
        f"{_MODELS}llava_onevision", "LlavaOnevisionForConditionalGeneration"
    ),
    "Qwen2VLForConditionalGeneration": Architecture(f"{_MODELS}qwen2_vl", "Qwen2VLForConditionalGeneration", True),
    "Qwen2_5_VLForConditionalGeneration": Architecture(
        f"{_MODELS}qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration", True
    ),
    "Qwen3VLForConditionalGeneration": Architecture(f"{_MODELS}qwen3_vl", "Qwen3VLForConditionalGeneration", True),
    "Qwen3VLMoeForConditionalGeneration": Architecture(
        f"{_MODELS}qwen3_vl_moe", "Qwen3VLMoeForConditionalGeneration", True
    ),
    "InternVLForConditionalGeneration": Architecture(f"{_MODELS}interns1", "InternS1ForConditionalGeneration"),
}


def stock(architecture: str) -> type[Any]:
    """The engine's own class."""
    row = ARCHITECTURES[architecture]
    return getattr(importlib.import_module(row.module), row.name)


@functools.cache
def pruned(architecture: str) -> type[Any]:
    """The engine's class with pruning in front, and its processor likewise."""
    from vllm.multimodal import MULTIMODAL_REGISTRY

    from vtc.serve.cpu import open_gate
    from vtc.serve.model import PruningModel
    from vtc.serve.positions import PruningMRopeModel
    from vtc.serve.processor import pruning

    open_gate()
    base = stock(architecture)
    front = PruningMRopeModel if ARCHITECTURES[architecture].mrope else PruningModel
    made = type(PREFIX + architecture, (front, base), {"__module__": "vtc.serve.models"})
    factories = base._processor_factory

    def info(ctx: Any) -> Any:
        return pruning(factories.info(ctx).__class__)(ctx)

    def processor(processing_info: Any, dummy_inputs: Any) -> Any:
        return pruning(factories.processor(processing_info, dummy_inputs).__class__)(processing_info, dummy_inputs)

    register = MULTIMODAL_REGISTRY.register_processor(
        processor, info=info, dummy_inputs=lambda given: factories.dummy_inputs(given)
    )
    return register(made)
