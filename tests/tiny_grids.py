"""Tiny families whose pictures come as one list of patches and a grid T × H × W for each."""

from typing import ClassVar

import torch
import transformers
from families import Glm4v, Qwen2_5VL, Qwen2VL, Qwen3VL
from tiny_base import END, IMAGE, SLIDING, START, VIDEO, decoder, images, kinds
from tiny_own import LINEAR, Qwen3_5

#: What a layer of experts needs.
EXPERTS = {"moe_intermediate_size": 32, "num_experts_per_tok": 2}
#: Of a tower in the words of most.
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2, "patch_size": 4}
#: Placeholders, and what stands around them.
AROUND = {"vision_start_token_id": START, "vision_end_token_id": END}
AUDIO = 8


class Gridded(Qwen2VL):
    """Patches and grids as in Qwen2-VL, before a decoder with positions of one axis.

    Attributes:
        config_name: the configuration's class; a release that has none lacks the family.
        text: of the decoder's configuration, behind what all have.
        temporal: frames that make a patch.
    since: the first release that is tried.
    """

    config_name: str
    text: ClassVar[dict] = {}
    token_ids: ClassVar = {"image_token_id": IMAGE, "video_token_id": VIDEO}
    options: ClassVar[dict] = {"tie_word_embeddings": False}
    temporal = 2
    since = (5, 17)

    def config(self, text):
        config_class = getattr(transformers, self.config_name)
        text = decoder(text, **self.text, **self.layers(text))
        return config_class(text_config=text, vision_config=dict(self.vision), **self.token_ids, **self.options)

    def layers(self, text):
        """What the configuration says of each layer of the decoder."""
        return {}

    def pixels(self, config, rows):
        width = 3 * self.temporal * 16
        patches = [torch.randn(height * wide, width, generator=gen) for (height, wide), gen in images(rows)]
        grids = torch.tensor([(1, *size) for size, _ in images(rows)])
        return {"pixel_values": torch.cat(patches), "image_grid_thw": grids}

    def extras(self, input_ids, attention_mask):
        return {}


class Exaone4_5(Gridded):
    """The windows of Qwen2.5-VL, with fewer keys than queries, before Exaone 4."""

    name = "exaone4_5"
    config_name = "Exaone4_5_Config"
    text: ClassVar = {"model_type": "exaone4", "sliding_window": 12}
    vision: ClassVar = Qwen2_5VL.vision | {"num_key_value_heads": 1}

    def layers(self, text):
        return kinds(text, SLIDING)


class HyperClovaX(Gridded):
    """The tower of Qwen2.5-VL with a projector behind it."""

    name = "hyperclovax_vision_v2"
    config_name = "HyperCLOVAXVisionV2Config"
    text: ClassVar = {"model_type": "hyperclovax"}
    vision: ClassVar = Qwen2_5VL.vision | {"model_type": "qwen2_5_vl_vision"}


class Glm46V(Glm4v):
    """GLM-4V by another name."""

    name = "glm46v"
    config_name = "Glm46VConfig"

    def config(self, text):
        text = decoder(text, rope_parameters=dict(self.rope), model_type="glm4v_text")
        vision = dict(self.vision) | {"model_type": "glm4v_vision"}
        return getattr(transformers, self.config_name)(text_config=text, vision_config=vision, **self.token_ids)


class GlmGa(Glm46V):
    """The same by yet another name."""

    name = "glmga"
    config_name = "GlmgaConfig"


class GlmOcr(Glm46V):
    """GLM-4V without the learned positions."""

    name = "glm_ocr"
    config_name = "GlmOcrConfig"

    def config(self, text):
        text = decoder(text, rope_parameters=dict(self.rope))
        config_class = getattr(transformers, self.config_name)
        return config_class(text_config=text, vision_config=dict(self.vision), **self.token_ids)


class Glm4vMoe(GlmOcr):
    """GLM-4V with experts."""

    name = "glm4v_moe"
    config_name = "Glm4vMoeConfig"

    def config(self, text):
        return super().config(EXPERTS | {"n_routed_experts": 4} | text)


