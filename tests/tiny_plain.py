"""Tiny families that pass nothing per token beside embeddings, positions and a mask to their decoder."""

import itertools
from inspect import signature
from typing import ClassVar

import torch
from families import InternVL, Llava, LlavaNext, PaliGemma, Qwen2VL
from tiny_base import (
    BREAK,
    END,
    EXTRA,
    IMAGE,
    SLIDING,
    START,
    VIDEO,
    clip,
    decoder,
    images,
    kinds,
    siglip,
    square_pixels,
    tower,
)
from transformers import (
    AriaConfig,
    AyaVisionConfig,
    Cohere2Config,
    Cohere2VisionConfig,
    DeepseekVLConfig,
    Gemma2Config,
    GotOcr2Config,
    JanusConfig,
    LlamaConfig,
    LlavaNextVideoConfig,
    Ovis2Config,
    Qwen2Config,
    VideoLlama3Config,
    VideoLlavaConfig,
    VideoLlavaModel,
)


class PaliGemma2(PaliGemma):
    """A Gemma 2 decoder: a dict of 4-D masks, soft-capped attention; it knows no SDPA, so the decoder runs eager."""

    name = "paligemma2"
    needs_4d_mask = True

    def text(self, text):
        more = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 12}
        return Gemma2Config(**decoder(text, **more, **kinds(text, ["sliding_attention", "full_attention"])))

    def attention(self, attn):
        return {"": "sdpa", "text_config": "eager"} if attn == "sdpa" else attn


class LlavaNextVideo(LlavaNext):
    """As LLaVA-NeXT."""

    name = "llava_next_video"

    def config(self, text):
        options = {"image_token_index": IMAGE, "video_token_index": VIDEO, "image_grid_pinpoints": self.pinpoints}
        return LlavaNextVideoConfig(vision_config=clip(), text_config=LlamaConfig(**decoder(text)), **options)


class VideoLlava(Llava):
    """Two towers, one for images."""

    name = "video_llava"
    #: transformers calls its pictures so since 5.23.
    named = "pixel_values" if "pixel_values" in signature(VideoLlavaModel.forward).parameters else "pixel_values_images"
    config_class = VideoLlavaConfig
    options: ClassVar = {"image_seq_length": 16, "video_token_index": VIDEO}

    def pixels(self, config, rows):
        return {self.named: square_pixels(rows)}


class AyaVision(InternVL):
    """A token of text before each tile of 16 placeholders; sliding and full layers."""

    name = "aya_vision"
    config_class = AyaVisionConfig
    options: ClassVar = {"image_token_index": IMAGE}

    def config(self, text):
        text_config = Cohere2Config(**decoder(text, sliding_window=12, logit_scale=1.0, **kinds(text, SLIDING)))
        options = {"vision_config": siglip(image_size=32), "tie_word_embeddings": False, **self.options}
        return self.config_class(text_config=text_config, **options)

    def image_tokens(self, size, images_in_row):
        tiles = self.tiles(size)
        return [START, *([EXTRA] + [IMAGE] * 16) * (tiles - 1), BREAK, *[IMAGE] * 16, END]


class Cohere2Vision(AyaVision):
    """A line break after each tile."""

    name = "cohere2_vision"
    config_class = Cohere2VisionConfig
    options: ClassVar = {"image_token_id": IMAGE, "alignment_intermediate_size": 64}

    def image_tokens(self, size, images_in_row):
        return [START, *([IMAGE] * 16 + [BREAK]) * self.tiles(size), END]


class Ovis2(InternVL):
    """Visual tokens mix a visual vocabulary; the indicator tokens between tiles are replaced by features too."""

    name = "ovis2"
    indicators: ClassVar = {"image_token_id": IMAGE, "visual_indicator_token_ids": [START, EXTRA, 8, 9, END]}

    def config(self, text):
        more = {"num_visual_indicator_tokens": 5, "vocab_size": 48, "hidden_stride": 1}
        options = {"vocab_size": 128, "hidden_size": 64, "tie_word_embeddings": False, **self.indicators}
        return Ovis2Config(
            vision_config=tower(image_size=16, **more), text_config=Qwen2Config(**decoder(text)), **options
        )

    def image_tokens(self, size, images_in_row):
        tile = [IMAGE] * 16
        grid = [[*tile, 8] * (size[1] - 1) + tile + [9] for _ in range(size[0])] if size != (1, 1) else []
        return [START, *tile, EXTRA, *[*itertools.chain(*grid)][:-1], END]

    def pixels(self, config, rows):
        tiles = [torch.randn(self.tiles(size), 3, 16, 16, generator=gen) for size, gen in images(rows)]
        return {"pixel_values": torch.cat(tiles)}


