"""Tiny random models of the original LLaVA package, and inputs for them made by hand.

The package's sizes are (width, height), a row of text uses up one image of the batch without showing it, and `generate`
returns the new tokens only.
"""

import tempfile
from dataclasses import dataclass, field
from functools import cache

import torch
from llava.mm_utils import get_anyres_image_grid_shape
from llava.model import LlavaConfig, LlavaLlamaForCausalLM, LlavaMistralConfig, LlavaMistralForCausalLM
from llava.model.llava_arch import unpad_image
from tiny_base import BOS, FIRST_TEXT_ID, PAD, SQUARE, TALL, WIDE, Row, clip, decoder, images, randomize, text_ids
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPVisionModel

IMAGE, IGNORE = -200, -100
PINPOINTS = [[16, 32], [32, 16], [32, 32]]
#: (height, width) in pixels of the scenarios' three images.
SIZES = {SQUARE: (16, 16), WIDE: (14, 36), TALL: (30, 20)}
MISTRAL = LlavaMistralConfig, LlavaMistralForCausalLM


@dataclass(frozen=True)
class Variant:
    """One configuration of the package.

    Attributes:
        merge: `mm_patch_merge_type`; None: LLaVA-1.5, one crop an image.
        feature: `mm_vision_select_feature`.
        classes: configuration and model.
    """

    merge: str | None = None
    feature: str = "patch"
    classes: tuple = field(default=(LlavaConfig, LlavaLlamaForCausalLM))

    def tokens(self, row: Row) -> list[int]:
        """Visual tokens of each image of a row."""
        counts = []
        for size in row.images:
            height, width = SIZES[size]
            across, down = get_anyres_image_grid_shape((width, height), PINPOINTS, 16)
            crop = 16 + (self.feature == "cls_patch")
            if self.merge is None:
                counts.append(crop)
            elif self.merge == "spatial_unpad":
                _, tall, wide = unpad_image(torch.empty(1, 4 * down, 4 * across), (width, height)).shape
                counts.append(16 + tall * (wide + 1))
            else:
                counts.append(crop * (1 + across * down))
        return counts


VARIANTS = {
    "llava-1.5": Variant(),
    "cls": Variant(feature="cls_patch"),
    "flat": Variant("flat"),
    "spatial": Variant("spatial"),
    "spatial_unpad": Variant("spatial_unpad"),
    "mistral": Variant("spatial_unpad", classes=MISTRAL),
}


def model_of(name: str, attn: str = "sdpa"):
    """A tiny random model, built once per process; tests leave it as they found it."""
    return _built(name, attn)


@cache
def _built(name: str, attn: str):
    return build(VARIANTS[name], attn)


def build(variant: Variant, attn: str = "sdpa", dtype: torch.dtype = torch.float32, load: bool = True, **more):
    """A random model in eval mode whose `generate` does not stop by itself.

    Args:
        variant: what is configured.
        attn: attention implementation of tower and decoder.
        dtype: of the parameters.
        load: load the tower's weights too.
        **more: overrides for the configuration.
    """
    torch.manual_seed(0)
    config_class, model_class = variant.classes
    with tempfile.TemporaryDirectory() as tower:
        CLIPVisionModel(clip()).save_pretrained(tower)
        CLIPImageProcessor(size=16, crop_size=16).save_pretrained(tower)
        options = {"mm_vision_tower": tower, "mm_hidden_size": 32, "mm_projector_type": "mlp2x_gelu"}
        options |= {"mm_vision_select_layer": -2, "mm_vision_select_feature": variant.feature}
        if variant.merge is not None:
            options |= {"mm_patch_merge_type": variant.merge, "image_aspect_ratio": "anyres"}
            options |= {"image_grid_pinpoints": PINPOINTS}
        config = config_class(**decoder({}, **options, **more))
        model = model_class._from_config(config, attn_implementation=attn, dtype=dtype).eval()
        if load:
            model.get_vision_tower().load_model()
            model.get_vision_tower().vision_tower.to(dtype).eval().set_attn_implementation(attn)
    if "unpad" in (variant.merge or ""):
        torch.nn.init.zeros_(model.model.image_newline)  # the package leaves it as the memory was
    randomize(model, 0)
    generation = model.generation_config
    generation.eos_token_id, generation.bos_token_id, generation.pad_token_id = None, BOS, PAD
    generation.suppress_tokens = list(range(FIRST_TEXT_ID))
    return model


def row_ids(row: Row) -> list[int]:
    """Ids of one row: text, image, text, image, …, text."""
    gen = torch.Generator().manual_seed(row.text_seed)
    ids = [BOS, *text_ids(gen, 2 + row.text_seed % 3)]
    for _ in row.images:
        ids += [IMAGE, *text_ids(gen, 3)]
    return ids + text_ids(gen, 3 + row.text_seed % 7)


def inputs(variant: Variant, rows: list[Row], dtype: torch.dtype = torch.float32) -> dict[str, Tensor | list]:
    """What the package's own scripts give to `forward` for a batch."""
    ids = [row_ids(row) for row in rows]
    input_ids = torch.full((len(rows), max(map(len, ids))), PAD)
    attention_mask = torch.zeros_like(input_ids)
    for index, row in enumerate(ids):
        input_ids[index, : len(row)] = torch.tensor(row)
        attention_mask[index, : len(row)] = 1
    batch: dict = {"input_ids": input_ids, "attention_mask": attention_mask}
    shown = images([row if row.images else Row((SQUARE,), row.text_seed) for row in rows])
    if not any(row.images for row in rows):
        return batch
    pixels, sizes = [], []
    for size, gen in shown:
        height, width = SIZES[size]
        across, down = get_anyres_image_grid_shape((width, height), PINPOINTS, 16)
        pixels.append(torch.randn(1 + across * down, 3, 16, 16, generator=gen).to(dtype))
        sizes.append((width, height))
    if variant.merge is None:
        return batch | {"images": torch.stack([crops[0] for crops in pixels])}
    return batch | {"images": pixels, "image_sizes": sizes}


def generate(model, batch: dict, new: int = 3, **options):
    """Greedy by default; the package calls ids `inputs`."""
    batch = {"inputs" if name == "input_ids" else name: value for name, value in batch.items()}
    return model.generate(**batch, **{"max_new_tokens": new, "do_sample": False, **options})


def length(variant: Variant, row: Row) -> int:
    """Tokens of a row after expansion."""
    return len(row_ids(row)) - len(row.images) + sum(variant.tokens(row))
