"""Tiny families whose tower is of timm."""

from typing import ClassVar

import torch
import transformers
from families import Llava
from tiny_base import END, IMAGE, SLIDING, START, VIDEO, Family, decoder, images, kinds, square_pixels


class PerceptionLM(Family):
    """Tiles behind each other, of a vision transformer of timm with a CLS token; pooled by two in the projector."""

    name = "perception_lm"
    config_name = "PerceptionLMConfig"
    sizes = ((1, 1), (1, 2), (2, 1))
    arguments: ClassVar = {"embed_dim": 32, "depth": 4, "num_heads": 2, "img_size": [32, 32], "patch_size": 4}
    arguments |= {"global_pool": "", "use_post_transformer_norm": False, "ref_feat_shape": [8, 8]}

    def config(self, text):
        vision = {"model_type": "timm_wrapper", "architecture": "vit_pe_core_tiny_patch16_384", "do_pooling": True}
        vision |= {"model_args": dict(self.arguments), "num_labels": 0}
        options = {"image_token_id": IMAGE, "video_token_id": VIDEO, "projector_pooling_ratio": 2}
        text = decoder(text, model_type="llama")
        return getattr(transformers, self.config_name)(vision_config=vision, text_config=text, **options)

    def tiles(self, size):
        """Number of tiles, with the thumbnail where there is more than one."""
        return size[0] * size[1] + (size != (1, 1))

    def image_tokens(self, size, images_in_row):
        return [START, *[IMAGE] * (16 * self.tiles(size)), END]

    def pixels(self, config, rows):
        tiles = [torch.randn(self.tiles(size), 3, 32, 32, generator=gen) for size, gen in images(rows)]
        return {"pixel_values": torch.cat(tiles)[:, None]}


class FastVlm(Llava):
    """FastViT: convolutions, and a map of features for tokens."""

    name = "fast_vlm"
    config_name = "FastVlmConfig"

    def config(self, text):
        vision = {"model_type": "timm_wrapper", "architecture": "fastvit_mci0", "do_pooling": True, "hidden_size": 1024}
        vision |= {"global_pool": "avg", "model_args": {"inference_mode": True}, "num_labels": 2}
        text = decoder(text, model_type="qwen2")
        return getattr(transformers, self.config_name)(vision_config=vision, text_config=text, image_token_index=IMAGE)

    def pixels(self, config, rows):
        return {"pixel_values": square_pixels(rows, 128)}

    def build(self, *args, **kwargs):
        model = super().build(*args, **kwargs)
        model.model.multi_modal_projector.linear_1.weight.data.mul_(16)  # else pictures hardly matter
        return model


class Gemma3n(Llava):
    """A tower of convolutions (ResNet-18 in place of a MobileNet that is large at any size); several streams."""

    name = "gemma3n"
    config_name = "Gemma3nConfig"

    def config(self, text):
        more = {"head_dim": 16, "sliding_window": 12, "vocab_size_per_layer_input": 96, **kinds(text, SLIDING)}
        more |= {"hidden_size_per_layer_input": 8, "laurel_rank": 8, "num_kv_shared_layers": 0}
        vision = {"architecture": "resnet18", "hidden_size": 512, "vocab_offset": 128, "vocab_size": 8}
        hears = {"vocab_offset": 136, "vocab_size": 8, "hidden_size": 32, "conf_num_attention_heads": 2}
        hears |= {"conf_num_hidden_layers": 1, "sscp_conv_channel_size": [8, 8], "input_feat_size": 16}
        ids = {"image_token_id": 1, "audio_token_id": 9, "boi_token_id": START, "eoi_token_id": END}
        options = {"vision_soft_tokens_per_image": 16, **ids, "image_token_id": IMAGE}
        text = decoder(text, **more)
        config_class = getattr(transformers, self.config_name)
        return config_class(text_config=text, vision_config=vision, audio_config=hears, **options)

    def image_tokens(self, size, images_in_row):
        return [START, *[IMAGE] * 16, END]

    def pixels(self, config, rows):
        return {"pixel_values": square_pixels(rows, 128)}


TIMM = (PerceptionLM, FastVlm, Gemma3n)
