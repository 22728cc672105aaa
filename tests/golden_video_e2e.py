"""Golden checks of v_cast and vidcom2 in a whole model: a tiny Qwen3-VL, from the pictures of videos to logits."""

from functools import cache
from pathlib import Path
from typing import Any

import torch
from golden_cases import HIDDEN, Case, Checks, Form, UnknownForm, as_number, read
from torch import Tensor
from torch.testing import assert_close
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

import vtc
from vtc import VCAST, VidCom2

_SPATIAL, _TEMPORAL, _PATCH = 2, 2, 16


@cache
def model_of(file: Path, name: str = "weights") -> Any:
    """The model whose sizes and parameters a case of a file holds."""
    weights = read(file)[name]
    info = {key: plain(value) for key, value in weights.info.items() if key not in ("family", "tie")}
    text, vision = info.pop("text"), info.pop("vision")
    rope = {**text.pop("rope_scaling"), "rope_theta": text.pop("rope_theta")}
    assert (vision["spatial_merge_size"], vision["temporal_patch_size"], vision["patch_size"]) == (2, 2, _PATCH)
    config = Qwen3VLConfig(
        text_config={**text, "rope_parameters": rope}, vision_config=vision, tie_word_embeddings=False, **info
    )
    model = Qwen3VLForConditionalGeneration(config).eval()
    assert not model.load_state_dict(weights.reals(), strict=False).unexpected_keys
    return model


def plain(value: Any) -> Any:
    """What the metadata says, where a number may be written as a text, and a whole one as a real."""
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [plain(entry) for entry in value]
    if isinstance(value, bool):
        return value
    try:
        number = as_number(value, "a size")
    except UnknownForm:
        return value
    return int(number) if number == int(number) else number


def patches(video: Tensor) -> Tensor:
    """Pictures uint8 [2T, H, W, 3] as the tower is given them, [T·h·w, C·2·16·16]: blocks of 2 x 2 patches together."""
    scaled = (video.float() / 255 - 0.5) / 0.5
    frames, height, width, _ = scaled.shape
    size = (_TEMPORAL, height // 32, _SPATIAL, _PATCH, width // 32, _SPATIAL, _PATCH, 3)
    return scaled.reshape(frames // _TEMPORAL, *size).permute(0, 2, 5, 3, 6, 8, 1, 4, 7).flatten(0, 4).flatten(1)


def videos(case: Case) -> tuple[Tensor, Tensor]:
    """Patches and grids of the videos of a case, of which the tower makes tokens."""
    pictures = [case.stored(match[0]) for match in case.named(r"video\d+")]
    grids = [(len(video) // 2, video.shape[1] // _PATCH, video.shape[2] // _PATCH) for video in pictures]
    return torch.cat([patches(video) for video in pictures]), torch.tensor(grids)


def check_videos(case: Case) -> None:
    pixels, grids = videos(case)
    with torch.no_grad():
        found = model_of(case.file).model.get_video_features(pixels, grids)
    assert_close(torch.cat(list(found.pooler_output)), case["visual"], **HIDDEN)


def check_video_e2e(case: Case) -> None:
    model, ids = model_of(case.file), case.index("input_ids")
    pixels, grids = videos(case.beside("videos_" + case.name.rpartition("_")[2]))
    assert torch.equal(grids, case.index("video_grid_thw"))
    visual = ids == model.config.video_token_id
    inputs = {
        "input_ids": ids[None],
        "attention_mask": torch.ones_like(ids)[None],
        "pixel_values_videos": pixels,
        "video_grid_thw": grids,
        "mm_token_type_ids": 2 * visual.int()[None],
    }
    keep = case.number("ratio")
    method = VCAST(keep=keep) if case.text("method") == "v_cast" else VidCom2(keep=keep, exact=False)
    entered: dict[str, Any] = {}
    with torch.no_grad():
        assert_close(model(**inputs).logits[0, -1], case["logits_unpruned"], **HIDDEN)
        with vtc.patched(model, method):
            handle = model.model.language_model.register_forward_pre_hook(
                lambda _, args, kwargs: entered.update(kwargs), with_kwargs=True
            )
            logits = model(**inputs).logits[0, -1]
            trace = vtc.trace(model)
            handle.remove()
    starts = [0, *torch.tensor([len(image.source) for image in trace.images]).cumsum(0).tolist()]
    kept = torch.cat([image.kept() + start for image, start in zip(trace.images, starts)])
    assert kept.tolist() == case.indices("kept")
    alive = ~visual
    alive[visual.nonzero()[kept, 0]] = True
    assert alive.nonzero()[:, 0].tolist() == case.indices("places")
    assert torch.equal(entered["position_ids"][-3:, 0], case.index("position_ids"))
    assert_close(entered["deepstack_visual_embeds"][0], case["deepstack0"], **HIDDEN)
    assert_close(logits, case["logits"], **HIDDEN)


CHECKS: Checks = [
    Form(lambda c: c.file.stem == "qwen3_vl_video_e2e" and "visual" in c, check_videos, r"video\d+|visual"),
    Form(
        lambda c: c.file.stem == "qwen3_vl_video_e2e" and "logits" in c,
        check_video_e2e,
        r"input_ids|video_grid_thw|kept|places|position_ids|deepstack0|logits(_unpruned)?",
    ),
]
