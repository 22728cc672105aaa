"""What the tiny families share: rows, scenarios, random weights and batching.

A family turns image sizes into placeholder tokens and tower inputs; everything else is here. All models have a
vocabulary of 128 whose first 16 ids are special (`PAD` … ) and never generated.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    PreTrainedConfig,
    PreTrainedModel,
    SiglipVisionConfig,
)

from vtc.eval.doctor.tiny import randomize

VOCAB, FIRST_TEXT_ID = 128, 16
PAD, BOS, IMAGE, VIDEO, START, END, BREAK, EXTRA = range(8)

SQUARE, WIDE, TALL = (4, 4), (4, 6), (6, 4)

SLIDING = ["sliding_attention", "sliding_attention", "full_attention"]


@dataclass(frozen=True)
class Row:
    """One example of a batch.

    Attributes:
        images: size of each image or video, `(height, width)` or `(frames, …)` in the family's own unit; `()` for a
            row of text only.
        text_seed: the text tokens, their number and the pixels are drawn from it.
    """

    images: tuple[tuple[int, ...], ...]
    text_seed: int


SCENARIOS: dict[str, list[Row]] = {
    "single": [Row((SQUARE,), 1)],
    "ragged": [Row((WIDE,), 2), Row((SQUARE,), 3), Row((TALL,), 7)],
    "several_images": [Row((SQUARE, WIDE), 4), Row((TALL,), 5)],
    "text_row": [Row((SQUARE,), 6), Row((), 8)],
}


class Family:
    """A VLM family of transformers, as a tiny random model and hand-made inputs.

    Subclasses give `name`, `config`, `image_tokens`, `pixels`, and where the family differs from LLaVA `sizes`,
    `row_tokens`, `extras` and the facts below.

    Attributes:
        name: the family's `model_type` or a variant of it.
        sizes: what `SQUARE`, `WIDE` and `TALL` are in the family's unit; equal where it knows one size only.
        needs_4d_mask: image tokens attend both ways by way of a 4-D mask, so that flash silently computes something
            else (as in transformers itself).
        flash: transformers lets the family run under flash attention.
        expands: `generate` knows beams and several returned sequences (transformers fails on the bare model otherwise).
        cacheless: `generate` knows `use_cache=False` (likewise).
        padded_alike: transformers gives each row of a padded batch what it gives alone.
        image_id: the placeholder's id.
        salt: added to the seed of the weights, where the first ones generate nothing but one token.
    """

    name: str
    sizes: tuple[tuple[int, ...], ...] = (SQUARE, SQUARE, SQUARE)
    needs_4d_mask = False
    flash = True
    expands = True
    cacheless = True
    padded_alike = True
    image_id = IMAGE
    salt = 0

    def config(self, text: dict) -> PreTrainedConfig:
        """The tiny configuration, `text` being overrides for the decoder's."""
        raise NotImplementedError

    def image_tokens(self, size: tuple[int, ...], images_in_row: int) -> list[int]:
        """Ids of one image as the processor writes them, with whatever opens, interrupts and closes it."""
        raise NotImplementedError

    def pixels(self, config: PreTrainedConfig, rows: list[Row]) -> dict[str, Tensor]:
        """Tower inputs of all images of a batch, rows in order; called with at least one image."""
        raise NotImplementedError

    def extras(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """Further per-token inputs that the family's processor gives."""
        return {}

    def attention(self, attn: str) -> str | dict[str, str]:
        """What to ask transformers for to get `attn`, for families with a part that doesn't know it."""
        return attn

    def row_tokens(self, row: Row) -> list[int]:
        """Ids of one row: text, image, text, image, …, text."""
        gen = torch.Generator().manual_seed(row.text_seed)
        ids = [BOS, *text_ids(gen, 2 + row.text_seed % 3)]
        for size in row.images:
            ids += self.image_tokens(size, len(row.images)) + text_ids(gen, 3)
        return ids + text_ids(gen, 3 + row.text_seed % 7)

    def build(
        self, attn: str = "sdpa", dtype: torch.dtype = torch.float32, seed: int = 0, **text_config
    ) -> PreTrainedModel:
        """A random model in eval mode whose `generate` doesn't stop by itself.

        Args:
            attn: attention implementation of tower and decoder.
            dtype: of the parameters.
            seed: the weights are a function of it.
            **text_config: overrides for the decoder's configuration.
        """
        torch.manual_seed(seed)
        config = self.config(text_config)
        model = AutoModelForImageTextToText.from_config(
            config, attn_implementation=self.attention(attn), dtype=dtype
        ).eval()
        randomize(model, seed + self.salt)
        generation = model.generation_config
        generation.eos_token_id, generation.bos_token_id, generation.pad_token_id = None, BOS, PAD
        generation.suppress_tokens = list(range(FIRST_TEXT_ID))
        return model

    def inputs(self, model: PreTrainedModel, rows: list[Row], padding: str = "left") -> dict[str, Tensor]:
        """The processor's output for a batch, on the model's device, pixels in its dtype."""
        tokens = [self.row_tokens(row) for row in rows]
        length = max(map(len, tokens))
        input_ids = torch.full((len(rows), length), PAD)
        attention_mask = torch.zeros_like(input_ids)
        for i, ids in enumerate(tokens):
            where = slice(length - len(ids), None) if padding == "left" else slice(len(ids))
            input_ids[i, where] = torch.tensor(ids)
            attention_mask[i, where] = 1
        batch = {"input_ids": input_ids, "attention_mask": attention_mask, **self.extras(input_ids, attention_mask)}
        if any(row.images for row in rows):
            batch |= self.pixels(model.config, rows)
        batch = {k: v.to(model.device) for k, v in batch.items()}
        return {k: v.to(model.dtype) if v.is_floating_point() else v for k, v in batch.items()}

    def visual_tokens(self, rows: list[Row]) -> list[list[int]]:
        """Number of placeholder tokens of each image of each row, newline and thumbnail rows included."""
        return [[self.image_tokens(size, len(row.images)).count(self.image_id) for size in row.images] for row in rows]


def scenario(family: Family, name: str) -> list[Row]:
    """The rows of `SCENARIOS[name]` with image sizes in the family's unit."""
    own = dict(zip((SQUARE, WIDE, TALL), family.sizes, strict=True))
    return [Row(tuple(own[size] for size in row.images), row.text_seed) for row in SCENARIOS[name]]


def text_ids(gen: torch.Generator, count: int) -> list[int]:
    """`count` random ids of ordinary text."""
    return torch.randint(FIRST_TEXT_ID, VOCAB, (count,), generator=gen).tolist()


def images(rows: list[Row]) -> list[tuple[tuple[int, ...], torch.Generator]]:
    """All images of a batch in order, each with the generator of its pixels (a function of its row alone)."""
    seeds = [(size, 1000 * (row.text_seed + 1) + i) for row in rows for i, size in enumerate(row.images)]
    return [(size, torch.Generator().manual_seed(seed)) for size, seed in seeds]


def decoder(text: dict, **more) -> dict:
    """Keyword arguments of a tiny decoder's configuration, `text` last.

    They are copies, since transformers writes what a dictionary leaves out, such as a base of turns, into it.
    """
    base = {
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": None,
    }
    return copy.deepcopy(base | more | text)


def tower(**more) -> dict:
    """Keyword arguments of a tiny vision tower's configuration: 4 × 4 patches of 4 pixels."""
    base = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 4,
    }
    return base | more


def clip(**more) -> CLIPVisionConfig:
    """A tiny CLIP tower: CLS token and 16 patches."""
    return CLIPVisionConfig(**tower(**more))


def siglip(**more) -> SiglipVisionConfig:
    """A tiny SigLIP tower: 16 patches and no CLS token."""
    return SiglipVisionConfig(**tower(vision_use_head=False, **more))


def square_pixels(rows: list[Row], side: int = 16) -> Tensor:
    """`[images, 3, side, side]` for families that resize every image to one square."""
    return torch.stack([torch.randn(3, side, side, generator=gen) for _, gen in images(rows)])


def kinds(text: dict, pattern: list[str], layers: int = 6) -> dict:
    """`num_hidden_layers` and `layer_types` for a decoder whose layers follow `pattern`."""
    layers = int(text.get("num_hidden_layers", layers))
    return {"num_hidden_layers": layers, "layer_types": (pattern * layers)[:layers]}
