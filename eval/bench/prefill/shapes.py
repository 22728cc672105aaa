"""Models of the sizes that papers measure, with random weights, and inputs for them made without a processor.

What depends on the sizes alone, which is nearly all of the time, is that of the real model. What a method decides by
what it sees is not. Where it chooses how many tokens stay (`flowcut` in the tower's first blocks, `holitom`,
`tokencorr`, `atp`), equivalent tokens and FLOPs tell what it chose here.
"""

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaNextConfig,
    LlavaOnevisionConfig,
    PreTrainedConfig,
    Qwen2_5_VLConfig,
    Qwen2Config,
    SiglipVisionConfig,
)

from vtc.eval.cli.errors import InputError

#: Ids that are no text; all others of the vocabulary are.
IMAGE, VIDEO, START, END = range(4)
#: Text tokens in front of and behind the visual ones.
BEFORE, AFTER = 10, 20
#: A video: noise in each frame, frames from one cut to the next.
NOISE, SHOT = 0.3, 16

_IDS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}

VICUNA_7B = {
    **{"vocab_size": 32064, "hidden_size": 4096, "intermediate_size": 11008, "max_position_embeddings": 4096},
    **{"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, **_IDS},
}
QWEN2_7B = {
    **{"vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "max_position_embeddings": 32768},
    **{"num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, **_IDS},
}
CLIP_L = {
    **{"hidden_size": 1024, "intermediate_size": 4096, "projection_dim": 768, "image_size": 336, "patch_size": 14},
    **{"num_hidden_layers": 24, "num_attention_heads": 16},
}
SIGLIP = {
    **{"hidden_size": 1152, "intermediate_size": 4304, "image_size": 384, "patch_size": 14},
    **{"num_hidden_layers": 26, "num_attention_heads": 16, "vision_use_head": False},
}
QWEN2_5_TOWER = {
    **{"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584},
    **{"patch_size": 14, "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31]},
}

#: What makes the same models tiny: as many layers, since methods name layers, but hardly anything in them.
_TINY_DECODER = {
    **{"vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "max_position_embeddings": 1024},
    **{"num_attention_heads": 4, "num_key_value_heads": 2},
}
_TINY_TOWER = {
    **{"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "image_size": 32, "patch_size": 4},
}
_TINY_QWEN2_5_TOWER = {
    **{"hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64},
    **{"patch_size": 4, "window_size": 16},
}


@dataclass(frozen=True)
class Shape:
    """A model's sizes, and what it is shown.

    Attributes:
        name: what --shape takes.
        decoder, tower: arguments of their configurations.
    """

    name: str
    decoder: Mapping[str, Any]
    tower: Mapping[str, Any]

    def config(self) -> PreTrainedConfig:
        """The model's configuration."""
        raise NotImplementedError

    def tokens(self) -> list[int]:
        """Ids between the text: the placeholders of one image or video, with what opens and closes it."""
        raise NotImplementedError

    def pixels(self, batch: int) -> dict[str, Tensor]:
        """What the tower is shown, in float32 on the CPU."""
        raise NotImplementedError

    def inputs(self, batch: int) -> dict[str, Tensor]:
        """What the model takes for `batch` rows: an image or a video each, text before and after, nothing padded."""
        torch.manual_seed(0)
        visual = torch.tensor(self.tokens()).expand(batch, -1)
        text = torch.randint(END + 1, self.decoder["vocab_size"], (batch, BEFORE + AFTER))
        ids = torch.cat([text[:, :BEFORE], visual, text[:, BEFORE:]], dim=1)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **self.pixels(batch)}

    @property
    def _side(self) -> int:
        """Patches along a side of what the tower sees at once."""
        return int(self.tower["image_size"]) // int(self.tower["patch_size"])


class Llava(Shape):
    """CLIP and Llama: one square picture."""

    def config(self) -> PreTrainedConfig:
        """A LLaVA."""
        options: dict[str, Any] = {"image_token_index": IMAGE, "image_seq_length": self._side**2}
        return LlavaConfig(
            vision_config=CLIPVisionConfig(**self.tower), text_config=LlamaConfig(**self.decoder), **options
        )

    def tokens(self) -> list[int]:
        """One for each patch."""
        return [IMAGE] * self._side**2

    def pixels(self, batch: int) -> dict[str, Tensor]:
        """[B, 3, side, side]."""
        return {"pixel_values": torch.randn(batch, 3, self.tower["image_size"], self.tower["image_size"])}


class LlavaNext(Shape):
    """CLIP and Llama: a square picture of twice the tower's side, as a thumbnail and 2 x 2 tiles.

    At 336 pixels these are 5 x 576 = 2880 tokens and, as transformers has them, a newline behind each of the 48 rows of
    the joined tiles: 2928. No padding is taken off.
    """

    def config(self) -> PreTrainedConfig:
        """A LLaVA-NeXT that knows this one size."""
        options: dict[str, Any] = {"image_token_index": IMAGE, "image_grid_pinpoints": [[self._pixels, self._pixels]]}
        return LlavaNextConfig(
            vision_config=CLIPVisionConfig(**self.tower), text_config=LlamaConfig(**self.decoder), **options
        )

    def tokens(self) -> list[int]:
        """Thumbnail, tiles, newlines."""
        side = self._side
        return [IMAGE] * (side**2 + 2 * side * (2 * side + 1))

    def pixels(self, batch: int) -> dict[str, Tensor]:
        """Thumbnail and tiles [B, 5, 3, side, side], and the picture's size."""
        side = self.tower["image_size"]
        sizes = torch.full((batch, 2), self._pixels)
        return {"pixel_values": torch.randn(batch, 5, 3, side, side), "image_sizes": sizes}

    @property
    def _pixels(self) -> int:
        return 2 * int(self.tower["image_size"])


@dataclass(frozen=True)
class Qwen2_5VL(Shape):
    """The Qwen2.5-VL tower with its windows, and Qwen2.5: one picture.

    Attributes:
        patches: (height, width) of the picture, in patches of which 2 x 2 make a token.
    """

    patches: tuple[int, int]

    def config(self) -> PreTrainedConfig:
        """A Qwen2.5-VL."""
        head = self.decoder["hidden_size"] // self.decoder["num_attention_heads"]
        sections = [head // 8, 3 * head // 16, 3 * head // 16]  # 16, 24, 24 of half a head of 128
        rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections}
        ids: dict[str, Any] = {"image_token_id": IMAGE, "video_token_id": VIDEO}
        ids |= {"vision_start_token_id": START, "vision_end_token_id": END}
        text = {**self.decoder, "rope_parameters": rope}
        return Qwen2_5_VLConfig(text_config=text, vision_config=dict(self.tower), **ids)

    def tokens(self) -> list[int]:
        """One for each 2 x 2 patches, between start and end."""
        return [START, *[IMAGE] * (math.prod(self.patches) // 4), END]

    def pixels(self, batch: int) -> dict[str, Tensor]:
        """Flattened patches [B · patches, values], their grid, and which tokens are visual."""
        values = 3 * 2 * self.tower["patch_size"] ** 2  # each picture is shown as two frames
        grid = torch.tensor([(1, *self.patches)]).expand(batch, -1)
        kinds = torch.tensor([0] * BEFORE + [int(each == IMAGE) for each in self.tokens()] + [0] * AFTER)
        return {
            "pixel_values": torch.randn(batch * math.prod(self.patches), values),
            "image_grid_thw": grid,
            "mm_token_type_ids": kinds.expand(batch, -1),
        }


@dataclass(frozen=True)
class LlavaOnevisionVideo(Shape):
    """SigLIP and Qwen2: one video whose frames are pooled 2 x 2, and a newline at its end.

    A frame is a still picture with noise, over which a square moves; every 16 frames both change.

    Attributes:
        frames: of the video.
    """

    frames: int

    def config(self) -> PreTrainedConfig:
        """A LLaVA-OneVision."""
        options: dict[str, Any] = {"image_token_index": IMAGE, "video_token_index": VIDEO}
        return LlavaOnevisionConfig(
            vision_config=SiglipVisionConfig(**self.tower), text_config=Qwen2Config(**self.decoder), **options
        )

    def tokens(self) -> list[int]:
        """Those of all frames, and the newline."""
        return [VIDEO] * (self.frames * math.ceil(self._side / 2) ** 2 + 1)

    def pixels(self, batch: int) -> dict[str, Tensor]:
        """Frames [B, T, 3, side, side]."""
        side = self.tower["image_size"]
        video = NOISE * torch.randn(batch, self.frames, 3, side, side)
        for frame in range(self.frames):
            if frame % SHOT == 0:
                picture, square = torch.randn(batch, 3, side, side), torch.randn(batch, 3, side // 2, side // 2)
            start = frame % SHOT * (side // 2) // SHOT
            moved = picture.clone()
            moved[..., start : start + side // 2, start : start + side // 2] = square
            video[:, frame] += moved
        return {"pixel_values_videos": video}


SHAPES: dict[str, Shape] = {
    shape.name: shape
    for shape in (
        Llava("llava-1.5-7b", VICUNA_7B, CLIP_L),
        LlavaNext("llava-next-7b", VICUNA_7B, CLIP_L),
        Qwen2_5VL("qwen2.5-vl-7b", QWEN2_7B, QWEN2_5_TOWER, patches=(96, 120)),  # 1344 x 1680 pixels, 2880 tokens
        LlavaOnevisionVideo("llava-onevision-7b-video", QWEN2_7B, SIGLIP, frames=32),  # 6272 tokens and the newline
    )
}

TINY: tuple[Shape, ...] = (
    Llava("tiny-llava-1.5", {**VICUNA_7B, **_TINY_DECODER}, {**CLIP_L, **_TINY_TOWER}),
    LlavaNext("tiny-llava-next", {**VICUNA_7B, **_TINY_DECODER}, {**CLIP_L, **_TINY_TOWER}),
    Qwen2_5VL(
        "tiny-qwen2.5-vl",
        {**QWEN2_7B, **_TINY_DECODER},
        {**QWEN2_5_TOWER, **_TINY_QWEN2_5_TOWER},
        patches=(16, 16),
    ),
    LlavaOnevisionVideo(
        "tiny-llava-onevision-video", {**QWEN2_7B, **_TINY_DECODER}, {**SIGLIP, **_TINY_TOWER}, frames=8
    ),
)

TINY_NAME = "tiny"


def named(name: str) -> tuple[Shape, ...]:
    """The shapes of a name: itself, or for "tiny" all four in miniature.

    Raises:
        InputError: unknown name.
    """
    if name == TINY_NAME:
        return TINY
    if name not in SHAPES:
        known = [*SHAPES, TINY_NAME]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise InputError(f"argument --shape: unknown shape {name!r}; {hint}known: {', '.join(known)}")
    return (SHAPES[name],)