class PaddleOcrVL(Gridded):
    """A SigLIP of any size, and a projector that merges."""

    name = "paddleocr_vl"
    config_name = "PaddleOCRVLConfig"
    text: ClassVar = {"head_dim": 16, "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]}}
    vision: ClassVar = VISION | {"image_size": 32}
    token_ids: ClassVar = Gridded.token_ids | AROUND

    def pixels(self, config, rows):
        patches = [torch.randn(height * wide, 3, 4, 4, generator=gen) for (height, wide), gen in images(rows)]
        return super().pixels(config, rows) | {"pixel_values": torch.cat(patches)}

    def extras(self, input_ids, attention_mask):
        return Qwen2VL.extras(self, input_ids, attention_mask)


class Qwen3_5Moe(Qwen3_5):
    """Qwen3.5 with experts."""

    name = "qwen3_5_moe"
    config_name = "Qwen3_5MoeConfig"

    def config(self, text):
        self.config_class = getattr(transformers, self.config_name)
        return super().config(EXPERTS | {"num_experts": 4, "shared_expert_intermediate_size": 32} | text)


class CohereCompass(Gridded):
    """The tower of Qwen3-VL with DeepStack before a Cohere decoder."""

    name = "cohere_compass"
    config_name = "CohereCompassConfig"
    turns: ClassVar = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    text: ClassVar = {"sliding_window": 12, "logit_scale": 1.0}
    text |= {"rope_parameters": {"sliding_attention": turns, "full_attention": turns}}
    vision: ClassVar = Qwen3VL.vision
    token_ids: ClassVar = Gridded.token_ids | AROUND

    def layers(self, text):
        return kinds(text, SLIDING)

    def extras(self, input_ids, attention_mask):
        return Qwen2VL.extras(self, input_ids, attention_mask)


class Cosmos3Omni(Qwen3VL):
    """Qwen3-VL by another name."""

    name = "cosmos3_omni"
    config_name = "Cosmos3OmniConfig"

    def config(self, text):
        text = decoder({"head_dim": 16} | text, rope_parameters=dict(self.rope), model_type="qwen3_vl_text")
        vision = dict(self.vision) | {"model_type": "qwen3_vl_vision"}
        return getattr(transformers, self.config_name)(text_config=text, vision_config=vision, **self.token_ids)


class Cosmos3Edge(Gridded):
    """A SigLIP of any size, and a projector that merges."""

    name = "cosmos3_edge"
    config_name = "Cosmos3EdgeConfig"
    text: ClassVar = {"head_dim": 16, "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]}}
    vision: ClassVar = VISION | {"num_patches": 64}
    token_ids: ClassVar = Gridded.token_ids | AROUND
    options: ClassVar = {"projector_hidden_size": 64, "tie_word_embeddings": False}
    temporal = 1

    def extras(self, input_ids, attention_mask):
        return Qwen2VL.extras(self, input_ids, attention_mask)


class Qwen2_5Omni(Gridded):
    """The thinker of Qwen2.5-Omni: Qwen2.5-VL that also hears."""

    name = "qwen2_5_omni_thinker"
    config_name = "Qwen2_5OmniThinkerConfig"
    text: ClassVar = {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]}}
    vision: ClassVar = Qwen2_5VL.vision
    hears: ClassVar = {"encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32, "d_model": 32}
    hears |= {"num_mel_bins": 8, "max_source_positions": 16, "n_window": 4, "output_dim": 64}
    token_ids: ClassVar = {"image_token_index": IMAGE, "video_token_index": VIDEO, "audio_token_index": AUDIO}
    options: ClassVar = {"tie_word_embeddings": False, "vision_start_token_id": START, "vision_end_token_id": END}
    options |= {"audio_start_token_id": 9, "audio_end_token_id": 10, "audio_config": hears}


class Qwen3Omni(Qwen2_5Omni):
    """The thinker of Qwen3-Omni: Qwen3-VL with experts that also hears."""

    name = "qwen3_omni_moe_thinker"
    config_name = "Qwen3OmniMoeThinkerConfig"
    rope: ClassVar = Qwen3VL.rope
    text: ClassVar = EXPERTS | {"head_dim": 16, "num_experts": 4, "rope_parameters": rope}
    vision: ClassVar = Qwen3VL.vision
    token_ids: ClassVar = {"image_token_id": IMAGE, "video_token_id": VIDEO, "audio_token_id": AUDIO}


class KimiK25(Gridded):
    """MoonViT before a decoder of DeepSeek-V3's make, whose values have another size than its keys."""

    name = "kimi_k25"
    config_name = "Kimi_K25Config"
    text: ClassVar = EXPERTS | {"model_type": "deepseek_v3", "n_routed_experts": 4, "n_group": 2, "topk_group": 1}
    text |= {"num_key_value_heads": 4, "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8}
    text |= {"v_head_dim": 16, "qk_nope_head_dim": 8, "first_k_dense_replace": 1}
    vision: ClassVar = VISION | {"pos_emb_height": 8, "pos_emb_width": 8}
    token_ids: ClassVar = Gridded.token_ids | AROUND
    options: ClassVar = {"projection_hidden_size": 32, "tie_word_embeddings": False}

    def pixels(self, config, rows):
        patches = [torch.randn(height * wide, 3, 4, 4, generator=gen) for (height, wide), gen in images(rows)]
        return super().pixels(config, rows) | {"pixel_values": torch.cat(patches)}


class MiniMaxM3(Gridded):
    """Sparse attention by blocks, chosen by an indexer, behind dense layers."""

    name = "minimax_m3_vl"
    since = (5, 23)  # in 5.17 its features do not tell how many belong to each picture, which vtc says
    config_name = "MiniMaxM3VLConfig"
    text: ClassVar = {"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "dense_intermediate_size": 64}
    text |= {"shared_intermediate_size": 32, "rotary_dim": 8, "index_n_heads": 2, "index_head_dim": 16}
    vision: ClassVar = VISION | {"image_size": 64}
    token_ids: ClassVar = {"image_token_index": IMAGE, "video_token_index": VIDEO}
    options: ClassVar = {"projector_hidden_size": 64, "tie_word_embeddings": False}


class MuseGlimmer(Gridded):
    """A tower with windows, an adapter that shuffles; sliding layers."""

    name = "muse_glimmer"
    config_name = "MuseGlimmerConfig"
    text: ClassVar = {"head_dim": 16, "sliding_window": 12}
    vision: ClassVar = VISION | {"pos_emb_height": 8, "pos_emb_width": 8}
    options: ClassVar = {"out_hidden_size": 128, "projector_hidden_size": 64}

    def layers(self, text):
        return kinds(text, SLIDING)


class MuseSpark(MuseGlimmer):
    """Muse Glimmer with experts, that also hears."""

    name = "muse_spark"
    config_name = "MuseSparkConfig"
    text: ClassVar = MuseGlimmer.text | EXPERTS | {"num_local_experts": 4, "moe_hidden_size": 32}
    hears: ClassVar = {"patch_sizes": [2, 2], "hidden_sizes": [8, 16], "depths": [1, 1], "num_hidden_layers": 2}
    options: ClassVar = MuseGlimmer.options | {"audio_config": hears | {"out_hidden_size": 64}, "audio_token_id": AUDIO}


class Lfm3VL(Gridded):
    """Convolutions and attention in the tower and in the decoder."""

    name = "lfm3_vl"
    config_name = "Lfm3VlConfig"
    text: ClassVar = {"model_type": "lfm3"}
    vision: ClassVar = VISION | {"num_key_value_heads": 1}
    token_ids: ClassVar = Gridded.token_ids | AROUND
    options: ClassVar = {"projector_hidden_size": 64, "tie_word_embeddings": False}


class Dots3Note(Gridded):
    """Latent attention, an indexer that chooses keys, experts in decoder and tower."""

    name = "dots3_note"
    config_name = "Dots3NoteConfig"
    text: ClassVar = KimiK25.text | {"index_head_dim": 16, "index_n_heads": 2, "n_group": 1}
    text |= {"head_dim": 16, "index_topk": 512, "shared_experts_intermediate_size": 32, "use_sliding_window": False}
    vision: ClassVar = VISION | {"adapter_in_dim": 32, "adapter_out_dim": 64, "moe_intermediate_size": 32}
    vision |= {"num_local_experts": 4, "num_experts_per_tok": 2, "mlp_layer_types": ["dense"] * 4}
    temporal = 1
    vision |= {"per_layer_config": {}}
    hears: ClassVar = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    hears |= {"feature_size": 16, "downsample_hidden_size": 8, "adapter_input_size": 32, "adapter_out_dim": 64}
    options: ClassVar = {"tie_word_embeddings": False, "audio_config": hears, "audio_token_id": AUDIO}


class HunYuanVL(Gridded):
    """Line breaks and marks among the features; positions of four axes, of which one counts the pictures of a batch."""

    name = "hunyuan_vl"
    padded_alike = False
    config_name = "HunYuanVLConfig"
    text: ClassVar = {"head_dim": 16, "rope_parameters": {"rope_type": "default", "mrope_section": [2, 2, 2, 2]}}
    vision: ClassVar = VISION | {"out_hidden_size": 64, "text_hidden_size": 64, "max_image_size": 64}
    token_ids: ClassVar = {"image_token_id": IMAGE, "im_start_id": START, "im_end_id": END}
    temporal = 1

    def image_tokens(self, size, images_in_row):
        return [START, *[IMAGE] * (size[0] // 2 * (size[1] // 2 + 1) + 2), END]

    def extras(self, input_ids, attention_mask):
        return Qwen2VL.extras(self, input_ids, attention_mask)


class Qwen4Exp(Qwen3_5Moe):
    """Qwen3.5 with several residual streams and embeddings of n-grams."""

    name = "qwen4_exp"
    config_name = "Qwen4ExpConfig"
    linear: ClassVar = Qwen3_5.linear

    def config(self, text):
        more = {"hc_count": 2, "hc_lowrank": 8, "ngram_vocab_size_base": 50, "heads_per_ngram": 2}
        more |= {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 16}
        more |= {"indexer_compress_ratio": 4}
        return super().config(more | kinds(text, LINEAR) | text)


GRIDDED = (
    *(Exaone4_5, HyperClovaX, Glm46V, GlmGa, GlmOcr, Glm4vMoe, PaddleOcrVL, Qwen3_5Moe, CohereCompass, Cosmos3Omni),
    *(Cosmos3Edge, Qwen2_5Omni, Qwen3Omni, KimiK25, MiniMaxM3, MuseGlimmer, MuseSpark, Lfm3VL, Dots3Note),
    *(HunYuanVL, Qwen4Exp),
)
