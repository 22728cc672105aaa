"""Tiny random vision-language models with real processors, as `from_pretrained` folders: what users give to --model."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ImageProcessor,
    Gemma3Processor,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)

WORDS = "which colour is the disc square triangle red green blue or one two three yes no Answer with a word ? . ,"
TEMPLATE = (
    "{% for message in messages %}{% for item in message['content'] %}{% if item['type'] == 'image' %}IMAGE"
    "{% else %}{{ item['text'] }} {% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %}: {% endif %}"
)


def tokenizer(**special: str) -> PreTrainedTokenizerFast:
    names = ["<unk>", "<pad>", "<s>", "</s>", *special.values(), ":", *WORDS.split()]
    words = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token="<unk>",
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens=special,
        chat_template=TEMPLATE.replace("IMAGE", special["boi_token" if "boi_token" in special else "image_token"]),
    )


def text(**more: int) -> dict[str, int]:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
    return {**sizes, "num_key_value_heads": 2, "vocab_size": 64, "pad_token_id": 1, "eos_token_id": 3, **more}


def tower() -> dict[str, int]:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
    return {**sizes, "image_size": 32, "patch_size": 8}


def llava_next() -> tuple[LlavaNextConfig, LlavaNextProcessor]:
    words = tokenizer(image_token="<image>")
    size = {"height": 32, "width": 32}
    pinpoints = [[32, 64], [64, 32], [64, 64]]
    pictures = LlavaNextImageProcessor(size={"shortest_edge": 32}, crop_size=size, image_grid_pinpoints=pinpoints)
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**tower()),
        text_config=LlamaConfig(**text()),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=pinpoints,
        image_seq_length=16,
    )
    options = {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return config, LlavaNextProcessor(pictures, words, image_token="<image>", **options)


def gemma3() -> tuple[Gemma3Config, Gemma3Processor]:
    special = {"image_token": "<soft>", "boi_token": "<start>", "eoi_token": "<end>"}
    words = tokenizer(**special)
    config = Gemma3Config(
        vision_config=SiglipVisionConfig(**tower(), vision_use_head=False).to_dict(),
        text_config={**text(head_dim=16), "sliding_window": 16},
        image_token_index=words.convert_tokens_to_ids("<soft>"),
        boi_token_index=words.convert_tokens_to_ids("<start>"),
        eoi_token_index=words.convert_tokens_to_ids("<end>"),
        mm_tokens_per_image=4,
    )
    pictures = Gemma3ImageProcessor(size={"height": 32, "width": 32})
    return config, Gemma3Processor(pictures, words, image_seq_length=4)


CHECKPOINTS = {"llava_next": llava_next, "gemma3": gemma3}


def checkpoint(name: str, folder: Path) -> Path:
    """Write a model and its processor."""
    torch.manual_seed(0)
    config, processor = CHECKPOINTS[name]()
    model = AutoModelForImageTextToText.from_config(config)
    model.generation_config.eos_token_id = None  # random models would end anywhere
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["model_type"] == name
    return folder
