"""Tiny families whose pictures are squares, tiles, or padded to one size, and that came to be tried in a survey."""

import torch
import transformers
from families import Gemma3, InternVL, Llava, Mistral3
from tiny_base import END, IMAGE, START, Family, decoder, images, siglip, square_pixels, tower
from tiny_own import Gemma4, MiniCPMV4_6
from tiny_plain import DeepseekVL, GotOcr2
from tiny_smolvlm import SmolVLM

EXPERTS = {"moe_intermediate_size": 32, "num_experts_per_tok": 2}
SAM = {"hidden_size": 32, "output_channels": 16, "num_hidden_layers": 4, "num_attention_heads": 2}
SAM |= {"image_size": 64, "patch_size": 4, "window_size": 4, "global_attn_indexes": [1, 3], "mlp_dim": 64}


def renamed(config, config_class):
    """A configuration as one of another class with the same fields."""
    fields = config.to_dict()
    del fields["model_type"]
    return config_class(**fields)


class QianfanOcr(InternVL):
    """InternVL's tiles before Qwen3."""

    name = "qianfan_ocr"
    config_name = "QianfanOCRConfig"

    def config(self, text):
        text = decoder(text, model_type="qwen3", head_dim=16)
        options = {"image_token_id": IMAGE, "image_seq_length": 16, "tie_word_embeddings": False}
        vision = tower(image_size=32, drop_path_rate=0.0)
        return getattr(transformers, self.config_name)(vision_config=vision, text_config=text, **options)


class DeepseekVLHybrid(DeepseekVL):
    """SigLIP, and beside it a SAM that sees the picture larger."""

    name = "deepseek_vl_hybrid"
    config_name = "DeepseekVLHybridConfig"
    flash = False

    def config(self, text):
        options = {"image_token_id": IMAGE, "tie_word_embeddings": False}
        options["high_res_vision_config"] = SAM | {"model_type": "sam_vision_model"}
        text = decoder(text, model_type="llama")
        return getattr(transformers, self.config_name)(vision_config=siglip(), text_config=text, **options)

    def attention(self, attn):
        return {"": "eager", "text_config": attn, "vision_config": attn, "high_res_vision_config": "eager"}

    def pixels(self, config, rows):
        low = square_pixels(rows)
        high = torch.nn.functional.interpolate(low, scale_factor=4, mode="bilinear")
        return {"pixel_values": low, "high_res_pixel_values": high}


class LightOnOcr(Mistral3):
    """Pixtral before Qwen3, without line breaks."""

    name = "lighton_ocr"
    config_name = "LightOnOcrConfig"

    def config(self, text):
        text = decoder(text, model_type="qwen3", head_dim=16)
        vision = tower(model_type="pixtral", image_size=64, head_dim=16)
        options = {"image_token_id": IMAGE, "tie_word_embeddings": False}
        return getattr(transformers, self.config_name)(vision_config=vision, text_config=text, **options)

    def image_tokens(self, size, images_in_row):
        return [IMAGE] * (size[0] * size[1])


class ShieldGemma2(Gemma3):
    """Gemma 3 by another name."""

    name = "shieldgemma2"
    config_name = "ShieldGemma2Config"

    def config(self, text):
        return renamed(super().config(text), getattr(transformers, self.config_name))


class PPChart2Table(GotOcr2):
    """GOT-OCR 2 by another name."""

    name = "pp_chart2table"
    config_name = "PPChart2TableConfig"

    def config(self, text):
        return renamed(super().config(text), getattr(transformers, self.config_name))


