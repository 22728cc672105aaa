"""Qwen2.5-VL in miniature: Qwen's own classes with random weights, so that what it says has no sense."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

MARKS = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
MARKS |= {"vision_start_token": "<|vision_start|>", "vision_end_token": "<|vision_end|>"}
WORDS = "what is in the picture and where a an big small red green blue yellow disc star cup left of right above ?"
NAMES = ["<pad>", "<unk>", *MARKS.values(), *WORDS.split()]
TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}<|vision_start|><|image_pad|><|vision_end|>{% endif %}"
    "{% endfor %}{% endfor %}"
)
PATCH = 4
TEXT = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4}
TEXT |= {"num_key_value_heads": 2, "initializer_range": 0.3, "eos_token_id": None, "bos_token_id": None}
TEXT |= {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]}}
VISION = {"depth": 4, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64}
VISION |= {"fullatt_block_indexes": [1, 3], "initializer_range": 0.3}


class PictureProcessor(Qwen2_5_VLProcessor):
    """Qwen2.5-VL's processor without its part for videos, which needs torchvision."""

    @classmethod
    def get_attributes(cls) -> list[str]:
        """What it is made of."""
        return ["image_processor", "tokenizer"]


def tiny(patch: int = PATCH, most: int = 128**2) -> tuple[Qwen2_5_VLForConditionalGeneration, PictureProcessor]:
    """The model and its processor; a token is two patches wide and high, a picture has `most` pixels at most."""
    words = Tokenizer(models.WordLevel({name: number for number, name in enumerate(NAMES)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", extra_special_tokens=MARKS, padding_side="left"
    )
    pictures = Qwen2VLImageProcessorPil(patch_size=patch, min_pixels=patch**2, max_pixels=most)
    ids = {f"{name}_id": NAMES.index(mark) for name, mark in MARKS.items()}
    torch.manual_seed(0)
    vision = {**VISION, "patch_size": patch, "window_size": 4 * patch}
    config = Qwen2_5_VLConfig(text_config={**TEXT, "vocab_size": len(NAMES)}, vision_config=vision, **ids)
    model = Qwen2_5_VLForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id = None
    return model, PictureProcessor(pictures, tokenizer, chat_template=TEMPLATE)
