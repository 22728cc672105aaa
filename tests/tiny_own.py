"""Tiny families whose decoder is of its own make: recurrent, mixed, fed per layer or with more inputs per token."""

from typing import ClassVar

import torch
import transformers
from families import InternVL, LlavaNext, Qwen2VL, Qwen3VL
from tiny_base import (
    BREAK,
    END,
    EXTRA,
    IMAGE,
    SLIDING,
    START,
    VIDEO,
    Family,
    clip,
    decoder,
    images,
    kinds,
    tower,
)
from transformers import (
    Ernie4_5_VLMoeConfig,
    Gemma4Config,
    Granite4VisionConfig,
    Lfm2Config,
    Lfm2VlConfig,
    Llama4Config,
    MiniCPMV4_6Config,
    Qwen3_5Config,
    Qwen3VLMoeConfig,
    Siglip2VisionConfig,
)

LINEAR = ["linear_attention", "linear_attention", "full_attention"]


class Qwen3VLMoe(Qwen3VL):
    """Qwen3-VL with experts."""

    name = "qwen3_vl_moe"
    config_class = Qwen3VLMoeConfig

    def config(self, text):
        return super().config({"num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32} | text)


class Qwen3_5(Qwen2VL):
    """Gated DeltaNet layers, which get a 2-D mask or none, between full ones; M-RoPE over half of the head."""

    name = "qwen3_5"
    config_class = Qwen3_5Config
    rope: ClassVar = {
        "rope_type": "default",
        "mrope_section": [2, 1, 1],
        "mrope_interleaved": True,
        "partial_rotary_factor": 0.5,
    }
    vision: ClassVar = {"depth": 4, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "patch_size": 4}
    vision |= {"out_hidden_size": 64, "num_position_embeddings": 64}
    linear: ClassVar = {"head_dim": 16, "linear_key_head_dim": 16, "linear_value_head_dim": 16}
    linear |= {"linear_num_key_heads": 2, "linear_num_value_heads": 4}

    def config(self, text):
        return super().config(self.linear | kinds(text, LINEAR) | text)


class MiniCPMV4_6(Qwen2VL):
    """SigLIP with a merger inside the tower and slices per image before a Qwen3.5 decoder. Unit: patches."""

    name = "minicpmv4_6"
    sizes = ((16, 16), (16, 24), (24, 12))

    def config(self, text):
        rope = {"rope_type": "default", "partial_rotary_factor": 0.5}
        text = decoder(text, rope_parameters=rope, **Qwen3_5.linear, **kinds(text, LINEAR))
        options = {"image_token_id": IMAGE, "video_token_id": VIDEO, "insert_layer_id": 1}
        text_config = text | {"model_type": "qwen3_5_text"}
        return MiniCPMV4_6Config(text_config=text_config, vision_config=tower(image_size=64), **options)

    def image_tokens(self, size, images_in_row):
        return [START, *[IMAGE] * (size[0] * size[1] // 16), END]

    def pixels(self, config, rows):
        strips = [torch.randn(3, 4, 4 * height * wide, generator=gen) for (height, wide), gen in images(rows)]
        sizes = torch.tensor([size for size, _ in images(rows)], dtype=torch.int32)
        return {"pixel_values": torch.cat(strips, dim=-1)[None], "target_sizes": sizes}

    def extras(self, input_ids, attention_mask):
        return {}


class Gemma4(Family):
    """Images of any size, attending both ways; full layers have bigger heads; inputs per layer."""

    name = "gemma4"
    sizes = ((8, 8), (6, 12), (12, 4))
    needs_4d_mask = True

    def config(self, text):
        more = {"head_dim": 16, "global_head_dim": 32, "sliding_window": 12, "hidden_size_per_layer_input": 8}
        more |= {"vocab_size_per_layer_input": 128, "use_bidirectional_attention": "vision", **kinds(text, SLIDING)}
        vision = tower(num_key_value_heads=2, head_dim=16, pooling_kernel_size=2, position_embedding_size=16)
        vision.pop("image_size")
        ids = {"image_token_id": IMAGE, "video_token_id": VIDEO, "boi_token_id": START, "eoi_token_id": END}
        ids |= {"audio_token_id": 8, "boa_token_id": 9, "eoa_token_index": 10, "tie_word_embeddings": False}
        return Gemma4Config(text_config=decoder(text, **more), vision_config=vision, **ids)

    def build(self, *args, **kwargs):
        model = super().build(*args, **kwargs)
        for name, parameter in model.named_parameters():
            if name.endswith("q_norm.weight"):  # scores are not divided by sqrt(head_dim): keep them from being chaotic
                parameter.data.mul_(0.25)
        return model

    def image_tokens(self, size, images_in_row):
        return [START, *[IMAGE] * (size[0] * size[1] // 4), END]

    def pixels(self, config, rows):
        most = 72
        pixel_values, positions = torch.zeros(len(images(rows)), most, 48), torch.full((len(images(rows)), most, 2), -1)
        for i, ((height, wide), gen) in enumerate(images(rows)):
            pixel_values[i, : height * wide] = torch.rand(height * wide, 48, generator=gen)
            positions[i, : height * wide] = torch.cartesian_prod(torch.arange(height), torch.arange(wide)).flip(-1)
        return {"pixel_values": pixel_values, "image_position_ids": positions}

    def extras(self, input_ids, attention_mask):
        return {"mm_token_type_ids": (input_ids == IMAGE).long()}


class Gemma4Shared(Gemma4):
    """As E2B and E4B: the last layer of each kind that makes keys leaves them to those behind; images are causal."""

    name = "gemma4_shared"
    needs_4d_mask = False

    def config(self, text):
        return super().config({"num_kv_shared_layers": 2, "use_bidirectional_attention": None} | text)


class Granite4Vision(LlavaNext):
    """Anyres through window Q-Formers; features of several tower layers are added before decoder layers 0 to 4."""

    name = "granite4_vision"
    salt = 700

    def config(self, text):
        vision = clip(hidden_size=64, patch_size=2)
        text = decoder(text, attention_multiplier=0.25)
        qformer = {"model_type": "blip_2_qformer", "num_hidden_layers": 1, "intermediate_size": 64}
        qformer |= {"cross_attention_frequency": 1, "use_qformer_text_input": False}
        options = {"image_token_index": IMAGE, "image_grid_pinpoints": self.pinpoints, "downsample_rate": "2/4"}
        options |= {"deepstack_layer_map": [[-2, 0]], "spatial_target_layers": [1, 2, 3, 4], "qformer_config": qformer}
        return Granite4VisionConfig(vision_config=vision, text_config=text, **options)


class Ernie4_5VLMoe(Qwen2VL):
    """Experts for text and for vision, told apart by `moe_mm_token_type_ids`, which reach every layer.

    Its 3-D positions reach the attention too, where transformers' flash path mistakes them for packed sequences.
    """

    name = "ernie4_5_vl_moe"
    flash = False
    cacheless = False
    config_class = Ernie4_5_VLMoeConfig
    token_ids: ClassVar = {"image_token_id": IMAGE, "video_token_id": VIDEO, "image_start_token_id": START}
    token_ids |= {"image_end_token_id": END, "video_start_token_id": 8, "video_end_token_id": 9}
    token_ids |= {"tie_word_embeddings": False}
    rope: ClassVar = {"rope_type": "default", "mrope_section": [3, 3, 2]}
    vision: ClassVar = {"depth": 4, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "patch_size": 4}

    def config(self, text):
        experts = {"moe_intermediate_size": [32, 16], "moe_k": 2, "moe_num_experts": 4, "moe_num_shared_experts": 1}
        return super().config(experts | text)

    def pixels(self, config, rows):
        inputs = super().pixels(config, rows)
        return inputs | {"pixel_values": inputs["pixel_values"][:, :48]}

    def extras(self, input_ids, attention_mask):
        vision = sum(input_ids == token for token in (IMAGE, START, END))
        return super().extras(input_ids, attention_mask) | {"moe_mm_token_type_ids": vision.int()}


class Lfm2Vl(Qwen2VL):
    """Images of any size; short convolutions between the attention layers, which get a 2-D mask or none."""

    name = "lfm2_vl"

    def config(self, text):
        layers = kinds(text, ["conv", "conv", "full_attention"])
        more = {"block_auto_adjust_ff_dim": False, "conv_L_cache": 3, **layers}
        vision = tower(num_patches=64, vision_use_head=False)
        vision.pop("image_size")
        text_config = Lfm2Config(**decoder(text, **more) | {"tie_word_embeddings": False})
        options = {"image_token_id": IMAGE, "projector_hidden_size": 64, "tie_word_embeddings": False}
        return Lfm2VlConfig(vision_config=Siglip2VisionConfig(**vision), text_config=text_config, **options)

    def pixels(self, config, rows):
        most = 96
        pixel_values, mask = torch.zeros(len(images(rows)), most, 48), torch.zeros(len(images(rows)), most).int()
        for i, ((height, wide), gen) in enumerate(images(rows)):
            pixel_values[i, : height * wide] = torch.randn(height * wide, 48, generator=gen)
            mask[i, : height * wide] = 1
        shapes = torch.tensor([size for size, _ in images(rows)])
        return {"pixel_values": pixel_values, "pixel_attention_mask": mask, "spatial_shapes": shapes}

    def extras(self, input_ids, attention_mask):
        return {}


class Llama4(InternVL):
    """`language_model` is a CausalLM of the top class; chunked attention, experts, complex rotary tables."""

    name = "llama4"
    flash = False
    expands = False

    def config(self, text):
        more = {"intermediate_size_mlp": 96, "head_dim": 16, "num_local_experts": 2, "attention_chunk_size": 32}
        vision = tower(image_size=32, vision_output_dim=64, projector_input_dim=64, projector_output_dim=64)
        vision |= {"intermediate_size": 128, "pixel_shuffle_ratio": 0.5}
        ids = {"image_token_index": IMAGE, "boi_token_index": START, "eoi_token_index": END}
        return Llama4Config(vision_config=vision, text_config=decoder(text, **more), **ids)

    def image_tokens(self, size, images_in_row):
        tile = [IMAGE] * 16
        grid = ([*tile, BREAK] * (size[1] - 1) + [*tile, EXTRA]) * size[0] if size != (1, 1) else []
        return [START, *grid, 8, *tile, END]


class Molmo2(Family):
    """A view of the whole and one crop, line breaks in both; image tokens attend both ways and add to embeddings."""

    name = "molmo2"
    needs_4d_mask = True

    def config(self, text):
        text = decoder(text, head_dim=16, additional_vocab_size=8)
        heads = {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
        vision = {**heads, "num_hidden_layers": 4, "intermediate_size": 64, "image_size": [32, 32], "patch_size": 4}
        adapter = {**heads, "vision_feature_layer": [-1, -2], "intermediate_size": 64, "text_hidden_size": 64}
        ids = {"image_patch_id": IMAGE, "image_start_token_id": START, "image_end_token_id": END}
        ids |= {"low_res_image_start_token_id": 8, "frame_start_token_id": 9, "frame_end_token_id": 10}
        vision |= {"num_position_embeddings": 64}
        return transformers.Molmo2Config(text_config=text, vision_config=vision, adapter_config=adapter, **ids)

    def image_tokens(self, size, images_in_row):
        view = ([IMAGE] * 4 + [BREAK]) * 4
        return [8, *view, END, START, *view, END]

    def pixels(self, config, rows):
        crops = torch.cat([torch.randn(2, 64, 48, generator=gen) for _, gen in images(rows)])
        patches = torch.arange(len(crops) * 64).view(-1, 4, 2, 4, 2).transpose(2, 3).reshape(-1, 4)
        grids = torch.full((len(images(rows)), 4), 4)
        counts = torch.full((len(grids),), 2)
        inputs = {"pixel_values": crops, "image_token_pooling": patches, "image_grids": grids}
        return inputs | {"image_num_crops": counts}

    def extras(self, input_ids, attention_mask):
        return {"mm_token_type_ids": sum(input_ids == token for token in (IMAGE, BREAK, START, END, 8)).long()}
