"""Tiny random models of the families of the matrix, made from configs, and inputs for them made by hand."""

import itertools
from typing import ClassVar

import torch
from tiny_base import (
    BREAK,
    END,
    IMAGE,
    SCENARIOS,
    SLIDING,
    START,
    VIDEO,
    Family,
    Row,
    clip,
    decoder,
    images,
    kinds,
    scenario,
    siglip,
    square_pixels,
    tower,
)
from tiny_smolvlm import Idefics3, SmolVLM
from transformers import (
    Gemma3Config,
    GemmaConfig,
    Glm4vConfig,
    InternVLConfig,
    InternVLVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaNextConfig,
    LlavaOnevisionConfig,
    Mistral3Config,
    MistralConfig,
    PaliGemmaConfig,
    PixtralVisionConfig,
    Qwen2_5_VLConfig,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen3VLConfig,
    VipLlavaConfig,
)
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

__all__ = ["FAMILIES", "SCENARIOS", "Family", "Row", "scenario"]


class Llava(Family):
    """CLIP with CLS, penultimate layer; 16 tokens per image."""

    name = "llava"
    config_class = LlavaConfig
    options: ClassVar = {"image_seq_length": 16}

    def config(self, text):
        text_config = LlamaConfig(**decoder(text))
        return self.config_class(vision_config=clip(), text_config=text_config, image_token_index=IMAGE, **self.options)

    def image_tokens(self, size, images_in_row):
        return [IMAGE] * 16

    def pixels(self, config, rows):
        return {"pixel_values": square_pixels(rows)}


#: transformers 5.17 calls VipLlava's layers so, and newer releases rename it themselves.
OLD_NAME = {} if "vision_feature_layer" in VipLlavaConfig.__annotations__ else {"vision_feature_layers": [-2, -3, 1]}


class VipLlava(Llava):
    """As LLaVA, with several tower layers concatenated."""

    name = "vipllava"
    config_class = VipLlavaConfig
    options: ClassVar = {"image_seq_length": 16, "vision_feature_layer": [-2, -3, 1], **OLD_NAME}


class LlavaNext(Family):
    """Anyres: a thumbnail of 16 tokens, then the unpadded tiles with a newline after each row. Unit: pixels."""

    name = "llava_next"
    sizes = ((16, 16), (14, 36), (30, 20))
    pinpoints: ClassVar = [[16, 32], [32, 16], [32, 32]]

    def config(self, text):
        text_config = MistralConfig(**decoder(text, sliding_window=None))
        options = {"image_token_index": IMAGE, "image_grid_pinpoints": self.pinpoints}
        return LlavaNextConfig(vision_config=clip(), text_config=text_config, **options)

    def tiles(self, size):
        """Rows and columns of tiles for an image of this size."""
        return get_anyres_image_grid_shape(size, self.pinpoints, 16)

    def image_tokens(self, size, images_in_row):
        rows, columns = self.tiles(size)
        _, height, width = unpad_image(torch.empty(1, 4 * rows, 4 * columns), size).shape
        return [IMAGE] * (16 + height * (width + 1))

    def pixels(self, config, rows):
        return self.tiled(images(rows), [1 + self.tiles(size)[0] * self.tiles(size)[1] for size, _ in images(rows)])

    def tiled(self, images, counts):
        """Zero-padded tiles `[images, most tiles, 3, 16, 16]` and `image_sizes`."""
        pixel_values = torch.zeros(len(images), max(counts), 3, 16, 16)
        for i, ((_, gen), count) in enumerate(zip(images, counts, strict=True)):
            pixel_values[i, :count] = torch.randn(count, 3, 16, 16, generator=gen)
        return {"pixel_values": pixel_values, "image_sizes": torch.tensor([size for size, _ in images])}


