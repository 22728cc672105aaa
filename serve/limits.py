"""What an engine may be started with beside pruning: the rest was never seen to be right, and is refused at start."""

from typing import Any

from vtc.serve.served import Served


def check_engine(vllm_config: Any, served: Served) -> None:
    """Refuse an engine under whose other settings pruning would be wrong.

    Raises:
        ValueError: names the setting, and the way out.
    """
    mm, parallel = vllm_config.model_config.multimodal_config, vllm_config.parallel_config
    name, way_out = served.setting.selector.name, "or serve a method that does not read the tower, such as 'divprune'"
    if getattr(vllm_config.compilation_config, "cudagraph_mm_encoder", False):
        raise ValueError("vtc: cudagraph_mm_encoder=True goes past the place where tokens are removed; leave it off")
    if mm.get_video_pruning_spec() is not None:
        raise ValueError("vtc: --video-pruning-rate removes video tokens too; leave one of the two out")
    lora = vllm_config.lora_config
    if lora is not None and lora.enable_tower_connector_lora:
        raise ValueError("vtc: LoRA of the vision tower counts the tokens that are left as all; leave it off")
    if served.reads_tower:
        if parallel.tensor_parallel_size > 1:
            raise ValueError(
                f"vtc: {name} reads the vision tower's attention, of which each of {parallel.tensor_parallel_size} "
                f"tensor-parallel ranks has some heads; serve with one, {way_out}"
            )
        if getattr(vllm_config.compilation_config, "compile_mm_encoder", False):
            raise ValueError(f"vtc: {name} can't see into a compiled tower; leave compile_mm_encoder off, {way_out}")
        if getattr(mm, "mm_encoder_attn_dtype", None) == "fp8":
            raise ValueError(f"vtc: {name} reads q and k of the tower, which are fp8 here; leave that off, {way_out}")
    if vllm_config.model_config.uses_mrope:
        if parallel.pipeline_parallel_size > 1:
            raise ValueError(
                "vtc: with M-RoPE, later pipeline stages are not told the positions of kept tokens; serve with "
                "--pipeline-parallel-size 1"
            )
        if vllm_config.speculative_config is not None:
            raise ValueError("vtc: with M-RoPE, positions of drafted tokens were never checked; leave speculation off")
