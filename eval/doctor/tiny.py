"""Tiny random models in the shapes of five families, and prompts made by hand: nothing is downloaded."""

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    Gemma3Config,
    InternVLConfig,
    InternVLVisionConfig,
    LlamaConfig,
    LlavaConfig,
    PreTrainedConfig,
    Qwen2_5_VLConfig,
    Qwen2Config,
    Qwen3VLConfig,
    SiglipVisionConfig,
)

from vtc.eval.doctor.subject import Subject

_VOCABULARY, _FIRST_TEXT = 96, 16
_PAD, _BOS, _IMAGE, _VIDEO, _START, _END = range(6)
#: Tokens of text in front of the picture and behind it, of the two prompts.
_TEXTS = ((3, 6), (5, 9))


@dataclass(frozen=True)
class Tiny:
    """A family in miniature; each picture is 16 tokens.

    Attributes:
        config: makes the configuration.
        pixels: makes the tower's inputs of one picture from random numbers, those of several to be put together.
        marks: the argument that marks placeholders among the tokens; None where the family takes none.
    """

    config: Callable[[], PreTrainedConfig]
    pixels: Callable[[torch.Generator], dict[str, Tensor]]
    marks: str | None = None

    def subject(self, name: str, dtype: torch.dtype, device: str) -> Subject:
        """The model with its prompts."""
        model: Any = AutoModelForImageTextToText.from_config(self.config(), dtype=dtype).eval()
        randomize(model)
        model.to(device)
        generation = model.generation_config
        generation.eos_token_id, generation.bos_token_id, generation.pad_token_id = None, _BOS, _PAD

        def inputs(*rows: int) -> dict[str, Any]:
            made = self._inputs(*rows)
            return {k: v.to(device, dtype if v.is_floating_point() else v.dtype) for k, v in made.items()}

        return Subject(name, model, (inputs(0), inputs(1)), inputs(0, 1))

    def _inputs(self, *rows: int) -> dict[str, Tensor]:
        """What a processor would make of some of the prompts, padded on the left."""
        generators = [torch.Generator().manual_seed(row + 1) for row in rows]
        pixels = [self.pixels(generator) for generator in generators]
        texts = [_prompt(row, generator) for row, generator in zip(rows, generators)]
        longest = max(map(len, texts))
        ids = torch.stack([torch.nn.functional.pad(text, (longest - len(text), 0), value=_PAD) for text in texts])
        made = {"input_ids": ids, "attention_mask": (ids != _PAD).long()}
        made |= {key: torch.cat([each[key] for each in pixels]) for key in pixels[0]}
        return made | ({self.marks: (ids == _IMAGE).long()} if self.marks else {})


def _prompt(row: int, generator: torch.Generator) -> Tensor:
    """Ids of a prompt: text, the picture, text."""
    before, after = (torch.randint(_FIRST_TEXT, _VOCABULARY, (n,), generator=generator) for n in _TEXTS[row])
    return torch.cat([torch.tensor([_BOS]), before, torch.tensor([_START, *[_IMAGE] * 16, _END]), after])


@torch.no_grad()
def randomize(model: Any, seed: int = 0) -> None:
    """Draw all weights so that every token and layer matters.

    Matrices get a standard deviation of 1 / sqrt(fan in), token embeddings (untied in all families, so that a model
    doesn't just repeat itself) of 1 as the decoder sees them, and vectors are shaken around their initial value. Each
    parameter's values depend on its name and `seed` only.
    """
    embeddings = model.get_input_embeddings()
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode()) + seed))
        if parameter.ndim < 2:
            parameter.add_(0.1 * noise)
        elif parameter is embeddings.weight:
            parameter.copy_(noise / getattr(embeddings, "embed_scale", 1.0))
        else:
            parameter.copy_(noise * (len(parameter) / parameter.numel()) ** 0.5)


