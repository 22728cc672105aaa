"""Tiny SmolVLM and Idefics3: a SigLIP-like tower, a pixel shuffle, and prompts with the marks of the processor."""

from typing import ClassVar

import torch
from tiny_base import IMAGE, PAD, Family, decoder, images, tower
from transformers import Idefics3Config, LlamaConfig, SmolVLMConfig

#: What opens each tile and closes a picture, a line break, and the mark of a tile's row and column (that of 0, 0).
FAKE, LINE, TILE = 6, 9, 11


class SmolVLM(Family):
    """Tiles line by line, a view of the whole behind them; rows of pictures are padded to the longest. Unit: tiles.

    Attributes:
        whole: ids of the mark of a view.
        last_line: ids of the two line breaks in front of it.
    """

    name = "smolvlm"
    sizes = ((1, 1), (1, 2), (2, 2))
    config_class = SmolVLMConfig
    whole: ClassVar = [8]
    last_line: ClassVar = [10]

    def config(self, text):
        options = {"image_token_id": IMAGE, "scale_factor": 2, "pad_token_id": PAD, "tie_word_embeddings": False}
        text_config = LlamaConfig(**decoder(text))
        return self.config_class(vision_config=tower(image_size=32), text_config=text_config, **options)

    def tiles(self, size):
        """Number of tiles, with the view where there is more than one."""
        return size[0] * size[1] + (size != (1, 1))

    def image_tokens(self, size, images_in_row):
        view = [FAKE, *self.whole, *[IMAGE] * 16, FAKE]
        if size == (1, 1):
            return view
        lines = [
            [token for column in range(size[1]) for token in (FAKE, TILE + 2 * row + column, *[IMAGE] * 16)]
            for row in range(size[0])
        ]
        return [token for line in lines[:-1] for token in (*line, LINE)] + lines[-1] + self.last_line + view

    def pixels(self, config, rows):
        tiles = iter([torch.randn(self.tiles(size), 3, 32, 32, generator=gen) for size, gen in images(rows)])
        own = [[tile for _ in row.images for tile in next(tiles)] for row in rows]
        pixel_values = torch.zeros(len(rows), max(map(len, own)), 3, 32, 32)
        mask = torch.zeros(*pixel_values.shape[:2], 32, 32, dtype=torch.long)
        for row, pictures in enumerate(own):
            for place, picture in enumerate(pictures):
                pixel_values[row, place], mask[row, place] = picture, 1
        return {"pixel_values": pixel_values, "pixel_attention_mask": mask}


class Idefics3(SmolVLM):
    """Merges in a method of its own; its tokenizer takes the mark of a view apart, and keeps line breaks apart."""

    name = "idefics3"
    config_class = Idefics3Config
    whole: ClassVar = [8, 20, 21]
    last_line: ClassVar = [LINE, LINE]
