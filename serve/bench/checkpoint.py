"""LLaVA-shaped checkpoints of random weights, which the bench makes for itself and the engine loads from a folder.

The decoder has most of the work and the tower little, as in the models that they stand for; all of them are small
enough for a CPU.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForImageTextToText,
    CLIPImageProcessor,
    LlavaConfig,
    LlavaNextConfig,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from vtc.eval.bench.prefill.model import spread_out

_IMAGE, _PATCH = "<image>", 14
_SPECIAL = ("<unk>", "<pad>", "<s>", "</s>", _IMAGE)
_TEMPLATE = (
    "{% for message in messages %}{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for item in message['content'] %}{% if item['type'] in ('image', 'image_url') %}<image>"
    "{% else %}{{ item['text'] }}{% endif %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} answer:{% endif %}"
)
_DECODER = {
    "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8,
    "num_key_value_heads": 2, "head_dim": 64,
}  # fmt: skip
_TINY = {
    "hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 64,
}  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """Sizes of a checkpoint.

    Attributes:
        about: what a picture becomes.
        side: of the tower's picture, in pixels.
        pixels: side of the square pictures that it is shown.
        tiles: whether a picture is cut into tiles beside the whole, as LLaVA-NeXT does.
        decoder: sizes of the decoder.
    """

    about: str
    side: int
    pixels: int
    tiles: bool = False
    decoder: dict[str, int] = field(default_factory=lambda: _DECODER)


#: Visual tokens of a picture -> the shape.
SHAPES = {
    "64": Shape("one picture of 112 pixels, and a very small decoder", 112, 112, decoder=_TINY),
    "576": Shape("one picture of 336 pixels, as LLaVA-1.5 has it", 336, 336),
    "2880": Shape(
        "a picture and four tiles of 336 pixels, as LLaVA-NeXT has it, and 48 newlines", 336, 672, tiles=True
    ),
}


def make(name: str, folder: Path) -> None:
    """Write the checkpoint of a shape, with its processor.

    Args:
        name: one of `SHAPES`.
        folder: where to; is made.
    """
    shape, words = SHAPES[name], _tokenizer()
    side = {"height": shape.side, "width": shape.side}
    pictures: dict[str, Any] = {"size": {"shortest_edge": shape.side}, "crop_size": side}
    sizes: dict[str, Any] = {
        "vision_config": {
            "model_type": "clip_vision_model", "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4,
            "num_attention_heads": 2, "image_size": shape.side, "patch_size": _PATCH,
        },
        "text_config": {
            "model_type": "llama", "vocab_size": -(-len(words) // 64) * 64, "max_position_embeddings": 4096,
            "bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id,
            **shape.decoder,
        },
        "image_token_index": words.convert_tokens_to_ids(_IMAGE),
        "image_seq_length": (shape.side // _PATCH) ** 2,
    }  # fmt: skip
    if shape.tiles:
        one, two, three = (shape.side * times for times in (1, 2, 3))
        grids: dict[str, Any] = {
            "image_grid_pinpoints": [[one, two], [two, one], [two, two], [one, three], [three, one]]
        }
        config: Any = LlavaNextConfig(**sizes, **grids)
        image_processor: Any = LlavaNextImageProcessor(**pictures, **grids)
        processor_class: Any = LlavaNextProcessor
    else:
        config = LlavaConfig(**sizes)
        image_processor, processor_class = CLIPImageProcessor(**pictures), LlavaProcessor
    processor = processor_class(
        image_processor, words, patch_size=_PATCH, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, image_token=_IMAGE, chat_template=_TEMPLATE,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    spread_out(model)
    model.config.architectures = [type(model).__name__]
    logging.disable_progress_bar()  # of a file that takes no time
    model.save_pretrained(folder)
    logging.enable_progress_bar()
    processor.save_pretrained(folder)
    _name_as_published(folder / "model.safetensors")


def _tokenizer() -> PreTrainedTokenizerFast:
    """Bytes as tokens, and the special ones."""
    names = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *_SPECIAL]
    words = Tokenizer(models.BPE({name: number for number, name in enumerate(names)}, [], unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        extra_special_tokens={"image_token": _IMAGE}, chat_template=_TEMPLATE,
    )  # fmt: skip


def _name_as_published(path: Path) -> None:
    """Name the tower's weights as published checkpoints do, which is what the engine reads."""
    parts = ("embeddings", "encoder", "pre_layrnorm", "post_layernorm")
    weights = load_file(path)
    for part in parts:
        old, new = f"vision_tower.{part}", f"vision_tower.vision_model.{part}"
        weights = {key.replace(old, new): value for key, value in weights.items()}
    save_file(weights, path, metadata={"format": "pt"})