class VideoLlama3(Qwen2VL):
    """Images of any size in a plain Qwen2 decoder with 1-D positions."""

    name = "video_llama_3"
    salt = 500

    def config(self, text):
        ids = {"image_token_id": IMAGE, "video_token_id": VIDEO}
        vision = tower(patch_size=4)
        vision.pop("image_size")
        return VideoLlama3Config(text_config=Qwen2Config(**decoder(text)), vision_config=vision, **ids)

    def image_tokens(self, size, images_in_row):
        return [IMAGE] * (size[0] * size[1] // 4)

    def pixels(self, config, rows):
        patches = [torch.randn(height * wide, 48, generator=gen) for (height, wide), gen in images(rows)]
        grids = torch.tensor([(1, *size) for size, _ in images(rows)])
        merge = torch.full((len(grids),), 2)
        return {"pixel_values": torch.cat(patches), "image_grid_thw": grids, "image_merge_sizes": merge}

    def extras(self, input_ids, attention_mask):
        return {}


class DeepseekVL(Llava):
    """SigLIP and Llama."""

    name = "deepseek_vl"

    def config(self, text):
        options = {"image_token_id": IMAGE, "tie_word_embeddings": False}
        return DeepseekVLConfig(vision_config=siglip(), text_config=LlamaConfig(**decoder(text)), **options)


class Janus(Llava):
    """A tower of its own; the generator of images beside it lies idle."""

    name = "janus"

    def config(self, text):
        vision = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "mlp_ratio": 2.0}
        vision |= {"image_size": 16, "patch_size": 4, "projection_dim": 64, "num_image_tokens": 16}
        vq = {"base_channels": 32, "channel_multiplier": [1, 1], "num_embeddings": 32, "num_patches": 4}
        vq |= {"latent_channels": 32, "projection_dim": 64, "image_token_embed_dim": 64}
        options = {"image_token_id": IMAGE, "tie_word_embeddings": False, "vision_config": vision, "vq_config": vq}
        return JanusConfig(text_config=decoder(text) | {"model_type": "llama"}, **options)

    def image_tokens(self, size, images_in_row):
        return [START, *[IMAGE] * 16, END]


class Aria(Llava):
    """A resampler of 16 queries per image; experts in the decoder."""

    name = "aria"

    def config(self, text):
        experts = {"moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 1}
        vision = {"model_type": "idefics3_vision", **tower(image_size=32)}
        options = {"image_token_index": IMAGE, "projector_patch_to_query_dict": {64: 16}}
        text_config = decoder(text, **experts) | {"model_type": "aria_text"}
        return AriaConfig(vision_config=vision, text_config=text_config, **options)

    def pixels(self, config, rows):
        pixel_values = square_pixels(rows, 32)
        return {"pixel_values": pixel_values, "pixel_mask": torch.ones(len(pixel_values), 32, 32, dtype=torch.bool)}


class GotOcr2(Llava):
    """A SAM tower with windows and convolutions: no CLS, no attention interface (always eager)."""

    name = "got_ocr2"
    flash = False

    def config(self, text):
        vision = {"hidden_size": 32, "output_channels": 16, "num_hidden_layers": 4, "num_attention_heads": 2}
        vision |= {"image_size": 64, "patch_size": 4, "window_size": 4, "global_attn_indexes": [1, 3], "mlp_dim": 64}
        options = {"image_token_index": IMAGE, "image_seq_length": 16, "tie_word_embeddings": False}
        return GotOcr2Config(vision_config=vision, text_config=Qwen2Config(**decoder(text)), **options)

    def image_tokens(self, size, images_in_row):
        return [START, *[IMAGE] * 16, END]

    def pixels(self, config, rows):
        return {"pixel_values": square_pixels(rows, 64)}

    def attention(self, attn):
        return {"": "eager", "text_config": attn, "vision_config": "eager"}
