"""The embedded model's shape, its initialisation, and how it is written to a `from_pretrained` folder."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any, cast

import torch
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
)
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaDecoderLayer

from .questions import plural
from .scenes import GRID, PATCH, SHAPES, SIZE
from .tokenizer import SPECIALS, build_processor, build_tokenizer

WIDTH = 192
_COPIES = ("pictures", "words", "pictures", "words", "", "", "", "")  # per decoder layer, see `_look_for_words`


def build_config() -> LlavaConfig:
    """A LLaVA of about 6 million parameters: 6-layer CLIP tower, MLP projector, 8-layer Llama with grouped heads."""
    tower = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=6,
        num_attention_heads=3,
        image_size=SIZE,
        patch_size=PATCH,
        hidden_act="gelu_pytorch_tanh",
    )
    text = LlamaConfig(
        vocab_size=len(build_tokenizer()),
        hidden_size=WIDTH,
        intermediate_size=512,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=48,
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=True,
        pad_token_id=SPECIALS.index("<pad>"),
        bos_token_id=SPECIALS.index("<s>"),
        eos_token_id=SPECIALS.index("</s>"),
    )
    return LlavaConfig(
        vision_config=tower,
        text_config=text,
        image_token_index=SPECIALS.index("<image>"),
        projector_hidden_act="gelu",
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=GRID * GRID,
        tie_word_embeddings=True,
    )


def _sincos(tokens: int, width: int) -> torch.Tensor:
    """Sine-cosine table of a square grid, [tokens, width]: a quarter of the channels each for sin/cos of x and y."""
    rate = 100.0 ** -(torch.arange(width // 4) / (width // 4))
    side = int(tokens**0.5)
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angles = [v.reshape(-1, 1) * rate for v in (x, y)]
    return torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)], dim=1)


def visual_signs() -> torch.Tensor:
    """Fixed random signs [WIDTH]: a visual token that means a word starts as the word's embedding times these."""
    return torch.randint(2, (WIDTH,), generator=torch.Generator().manual_seed(2)) * 2.0 - 1.0


def text_mark() -> torch.Tensor:
    """A fixed random vector [WIDTH] that every word embedding starts with in common, and no visual token."""
    return 0.4 * torch.randn(WIDTH, generator=torch.Generator().manual_seed(3))


def _look_for_words(attention: LlamaAttention, copies: str) -> None:
    """Starts the heads with two habits (mimetic initialisation, arXiv 2305.09828).

    From a word, the first query head of each group looks at the visual tokens that mean the word, and copies what
    else they mean: its query is its key behind the signs, its output the transpose of its value before the signs.
    The second one looks at the words of the text, whatever they are, and copies them.

    Args:
        attention: One layer's attention.
        copies: Which of the two copies in this layer, "pictures" or "words"; the other outputs start at zero.
    """
    head, groups, mark = attention.head_dim, attention.num_key_value_groups, text_mark()
    keys, values = (f.weight.view(-1, head, WIDTH) for f in (attention.k_proj, attention.v_proj))
    queries = attention.q_proj.weight.view(-1, groups, head, WIDTH)
    queries[:, 0] = 2.0 * keys * visual_signs()
    queries[:, 1] = 1.5 * (keys @ mark)[..., None] * mark / mark.square().sum()
    output = attention.o_proj.weight.view(WIDTH, -1, groups, head)
    if copies == "pictures":
        output[:, :, 0] = (values * visual_signs()).permute(2, 0, 1)
    elif copies == "words":
        output[:, :, 1] = values.permute(2, 0, 1)


def _relate_plurals(embedding: torch.Tensor) -> None:
    """Starts "stars" near "star": a word-level tokenizer doesn't know that they are related. [V, WIDTH], in place."""
    ids = build_tokenizer().get_vocab()
    for kind in SHAPES:
        one, many = ids[kind], ids[plural(kind)]
        embedding[many] = 0.8 * embedding[one] + 0.6 * embedding[many]


def build_model(seed: int = 0) -> LlavaForConditionalGeneration:
    """A freshly initialised model in fp32.

    Residual branches start at zero, the tower's position table as sines and cosines, and the decoder's last norm
    small, so that tied embeddings of unit size give calm logits. The decoder's heads start with `_look_for_words`.
    """
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(build_config())
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("out_proj.weight", "fc2.weight", "o_proj.weight", "down_proj.weight")):
                weight.zero_()
            elif weight.ndim == 2 and "embed" not in name:
                weight.normal_(0, weight.shape[1] ** -0.5)
            elif name.endswith("position_embedding.weight"):
                weight[1:] = 0.5 * _sincos(GRID * GRID, WIDTH)
            elif name.endswith("patch_embedding.weight"):
                weight.normal_(0, weight[0].numel() ** -0.5)
            elif name.endswith("embed_tokens.weight"):
                weight.normal_(0, 0.5)
                _relate_plurals(weight)
                weight.add_(text_mark())
        model.model.language_model.norm.weight.fill_(0.15)
        for layer, copies in zip(model.model.language_model.layers, _COPIES, strict=True):
            _look_for_words(cast(LlamaDecoderLayer, layer).self_attn, copies)
    return model


def load_packaged(
    folder: Path,
    dtype: torch.dtype | str | None,
    device: str | torch.device,
    attn_implementation: str | None,
    config: Any = None,
) -> Any:
    """Loads a packaged model, in eval mode.

    Args:
        folder: Of its weights.
        dtype: Float type of the weights; None is float32.
        device: Where the model goes.
        attn_implementation: As in transformers; None is transformers' own choice.
        config: Instead of the folder's own.
    """
    chosen: dict[str, Any] = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    chosen |= {} if config is None else {"config": config}
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype or torch.float32, **chosen)
    return model.to(device).eval()  # type: ignore[arg-type]  # transformers wraps `to` without its types


def export(state: dict[str, torch.Tensor], folder: Path) -> None:
    """Writes weights, configs, tokenizer and processor as a `from_pretrained` folder, each file replaced at once.

    Args:
        state: State dict of `build_model()`, any float type; saved as float16.
        folder: Where the files go.
    """
    model = build_model()
    model.load_state_dict(state)
    export_model(model, build_processor(), folder)


def export_model(model: PreTrainedModel, processor: Any, folder: Path) -> None:
    """Writes a model, as float16, and its processor into a folder, each file replaced at once."""
    model.half()
    model.generation_config = GenerationConfig(
        max_new_tokens=8,
        pad_token_id=SPECIALS.index("<pad>"),
        bos_token_id=SPECIALS.index("<s>"),
        eos_token_id=SPECIALS.index("</s>"),
    )
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        model.save_pretrained(temporary)
        processor.save_pretrained(temporary)
        for file in sorted(Path(temporary).iterdir()):
            os.replace(file, folder / file.name)
