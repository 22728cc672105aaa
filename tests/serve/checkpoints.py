"""Tiny random models as folders that vLLM and transformers both load, each with its processor."""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForImageTextToText,
    CLIPImageProcessor,
    CLIPVisionConfig,
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLProcessor,
    InternVLVideoProcessor,
    InternVLVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaNextConfig,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLProcessor,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLMoeConfig,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    SiglipVisionConfig,
)

TEMPLATE = (
    "{% for message in messages %}{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for item in message['content'] %}{% if item['type'] in ('image', 'image_url') %}IMAGE"
    "{% elif item['type'] in ('video', 'video_url') %}VIDEO"
    "{% else %}{{ item['text'] }}{% endif %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} answer:{% endif %}"
)

QWEN_SPECIAL = {
    "vision_bos_token": "<|vision_start|>",
    "vision_eos_token": "<|vision_end|>",
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
}
QWEN_SHOWN = {kind: f"<|vision_start|><|{kind}_pad|><|vision_end|>" for kind in ("image", "video")}


def tokenizer(shown: dict[str, str], **special: str) -> PreTrainedTokenizerFast:
    """Bytes as tokens, and the special ones."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*letters, "<unk>", "<pad>", "<s>", "</s>", *special.values()]
    words = Tokenizer(models.BPE({name: number for number, name in enumerate(names)}, [], unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    template = TEMPLATE.replace("IMAGE", shown["image"]).replace("VIDEO", shown.get("video", ""))
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token="<unk>",
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens=special,
        chat_template=template,
    )


def text(words: PreTrainedTokenizerFast, **more: object) -> dict[str, object]:
    """Sizes of a decoder."""
    ids = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id}
    sizes = {"hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    vocabulary = -(-len(words) // 64) * 64
    return {
        **sizes, "num_key_value_heads": 1, "head_dim": 64, "vocab_size": vocabulary, "max_position_embeddings": 4096,
        **ids, **more,
    }  # fmt: skip


def clip(**more: object) -> dict[str, object]:
    """Sizes of a CLIP or SigLIP tower."""
    sizes = {"hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 2}
    return {**sizes, "image_size": 112, "patch_size": 14, **more}


def llava():
    words = tokenizer({"image": "<image>"}, image_token="<image>")
    size = {"height": 112, "width": 112}
    pictures = CLIPImageProcessor(size={"shortest_edge": 112}, crop_size=size)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**clip()),
        text_config=LlamaConfig(**text(words)),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        image_seq_length=64,
    )
    options = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return config, LlavaProcessor(pictures, words, image_token="<image>", chat_template=words.chat_template, **options)


def llava_next():
    words = tokenizer({"image": "<image>"}, image_token="<image>")
    size, pinpoints = {"height": 56, "width": 56}, [[56, 112], [112, 56], [112, 112]]
    pictures = LlavaNextImageProcessor(size={"shortest_edge": 56}, crop_size=size, image_grid_pinpoints=pinpoints)
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**clip(image_size=56)),
        text_config=LlamaConfig(**text(words)),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=pinpoints,
        image_seq_length=16,
    )
    options = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return config, LlavaNextProcessor(
        pictures, words, image_token="<image>", chat_template=words.chat_template, **options
    )


def llava_onevision():
    words = tokenizer({"image": "<image>", "video": "<video>"}, image_token="<image>", video_token="<video>")
    size, pinpoints = {"height": 56, "width": 56}, [[56, 112], [112, 56], [112, 112]]
    pictures = LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=pinpoints)
    videos = LlavaOnevisionVideoProcessor(size=size)
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**clip(image_size=56), vision_use_head=False),
        text_config=Qwen2Config(**text(words)),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        video_token_index=words.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=pinpoints,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_9",
    )
    options = {"num_image_tokens": 16, "vision_feature_select_strategy": "full", "vision_aspect_ratio": "anyres_max_9"}
    processor = LlavaOnevisionProcessor(
        pictures, words, videos, image_token="<image>", video_token="<video>", chat_template=words.chat_template,
        **options,
    )  # fmt: skip
    return config, processor


def _qwen(config_class, processor_class, video_class, vision, rope, **more):
    words = tokenizer(QWEN_SHOWN, **QWEN_SPECIAL)
    patch = vision["patch_size"]
    size = {"shortest_edge": (2 * patch) ** 2 * 4, "longest_edge": (20 * patch) ** 2}
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}  # the engine normalises pictures and videos alike
    options = {"patch_size": patch, "temporal_patch_size": 2, "merge_size": 2, "size": size, **half}
    pictures = Qwen2VLImageProcessor(**options)
    videos = video_class(**{**options, "size": {**size, "longest_edge": (20 * patch) ** 2 * 8}})
    ids = {
        name: words.convert_tokens_to_ids(token)
        for name, token in {
            "image_token_id": "<|image_pad|>",
            "video_token_id": "<|video_pad|>",
            "vision_start_token_id": "<|vision_start|>",
            "vision_end_token_id": "<|vision_end|>",
        }.items()
    }
    sections = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [8, 12, 12], **rope}
    config = config_class(vision_config=vision, text_config=text(words, rope_parameters=sections, **more), **ids)
    return config, processor_class(pictures, words, videos, chat_template=words.chat_template)


def qwen2_vl():
    vision = {"embed_dim": 64, "depth": 2, "num_heads": 2, "hidden_size": 128, "mlp_ratio": 2, "patch_size": 14}
    return _qwen(Qwen2VLConfig, Qwen2VLProcessor, Qwen2VLVideoProcessor, vision, {})


def qwen2_5_vl():
    vision = {
        "hidden_size": 64, "depth": 2, "num_heads": 2, "intermediate_size": 128, "out_hidden_size": 128,
        "patch_size": 14, "window_size": 56, "fullatt_block_indexes": [1], "tokens_per_second": 2,
    }  # fmt: skip
    return _qwen(Qwen2_5_VLConfig, Qwen2_5_VLProcessor, Qwen2VLVideoProcessor, vision, {})


QWEN3_VISION = {
    "hidden_size": 64, "depth": 3, "num_heads": 2, "intermediate_size": 128, "out_hidden_size": 128, "patch_size": 16,
    "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1],
}  # fmt: skip


def qwen3_vl():
    rope = {"mrope_interleaved": True}
    return _qwen(Qwen3VLConfig, Qwen3VLProcessor, Qwen3VLVideoProcessor, dict(QWEN3_VISION), rope)


def qwen3_vl_moe():
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True}
    rope = {"mrope_interleaved": True}
    return _qwen(Qwen3VLMoeConfig, Qwen3VLProcessor, Qwen3VLVideoProcessor, dict(QWEN3_VISION), rope, **experts)


def internvl():
    special = {
        "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }  # fmt: skip
    words = tokenizer({"image": "<IMG_CONTEXT>", "video": "<video>"}, **special)
    vision = InternVLVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, image_size=[56, 56],
        patch_size=[14, 14],
    )  # fmt: skip
    config = InternVLConfig(
        vision_config=vision,
        text_config=Qwen2Config(**text(words)),
        image_token_id=words.convert_tokens_to_ids("<IMG_CONTEXT>"),
        downsample_ratio=0.5,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=4,
    )
    pictures = GotOcr2ImageProcessor(
        size={"height": 56, "width": 56}, crop_to_patches=True, min_patches=1, max_patches=4
    )
    videos = InternVLVideoProcessor(size={"height": 56, "width": 56})
    return config, InternVLProcessor(pictures, words, videos, image_seq_length=4, chat_template=words.chat_template)


FAMILIES = {
    each.__name__: each
    for each in (llava, llava_next, llava_onevision, qwen2_vl, qwen2_5_vl, qwen3_vl, qwen3_vl_moe, internvl)
}


def save(name: str, folder: Path, seed: int = 0) -> Path:
    """The family's model with weights spread out, so that each prompt has an answer of its own."""
    config, processor = FAMILIES[name]()
    torch.manual_seed(sum(map(ord, name)) + seed)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.15)
    config.architectures = [type(model).__name__]
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    if name.startswith("llava"):
        _name_as_published(folder / "model.safetensors")
    if name == "qwen3_vl_moe":
        _turn_experts(folder / "model.safetensors")
    return folder


def _turn_experts(path: Path) -> None:
    """Experts' weights as hub checkpoints have them, [experts, in, out], which both sides load."""
    weights = load_file(path)
    turned = {key: value.transpose(1, 2).contiguous() for key, value in weights.items() if ".experts." in key}
    save_file({**weights, **turned}, path, metadata={"format": "pt"})


def _name_as_published(path: Path) -> None:
    """CLIP's and SigLIP's weights as hub checkpoints name them, which both sides load."""
    weights = {
        key.replace("vision_tower.embeddings", "vision_tower.vision_model.embeddings")
        .replace("vision_tower.encoder", "vision_tower.vision_model.encoder")
        .replace("vision_tower.pre_layrnorm", "vision_tower.vision_model.pre_layrnorm")
        .replace("vision_tower.post_layernorm", "vision_tower.vision_model.post_layernorm")
        .replace("vision_tower.head", "vision_tower.vision_model.head"): value
        for key, value in load_file(path).items()
    }
    save_file(weights, path, metadata={"format": "pt"})


if __name__ == "__main__":
    for name in sys.argv[2:] or FAMILIES:
        print(save(name, Path(sys.argv[1]) / name))
