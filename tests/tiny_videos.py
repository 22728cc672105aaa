"""Tiny families given videos: the `images` of a row are videos, `image_id` is the placeholder of videos."""

import itertools
import math

import torch
from families import InternVL, LlavaOnevision, Qwen2_5VL, Qwen2VL, Qwen3VL
from tiny_base import (
    END,
    IMAGE,
    START,
    VIDEO,
    Family,
    Row,
    images,
)
from tiny_plain import LlavaNextVideo, VideoLlava


class LlavaOnevisionVideo(LlavaOnevision):
    """Videos: 4 pooled tokens per frame and one newline at the end. Unit: frames, the same in a batch."""

    name = "llava_onevision_video"
    image_id = VIDEO
    sizes = ((6,), (6,), (6,))

    def image_tokens(self, size, images_in_row):
        return [VIDEO] * (4 * size[0] + 1)

    def pixels(self, config, rows):
        frames = [torch.randn(size[0], 3, 16, 16, generator=gen) for size, gen in images(rows)]
        return {"pixel_values_videos": torch.stack(frames)}


class LlavaNextVideoVideo(LlavaNextVideo):
    """Videos: 4 pooled tokens per frame. Unit: frames, the same in a batch."""

    name = "llava_next_video_video"
    image_id = VIDEO
    sizes = ((6,), (6,), (6,))
    pixels = LlavaOnevisionVideo.pixels

    def image_tokens(self, size, images_in_row):
        return [VIDEO] * (4 * size[0])


class VideoLlavaVideo(VideoLlava):
    """Videos: 16 tokens and a CLS token per frame. Unit: frames, the same in a batch."""

    name = "video_llava_video"
    image_id = VIDEO
    sizes = ((3,), (3,), (3,))
    pixels = LlavaOnevisionVideo.pixels

    def image_tokens(self, size, images_in_row):
        return [VIDEO] * (17 * size[0])


class Qwen2VLVideo(Qwen2VL):
    """Videos of any length and size. Unit: frames after the temporal merger, patches before the 2 × 2 merger."""

    name = "qwen2_vl_video"
    image_id = VIDEO
    sizes = ((2, 8, 8), (3, 4, 8), (4, 6, 4))

    def image_tokens(self, size, images_in_row):
        return [START, *[VIDEO] * (math.prod(size) // 4), END]

    def pixels(self, config, rows):
        patches = [torch.randn(math.prod(size), 96, generator=gen) for size, gen in images(rows)]
        grids = torch.tensor([size for size, _ in images(rows)])
        return {"pixel_values_videos": torch.cat(patches), "video_grid_thw": grids}

    def extras(self, input_ids, attention_mask):
        return {"mm_token_type_ids": 2 * (input_ids == VIDEO).int()}


class Qwen2_5VLVideo(Qwen2_5VL):
    """As Qwen2-VL's videos, with the seconds between frames."""

    name = "qwen2_5_vl_video"
    image_id = VIDEO
    sizes = Qwen2VLVideo.sizes
    image_tokens = Qwen2VLVideo.image_tokens
    extras = Qwen2VLVideo.extras

    def pixels(self, config, rows):
        inputs = Qwen2VLVideo.pixels(self, config, rows)
        return inputs | {"second_per_grid_ts": torch.full((len(images(rows)),), 0.5)}


class Qwen3VLVideo(Qwen3VL):
    """Videos of any length and size, a timestamp of text before each frame. Unit: as Qwen2-VL's videos."""

    name = "qwen3_vl_video"
    image_id = VIDEO
    sizes = Qwen2VLVideo.sizes
    pixels = Qwen2VLVideo.pixels
    extras = Qwen2VLVideo.extras

    def image_tokens(self, size, images_in_row):
        frame = [*[VIDEO] * (size[1] * size[2] // 4), END]
        return [*itertools.chain(*([30 + second, 20, START, *frame] for second in range(size[0])))]


class InternVLVideo(InternVL):
    """Videos of any length as images of one tile, text before each frame. Unit: frames."""

    name = "internvl_video"
    sizes = ((2,), (3,), (4,))

    def image_tokens(self, size, images_in_row):
        return [*itertools.chain(*([30 + frame, START, *[IMAGE] * 16, END] for frame in range(size[0])))]

    def pixels(self, config, rows):
        return {
            "pixel_values": torch.cat([torch.randn(size[0], 3, 32, 32, generator=gen) for size, gen in images(rows)])
        }


class Mixed(Family):
    """Images and videos in one prompt, at most one image in a row; a size starts with "image" or "video"."""

    def __init__(self, image: Family, video: Family):
        self.of = {"image": image, "video": video}
        self.name, self.config, self.attention = f"{image.name} and video", image.config, image.attention

    def image_tokens(self, size, images_in_row):
        return self.of[size[0]].image_tokens(size[1:], 1)

    def pixels(self, config, rows):
        inputs = {}
        for kind, family in self.of.items():
            alone = [Row(tuple(s[1:] for s in row.images if s[0] == kind), row.text_seed) for row in rows]
            inputs |= family.pixels(config, alone) if any(row.images for row in alone) else {}
        return inputs

    def extras(self, input_ids, attention_mask):
        more = [family.extras(input_ids, attention_mask) for family in self.of.values()]
        return {name: more[0][name] + more[1][name] for name in more[0]}

    def visual_tokens(self, rows):
        return [[sum(i in (IMAGE, VIDEO) for i in self.image_tokens(size, 1)) for size in row.images] for row in rows]