class LlavaOnevision(LlavaNext):
    """Anyres with a limit on the tokens; an image that isn't alone in its row has one tile and one newline."""

    name = "llava_onevision"

    def config(self, text):
        options = {"image_token_index": IMAGE, "video_token_index": VIDEO, "image_grid_pinpoints": self.pinpoints}
        options |= {"vision_config": siglip(), "text_config": Qwen2Config(**decoder(text))}
        return LlavaOnevisionConfig(vision_aspect_ratio="anyres_max_4", **options)

    def image_tokens(self, size, images_in_row):
        return super().image_tokens(size, images_in_row) if images_in_row == 1 else [IMAGE] * 17

    def pixels(self, config, rows):
        alone = [len(row.images) == 1 for row in rows for _ in row.images]
        tiles = [self.tiles(size) for size, _ in images(rows)]
        counts = [1 + tall * wide if one else 1 for (tall, wide), one in zip(tiles, alone, strict=True)]
        return self.tiled(images(rows), counts) | {"batch_num_images": torch.tensor([len(row.images) for row in rows])}


class Qwen2VL(Family):
    """M-RoPE, images of any size. Unit: patches before the 2 × 2 merger."""

    name = "qwen2_vl"
    sizes = ((8, 8), (8, 12), (14, 6))
    config_class = Qwen2VLConfig
    token_ids: ClassVar = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START}
    token_ids |= {"vision_end_token_id": END}
    rope: ClassVar = {"rope_type": "default", "mrope_section": [2, 3, 3]}
    vision: ClassVar = {"depth": 4, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "patch_size": 4}

    def config(self, text):
        text = decoder(text, rope_parameters=dict(self.rope))
        return self.config_class(text_config=text, vision_config=dict(self.vision), **self.token_ids)

    def image_tokens(self, size, images_in_row):
        return [START, *[IMAGE] * (size[0] * size[1] // 4), END]

    def pixels(self, config, rows):
        width = 3 * 2 * config.vision_config.patch_size**2
        patches = [torch.randn(height * wide, width, generator=gen) for (height, wide), gen in images(rows)]
        grids = [(1, *size) for size, _ in images(rows)]
        return {"pixel_values": torch.cat(patches), "image_grid_thw": torch.tensor(grids)}

    def extras(self, input_ids, attention_mask):
        return {"mm_token_type_ids": (input_ids == IMAGE).int()}


class Qwen2_5VL(Qwen2VL):
    """As Qwen2-VL, with windows of 2 × 2 merged tokens in half of the tower's layers."""

    name = "qwen2_5_vl"
    config_class = Qwen2_5_VLConfig
    vision: ClassVar = {"depth": 4, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "patch_size": 4}
    vision |= {"out_hidden_size": 64, "window_size": 16, "fullatt_block_indexes": [1, 3]}


class Qwen3VL(Qwen2VL):
    """Interleaved M-RoPE and DeepStack: features of two tower layers are added after decoder layers 0 and 1."""

    name = "qwen3_vl"
    config_class = Qwen3VLConfig
    rope: ClassVar = {"rope_type": "default", "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    vision: ClassVar = {"depth": 4, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "patch_size": 4}
    vision |= {"out_hidden_size": 64, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 2]}

    def config(self, text):
        return super().config({"head_dim": 16} | text)


class InternVL(Family):
    """Tiles of 16 tokens behind each other, the thumbnail last; the tower has a CLS token. Unit: tiles."""

    name = "internvl"
    sizes = ((1, 1), (1, 2), (2, 1))

    def config(self, text):
        vision = InternVLVisionConfig(**tower(image_size=32))
        text_config = Qwen2Config(**decoder(text))
        options = {"image_token_id": IMAGE, "image_seq_length": 16, "tie_word_embeddings": False}
        return InternVLConfig(vision_config=vision, text_config=text_config, **options)

    def tiles(self, size):
        """Number of tiles, with the thumbnail where there is more than one."""
        return size[0] * size[1] + (size != (1, 1))

    def image_tokens(self, size, images_in_row):
        return [START, *[IMAGE] * (16 * self.tiles(size)), END]

    def pixels(self, config, rows):
        tiles = [torch.randn(self.tiles(size), 3, 32, 32, generator=gen) for size, gen in images(rows)]
        return {"pixel_values": torch.cat(tiles)}


class Gemma3(Family):
    """Image tokens attend both ways; sliding layers whose window is shorter than an image, and full ones."""

    name = "gemma3"
    needs_4d_mask = True

    def config(self, text):
        more = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 12, **kinds(text, SLIDING)}
        text = decoder(text, **more)
        ids = {"image_token_index": IMAGE, "boi_token_index": START, "eoi_token_index": END}
        options = {"mm_tokens_per_image": 16, "tie_word_embeddings": False, **ids}
        return Gemma3Config(text_config=text, vision_config=siglip(image_size=32), **options)

    def image_tokens(self, size, images_in_row):
        return [START, *[IMAGE] * 16, END]

    def pixels(self, config, rows):
        return {"pixel_values": square_pixels(rows, 32)}

    def extras(self, input_ids, attention_mask):
        return {"token_type_ids": (input_ids == IMAGE).long()}


class PaliGemma(Llava):
    """The whole prompt attends both ways, images stand first, positions start at 1."""

    name = "paligemma"

    def text(self, text):
        """The decoder's configuration."""
        return GemmaConfig(**decoder(text, head_dim=16))

    def config(self, text):
        options = {"image_token_index": IMAGE, "projection_dim": 64, "hidden_size": 64}
        options |= {"tie_word_embeddings": False}
        return PaliGemmaConfig(vision_config=siglip(), text_config=self.text(text), **options)

    def row_tokens(self, row):
        tokens = [self.image_tokens(size, len(row.images)) for size in row.images]
        return [*itertools.chain(*tokens), *super().row_tokens(Row((), row.text_seed))]

    def extras(self, input_ids, attention_mask):
        return {"token_type_ids": torch.zeros_like(input_ids)}


class Mistral3(Family):
    """Pixtral tower; a separator after each row of placeholders. Unit: tokens."""

    name = "mistral3"
    sizes = ((4, 4), (3, 6), (7, 3))

    def config(self, text):
        vision = PixtralVisionConfig(**tower(image_size=64))
        text_config = MistralConfig(**decoder(text, sliding_window=None, head_dim=16))
        options = {"image_token_index": IMAGE, "tie_word_embeddings": False}
        return Mistral3Config(vision_config=vision, text_config=text_config, **options)

    def image_tokens(self, size, images_in_row):
        return [*([*[IMAGE] * size[1], BREAK] * size[0])[:-1], END]

    def pixels(self, config, rows):
        sizes = torch.tensor([size for size, _ in images(rows)]) * 8
        pixel_values = torch.zeros(len(sizes), 3, *sizes.amax(0).tolist())
        for i, ((tall, wide), gen) in enumerate(images(rows)):
            pixel_values[i, :, : 8 * tall, : 8 * wide] = torch.randn(3, 8 * tall, 8 * wide, generator=gen)
        return {"pixel_values": pixel_values, "image_sizes": sizes}


class Glm4v(Qwen2VL):
    """M-RoPE over half of the head."""

    name = "glm4v"
    config_class = Glm4vConfig
    token_ids: ClassVar = {"image_token_id": IMAGE, "video_token_id": VIDEO, "image_start_token_id": START}
    token_ids |= {"image_end_token_id": END, "video_start_token_id": 8, "video_end_token_id": 9}
    rope: ClassVar = {"rope_type": "default", "mrope_section": [1, 1, 2], "partial_rotary_factor": 0.5}
    vision: ClassVar = {"depth": 4, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "patch_size": 4}
    vision |= {"out_hidden_size": 64, "image_size": 32}


_ALL = (Llava, VipLlava, LlavaNext, LlavaOnevision, Qwen2VL, Qwen2_5VL, Qwen3VL, InternVL, Gemma3, PaliGemma)
FAMILIES: dict[str, Family] = {family.name: family() for family in (*_ALL, Mistral3, Glm4v, SmolVLM, Idefics3)}
