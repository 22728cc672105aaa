"""The clip model's shape: LLaVA-OneVision with the embedded model's tower, and its decoder behind two new layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaDecoderLayer

from vtc.eval import embedded
from vtc.eval.embedded.model import WIDTH, export_model
from vtc.eval.embedded.model import build_config as picture_config
from vtc.eval.embedded.scenes import SIZE

from .processor import build_processor, build_tokenizer
from .sample import FRAMES

NEW_LAYERS = 2  # decoder layers in front of the embedded model's


def build_config() -> LlavaOnevisionConfig:
    """About 7 million parameters: CLIP tower, 64 pooled tokens per frame, a Llama of 10 layers."""
    config, ids = picture_config(), build_tokenizer().get_vocab()
    text: Any = config.text_config
    text.num_hidden_layers += NEW_LAYERS
    text.vocab_size = len(ids)
    return LlavaOnevisionConfig(
        vision_config=config.vision_config,
        text_config=text,
        image_token_index=ids["<image>"],
        video_token_index=ids["<video>"],
        projector_hidden_act="gelu",
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        vision_aspect_ratio="anyres_max_9",
        image_grid_pinpoints=[[SIZE, SIZE]],
        tie_word_embeddings=True,
    )


def config_for(folder: Path, frames: int) -> LlavaOnevisionConfig:
    """The packaged model's config; where clips have more frames than it was trained on, positions are scaled down."""
    config = LlavaOnevisionConfig.from_pretrained(folder)
    if frames > FRAMES:
        text: Any = config.text_config
        text.rope_parameters = {**text.rope_parameters, "rope_type": "linear", "factor": frames / FRAMES}
        text.max_position_embeddings = text.max_position_embeddings * frames // FRAMES
    return config


def _renamed(name: str) -> str:
    """The clip model's name of one of the embedded model's weights: its layers stand behind the new ones."""
    start = "model.language_model.layers."
    if not name.startswith(start):
        return name
    index, rest = name.removeprefix(start).split(".", 1)
    return f"{start}{int(index) + NEW_LAYERS}.{rest}"


def build_model(seed: int = 0) -> LlavaOnevisionForConditionalGeneration:
    """A model in fp32 that starts from the packaged embedded model; what is new adds nothing to its features yet."""
    torch.manual_seed(seed)
    model = LlavaOnevisionForConditionalGeneration(build_config())
    pictures = embedded.load()[0].state_dict()
    old = {_renamed(name): weight for name, weight in pictures.items() if "embed_tokens" not in name}
    model.load_state_dict({n: w for n, w in old.items() if "lm_head" not in n}, strict=False)
    table = pictures["model.language_model.embed_tokens.weight"]
    with torch.no_grad():
        words = model.model.language_model.embed_tokens.weight
        words.normal_(0, 0.5)
        words.add_(table.mean(dim=0))
        words[: len(table)] = table
        model.model.image_newline.normal_(0, 0.5)
        for layer in model.model.language_model.layers[:NEW_LAYERS]:
            for name, weight in layer.named_parameters():
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    weight.zero_()
                elif weight.ndim == 2:
                    weight.normal_(0, weight.shape[1] ** -0.5)
            _look_for_the_like(cast(LlamaDecoderLayer, layer).self_attn)
    return model


def _look_for_the_like(attention: LlamaAttention) -> None:
    """Starts the heads with a habit: from a token to earlier ones that are like it, and copy what they are, turned.

    A thing that moves is then told from one that stays by what differs between a token and its copy.
    """
    head, groups = attention.head_dim, attention.num_key_value_groups
    keys, values = (f.weight.view(-1, head, WIDTH) for f in (attention.k_proj, attention.v_proj))
    attention.q_proj.weight.view(-1, groups, head, WIDTH)[:] = 1.5 * keys[:, None]
    turn = torch.linalg.qr(torch.randn(WIDTH, WIDTH))[0]
    output = attention.o_proj.weight.view(WIDTH, -1, groups, head)
    output[:, :, 0] = 0.5 * torch.einsum("ij,khj->ikh", turn, values)


def see(model: LlavaOnevisionForConditionalGeneration, pixels: Tensor) -> Tensor:
    """Tower, projector and pooling as the model does. [B, F, 3, 224, 224] -> [B, F * 64, D], without the newline."""
    return model.model.get_video_features(pixels).pooler_output[:, :-1]


def export(state: dict[str, Tensor], folder: Path) -> None:
    """Writes weights, configs, tokenizer and processor as a `from_pretrained` folder, each file replaced at once."""
    model = LlavaOnevisionForConditionalGeneration(build_config())
    model.load_state_dict(state)
    export_model(model, build_processor(), folder)
