"""Tiny families given videos: the `images` of a row are videos, `image_id` is the placeholder of videos."""

import itertools
import math

import torch
from families import LlavaOnevision, Qwen2_5VL, Qwen3VL
from tiny_base import (
    END,
    START,
    VIDEO,
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


class Qwen2_5VLVideo(Qwen2_5VL):
    """Videos of any length and size. Unit: frames after the temporal merger, patches before the 2 × 2 merger."""

    name = "qwen2_5_vl_video"
    image_id = VIDEO
    sizes = ((2, 8, 8), (3, 4, 8), (4, 6, 4))

    def image_tokens(self, size, images_in_row):
        return [START, *[VIDEO] * (math.prod(size) // 4), END]

    def pixels(self, config, rows):
        patches = [torch.randn(math.prod(size), 96, generator=gen) for size, gen in images(rows)]
        grids = torch.tensor([size for size, _ in images(rows)])
        inputs = {"pixel_values_videos": torch.cat(patches), "video_grid_thw": grids}
        return inputs | {"second_per_grid_ts": torch.full((len(grids),), 0.5)}

    def extras(self, input_ids, attention_mask):
        return {"mm_token_type_ids": 2 * (input_ids == VIDEO).int()}


class Qwen3VLVideo(Qwen3VL):
    """Videos of any length and size, a timestamp of text before each frame. Unit: as Qwen2.5-VL's videos."""

    name = "qwen3_vl_video"
    image_id = VIDEO
    sizes = Qwen2_5VLVideo.sizes
    extras = Qwen2_5VLVideo.extras

    def image_tokens(self, size, images_in_row):
        frame = [*[VIDEO] * (size[1] * size[2] // 4), END]
        return [*itertools.chain(*([30 + second, 20, START, *frame] for second in range(size[0])))]

    def pixels(self, config, rows):
        inputs = Qwen2_5VLVideo.pixels(self, config, rows)
        inputs.pop("second_per_grid_ts")
        return inputs