def _decoder(**more: Any) -> dict[str, Any]:
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4}
    ids = {"vocab_size": _VOCABULARY, "pad_token_id": _PAD, "bos_token_id": _BOS, "eos_token_id": None}
    return {**sizes, **ids, "num_key_value_heads": 2, "max_position_embeddings": 512, **more}


def _tower(side: int) -> dict[str, Any]:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2}
    return {**sizes, "image_size": side, "patch_size": side // 4 if side < 32 else 4}


def _square(side: int) -> Callable[[torch.Generator], dict[str, Tensor]]:
    return lambda generator: {"pixel_values": torch.randn(1, 3, side, side, generator=generator)}


def _patches(generator: torch.Generator) -> dict[str, Tensor]:
    """8 x 8 patches of 2 frames of 4 x 4 pixels; 2 x 2 of them make a token."""
    pixels = torch.randn(64, 3 * 2 * 4 * 4, generator=generator)
    return {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, 8, 8]])}


def _llava() -> PreTrainedConfig:
    vision, text = CLIPVisionConfig(**_tower(16)), LlamaConfig(**_decoder())
    return LlavaConfig(vision_config=vision, text_config=text, image_token_index=_IMAGE, image_seq_length=16)


def _internvl() -> PreTrainedConfig:
    vision, text = InternVLVisionConfig(**_tower(32)), Qwen2Config(**_decoder())
    ids: dict[str, Any] = {"image_token_id": _IMAGE, "image_seq_length": 16}
    return InternVLConfig(vision_config=vision, text_config=text, tie_word_embeddings=False, **ids)


def _gemma3() -> PreTrainedConfig:
    """Placeholders see each other both ways; a sliding window shorter than the picture in every other layer."""
    kinds = ["sliding_attention", "full_attention"] * 2
    text = _decoder(head_dim=16, query_pre_attn_scalar=16, sliding_window=12, layer_types=kinds)
    ids: dict[str, Any] = {"image_token_index": _IMAGE, "boi_token_index": _START, "eoi_token_index": _END}
    vision = SiglipVisionConfig(**_tower(32), vision_use_head=False)
    options: dict[str, Any] = {"mm_tokens_per_image": 16, "tie_word_embeddings": False}
    return Gemma3Config(text_config=text, vision_config=vision, **options, **ids)


_QWEN_IDS: dict[str, Any] = {
    "image_token_id": _IMAGE,
    "video_token_id": _VIDEO,
    "vision_start_token_id": _START,
    "vision_end_token_id": _END,
}
_QWEN_TOWER: dict[str, Any] = {"depth": 4, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "patch_size": 4}


def _qwen2_5_vl() -> PreTrainedConfig:
    vision = {**_QWEN_TOWER, "out_hidden_size": 64, "window_size": 16, "fullatt_block_indexes": [1, 3]}
    text = _decoder(rope_parameters={"rope_type": "default", "mrope_section": [2, 3, 3]})
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, **_QWEN_IDS)


def _qwen3_vl() -> PreTrainedConfig:
    """Features of two tower blocks are added behind the first two decoder layers."""
    vision = {**_QWEN_TOWER, "out_hidden_size": 64, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 2]}
    rope = {"rope_type": "default", "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    return Qwen3VLConfig(text_config=_decoder(head_dim=16, rope_parameters=rope), vision_config=vision, **_QWEN_IDS)


TINY = {
    "llava": Tiny(_llava, _square(16)),
    "internvl": Tiny(_internvl, _square(32)),
    "gemma3": Tiny(_gemma3, _square(32), "token_type_ids"),
    "qwen2_5_vl": Tiny(_qwen2_5_vl, _patches, "mm_token_type_ids"),
    "qwen3_vl": Tiny(_qwen3_vl, _patches, "mm_token_type_ids"),
}


def subjects(dtype: torch.dtype, device: str) -> Iterator[Subject]:
    """The models, one after another."""
    for name, tiny in TINY.items():
        yield tiny.subject(f"tiny {name}", dtype, device)
