"""Tiny families with decoders that choose keys by an indexer or mix kinds of layers, and those that see by codes."""

from typing import ClassVar

import torch
import transformers
from families import Llava, Mistral3
from tiny_base import END, IMAGE, START, decoder, images, square_pixels, tower
from tiny_grids import EXPERTS, VISION, Gridded

#: An attention with latent keys, whose positions are a part of them.
LATENT = {"num_key_value_heads": 4, "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "v_head_dim": 16}
LATENT |= {"qk_nope_head_dim": 8, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, **EXPERTS}
#: An indexer. It chooses among more keys than there are: of padded rows transformers' own choose otherwise than of one
#: row alone, so that no row of a batch could be compared with itself.
INDEX = {"index_topk": 512, "index_head_dim": 16, "index_n_heads": 2}


class MistralLarge4(Mistral3):
    """Pixtral before latent attention with an indexer; queries are scaled by positions, which count padding."""

    name = "mistral_large4"
    padded_alike = False
    config_name = "MistralLarge4Config"

    def config(self, text):
        turns = {"rope_type": "default", "rope_theta": 10000.0}
        text = decoder(text, **LATENT, **INDEX, rope_parameters=turns, first_k_dense_replace=1)
        vision = tower(model_type="pixtral", image_size=64, head_dim=16)
        options = {"image_token_index": IMAGE, "tie_word_embeddings": False}
        return getattr(transformers, self.config_name)(vision_config=vision, text_config=text, **options)

    def image_tokens(self, size, images_in_row):
        return [IMAGE] * (size[0] * size[1])


class HyV4VL(Gridded):
    """Line breaks among the features; latent attention with an indexer, several residual streams."""

    name = "hy_v4_vl"
    config_name = "HYV4VLConfig"
    text: ClassVar = LATENT | INDEX | {"hc_mult": 2, "rope_parameters": {"rope_type": "default"}}
    vision: ClassVar = VISION | {"out_hidden_size": 64, "max_image_size": 64}
    temporal = 1

    def config(self, text):
        turns = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
        return super().config({"rope_parameters": turns} | text)

    def attention(self, attn):
        return {"": "eager", "text_config": "eager", "vision_config": attn}

    def image_tokens(self, size, images_in_row):
        return [START, *[IMAGE] * (size[0] // 2 * (size[1] // 2 + 1)), END]

    def extras(self, input_ids, attention_mask):
        return {"mm_token_type_ids": (input_ids == IMAGE).int()}


class Glm5Next(Gridded):
    """Linear attention between latent attention with an indexer, several residual streams."""

    name = "glm5_next"
    config_name = "Glm5NextConfig"
    text: ClassVar = LATENT | INDEX | {"hc_mult": 2, "qk_rope_head_dim": 0, "index_kpool": 4, "linear_head_dim": 16}
    text |= {"linear_num_heads": 2}
    vision: ClassVar = {"depth": 4, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "patch_size": 4}
    vision |= {"out_hidden_size": 64, "image_size": 32, "projection_intermediate_size": 64}
    token_ids: ClassVar = {"image_token_id": IMAGE, "video_token_id": 1 + IMAGE, "image_start_token_id": START}
    token_ids |= {"image_end_token_id": END, "video_start_token_id": 8, "video_end_token_id": 9}


class Inkling2(Gridded):
    """A CLS token in front of each picture; convolutions beside attention, which knows distances instead of turning."""

    name = "inkling2"
    config_name = "Inkling2Config"
    text: ClassVar = {"head_dim": 16, "swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 16}
    text |= {"unpadded_vocab_size": 128, "sliding_window_size": 12, "d_rel": 4, "rel_extent": 64}
    text |= EXPERTS | {"n_routed_experts": 4, "n_layers_per_attn_res_block": 2}
    vision: ClassVar = VISION | {"posemb_grid_size": 8, "projection_hidden_dim": 64, "text_hidden_size": 64}
    token_ids: ClassVar = {"image_token_id": IMAGE}
    options: ClassVar = {}

    def layers(self, text):
        return {"num_hidden_layers": 6}

    def attention(self, attn):
        return {"": "eager", "text_config": "eager", "vision_config": attn}

    def pixels(self, config, rows):
        sizes = [(height // 2, wide // 2) for (height, wide), _ in images(rows)]
        patches = [torch.randn(h * w, 8, 8, 3, generator=gen) for (h, w), (_, gen) in zip(sizes, images(rows))]
        grids = torch.tensor([(1, *size) for size in sizes])
        return {"pixel_values": torch.cat(patches), "image_grid_thw": grids}


class Inkling2Loop(Inkling2):
    """Inkling 2 whose middle layers run several times."""

    name = "inkling2_loop"
    config_name = "Inkling2LoopConfig"
    text: ClassVar = Inkling2.text | {"loop_layer_index_start": 2, "loop_layer_index_end": 4, "loop_num_passes": 2}
    text |= {"loop_gate_rank": 4}
    vision: ClassVar = Inkling2.vision | {"model_type": "inkling2_vision"}


class Inkling(Gridded):
    """A tower of folds without attention: a token from each patch alone."""

    name = "inkling_mm_model"
    config_name = "InklingConfig"
    text: ClassVar = {"head_dim": 16, "swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 16}
    text |= {"unpadded_vocab_size": 128, "sliding_window_size": 12, "d_rel": 4, "rel_extent": 64}
    text |= EXPERTS | {"n_routed_experts": 4, "n_shared_experts": 1, "logits_mup_width_multiplier": 1.0}
    vision: ClassVar = {"text_hidden_size": 64, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 3}
    hears: ClassVar = {"n_mel_bins": 4, "mel_vocab_size": 8, "text_hidden_size": 64}
    token_ids: ClassVar = {"image_token_id": IMAGE, "audio_token_id": 8, "image_bos_token_id": START}
    options: ClassVar = {"audio_config": hears, "audio_bos_token_id": 9}

    def pixels(self, config, rows):
        patches = [torch.randn(h * w // 4, 2, 8, 8, 3, generator=gen) for (h, w), gen in images(rows)]
        return {"pixel_values": torch.cat(patches)}


class Emu3(Llava):
    """Pictures become codes, with a line break behind each row of them."""

    name = "emu3"
    config_name = "Emu3Config"

    def config(self, text):
        vq = {"codebook_size": 16, "embed_dim": 8, "latent_channels": 8, "base_channels": 32, "num_res_blocks": 1}
        vq |= {"channel_multiplier": [1, 1], "attn_resolutions": [], "temporal_downsample_factor": 2, "hidden_size": 32}
        words = {"<image>": IMAGE, "<|extra_200|>": 8} | {f"<|visual token {i:06}|>": 16 + i for i in range(16)}
        options = {"vocabulary_map": words, "tie_word_embeddings": False}
        return getattr(transformers, self.config_name)(vq_config=vq, text_config=decoder(text), **options)

    def image_tokens(self, size, images_in_row):
        return [START, *[IMAGE] * (8 * 9), END]

    def pixels(self, config, rows):
        found = square_pixels(rows)
        return {"pixel_values": found, "image_sizes": torch.full((len(found), 2), 16)}


class Apertus1p5(Llava):
    """Pictures become codes, each at its own size."""

    name = "apertus1p5"
    config_name = "Apertus1p5Config"

    def config(self, text):
        vision = {"codebook_size": 16, "embed_dim": 8, "latent_channels": 8, "base_channels": 32, "num_res_blocks": 1}
        vision |= {"channel_multiplier": [1, 1, 1], "attn_resolutions": [], "resolution": 16}
        options = {"image_token_id": IMAGE, "image_token_offset": 16, "audio_token_id": 8, "audio_token_offset": 32}
        hears = {"model_type": "wavtokenizer_encoder", "codebook_size": 16}
        options["audio_config"] = hears
        text = decoder(text, hidden_act="xielu")
        return getattr(transformers, self.config_name)(vision_config=vision, text_config=text, **options)

    def attention(self, attn):
        return {"": "eager", "text_config": attn, "vision_config": "eager"}

    def image_tokens(self, size, images_in_row):
        return [START, *[IMAGE] * 16, END]

    def pixels(self, config, rows):
        found = square_pixels(rows)
        return {"pixel_values": found, "image_sizes": torch.full((len(found), 2), 16)}


SPARSE = (MistralLarge4, HyV4VL, Glm5Next, Inkling2, Inkling2Loop, Inkling, Emu3, Apertus1p5)