class Gemma4Unified(Gemma4):
    """No tower: patches are embedded, with their places, in one step."""

    name = "gemma4_unified"
    config_name = "Gemma4UnifiedConfig"

    def config(self, text):
        old = super().config(text)
        more = {"head_dim": 16, "sliding_window": 12, "use_bidirectional_attention": "vision"}
        more |= {"layer_types": old.text_config.layer_types}
        text = decoder(text, **more) | {"num_hidden_layers": len(more["layer_types"])}
        vision = {"patch_size": 4, "pooling_kernel_size": 2, "mm_embed_dim": 32, "mm_posemb_size": 16}
        ids = {"image_token_id": IMAGE, "video_token_id": 1 + IMAGE, "boi_token_id": START, "eoi_token_id": END}
        ids |= {"audio_token_id": 8, "boa_token_id": 9, "eoa_token_index": 10, "tie_word_embeddings": False}
        vision |= {"output_proj_dims": 32}
        return getattr(transformers, self.config_name)(text_config=text, vision_config=vision, **ids)

    def pixels(self, config, rows):
        most, width = 18, 3 * 8 * 8
        pixel_values, places = torch.zeros(len(images(rows)), most, width), torch.full((len(images(rows)), most, 2), -1)
        for i, ((height, wide), gen) in enumerate(images(rows)):
            count = height * wide // 4
            pixel_values[i, :count] = torch.rand(count, width, generator=gen)
            grid = torch.cartesian_prod(torch.arange(height // 2), torch.arange(wide // 2))
            places[i, :count] = grid.flip(-1)
        return {"pixel_values": pixel_values, "image_position_ids": places}


class Idefics2(SmolVLM):
    """A perceiver of 8 queries for each picture."""

    name = "idefics2"
    sizes = ((1, 1), (1, 1), (1, 1))
    config_name = "Idefics2Config"

    def config(self, text):
        perceiver = {"hidden_size": 64, "resampler_n_latents": 8, "resampler_depth": 1, "resampler_n_heads": 2}
        perceiver |= {"resampler_head_dim": 16, "num_key_value_heads": 1}
        options = {"image_token_id": IMAGE, "tie_word_embeddings": False, "perceiver_config": perceiver}
        text = decoder(text, model_type="mistral", sliding_window=None)
        vision = tower(image_size=32)
        return getattr(transformers, self.config_name)(vision_config=vision, text_config=text, **options)

    def image_tokens(self, size, images_in_row):
        return [6, *[IMAGE] * 8, 6]


class Fuyu(Family):
    """No tower: patches are embedded by one matrix; line breaks between rows are text. Unit: patches."""

    name = "fuyu"
    since = (5, 23)  # before, `generate` knows its pictures by another name
    config_name = "FuyuConfig"
    sizes = ((4, 4), (4, 4), (4, 4))

    def config(self, text):
        more = {"model_type": "persimmon", "hidden_act": "relu2", "qk_layernorm": True}
        options = {"image_size": 16, "patch_size": 4, "image_token_id": IMAGE, "tie_word_embeddings": False}
        return getattr(transformers, self.config_name)(text_config=decoder(text, **more), **options)

    def image_tokens(self, size, images_in_row):
        return [*([IMAGE] * size[1] + [END]) * size[0], START]

    def pixels(self, config, rows):
        return {"pixel_values": torch.stack([torch.randn(16, 48, generator=gen) for _, gen in images(rows)])}


class MiniCPMOcr(MiniCPMV4_6):
    """MiniCPM-V 4.6 that merges once."""

    name = "minicpm_ocr"
    config_name = "MiniCPMOcrConfig"

    def config(self, text):
        old = super().config(text)
        vision, text = tower(image_size=64, insert_layer_id=1), old.text_config.to_dict()
        options = {"image_token_id": IMAGE, "video_token_id": 1 + IMAGE, "insert_layer_id": 1}
        return getattr(transformers, self.config_name)(text_config=text, vision_config=vision, **options)

    def image_tokens(self, size, images_in_row):
        return [START, *[IMAGE] * (size[0] * size[1] // 4), END]


class MiniCPMV4_7(MiniCPMOcr):
    """MiniCPM-V 4.6 a version later: it merges twice."""

    name = "minicpmv4_7"
    config_name = "MiniCPMV4_7Config"

    def extras(self, input_ids, attention_mask):
        return {"mm_token_type_ids": (input_ids == IMAGE).int()}

    def image_tokens(self, size, images_in_row):
        return [START, *[IMAGE] * (size[0] * size[1] // 16), END]


class Step3p7(Llava):
    """A tower whose convolutions halve twice; pictures may have crops, which these have not."""

    name = "step3p7"
    config_name = "Step3p7Config"

    def config(self, text):
        text = decoder(
            text,
            **EXPERTS,
            head_dim=16,
            n_routed_experts=4,
            num_local_experts=4,
            share_expert_dim=32,
            sliding_window=12,
        )
        vision = tower(image_size=64)
        return getattr(transformers, self.config_name)(vision_config=vision, text_config=text, image_token_id=IMAGE)

    def pixels(self, config, rows):
        return {"pixel_values": square_pixels(rows, 64)}


class Blip2(Llava):
    """A Q-Former of 8 queries before OPT, which learns its positions."""

    name = "blip-2"
    config_name = "Blip2Config"
    flash = False

    def config(self, text):
        vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2}
        vision |= {"image_size": 16, "patch_size": 4}
        qformer = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        qformer |= {"encoder_hidden_size": 32, "cross_attention_frequency": 1, "vocab_size": 128}
        options = {"num_query_tokens": 8, "image_token_index": IMAGE, "qformer_config": qformer}
        text = self.text(text)
        return getattr(transformers, self.config_name)(vision_config=vision, text_config=text, **options)

    def text(self, text):
        """The decoder's configuration."""
        return decoder(text, model_type="opt", ffn_dim=96, word_embed_proj_dim=64)

    def image_tokens(self, size, images_in_row):
        return [IMAGE] * 8


class InstructBlip(Blip2):
    """A Q-Former that reads the question, before Llama."""

    name = "instructblip"
    config_name = "InstructBlipConfig"

    def text(self, text):
        return decoder(text, model_type="llama")

    def pixels(self, config, rows):
        count = len(images(rows))
        ids = torch.randint(16, 128, (1, 4), generator=torch.Generator().manual_seed(0)).repeat(count, 1)
        return super().pixels(config, rows) | {"qformer_input_ids": ids, "qformer_attention_mask": torch.ones_like(ids)}


class GraniteDocling(SmolVLM):
    """Tiles as in SmolVLM, with DeepStack."""

    name = "granite_docling"
    config_name = "GraniteDoclingConfig"

    def config(self, text):
        more = {"embedding_multiplier": 1.0, "attention_multiplier": 0.25, "residual_multiplier": 1.0}
        text = decoder(text, logits_scaling=1.0, **more)
        vision = tower(image_size=32, out_hidden_size=64, scale_factor=2, deepstack_visual_indexes=[0, 2])
        options = {"image_token_id": IMAGE, "tie_word_embeddings": False}
        return getattr(transformers, self.config_name)(vision_config=vision, text_config=text, **options)

    def pixels(self, config, rows):
        found = super().pixels(config, rows)
        return found | {"pixel_attention_mask": found["pixel_attention_mask"].flatten(2).any(dim=2)}


class DeepseekOcr2(Llava):
    """A SAM whose patches are asked by 144 learned queries; a separator behind each picture."""

    name = "deepseek_ocr2"
    config_name = "DeepseekOcr2Config"
    flash = False

    def config(self, text):
        sam = SAM | {"downsample_channels": [24, 32]}
        encoder = decoder({}, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2)
        vision = {"sam_config": sam, "encoder_config": encoder}
        text = decoder(text, **EXPERTS, n_routed_experts=4, num_key_value_heads=4, n_group=1, topk_group=1)
        text["mlp_layer_types"] = ["dense"] + ["sparse"] * (text["num_hidden_layers"] - 1)
        options = {"image_token_id": IMAGE, "tie_word_embeddings": False}
        return getattr(transformers, self.config_name)(vision_config=vision, text_config=text, **options)

    def image_tokens(self, size, images_in_row):
        return [IMAGE] * 145

    def pixels(self, config, rows):
        return {"pixel_values": square_pixels(rows, 64)}


class UnlimitedOcr(DeepseekOcr2):
    """A SAM and a CLIP behind each other; line breaks and a separator among the features."""

    name = "unlimited_ocr"
    config_name = "UnlimitedOcrConfig"

    def config(self, text):
        sam = SAM | {"downsample_channels": [24, 32]}
        encoder = tower(image_size=16, patch_size=4)
        vision = {"sam_config": sam, "encoder_config": encoder}
        text = decoder(text, **EXPERTS, n_routed_experts=4, num_key_value_heads=4, n_shared_experts=1)
        options = {"image_token_id": IMAGE, "tie_word_embeddings": False}
        return getattr(transformers, self.config_name)(vision_config=vision, text_config=text, **options)

    def image_tokens(self, size, images_in_row):
        return [IMAGE] * (4 * 5 + 1)


SQUARES = (
    *(QianfanOcr, DeepseekVLHybrid, LightOnOcr, ShieldGemma2, PPChart2Table, Gemma4Unified, Idefics2, Fuyu),
    *(MiniCPMOcr, MiniCPMV4_7, Step3p7, Blip2, InstructBlip, GraniteDocling, DeepseekOcr2, UnlimitedOcr),
)
