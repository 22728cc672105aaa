"""The tiny Qwen3-VL of the golden files that hold whole forwards, and pictures as its image processors prepare them."""

from typing import Any

import torch
from golden_cases import SCORE, Case
from torch import Tensor
from torch.testing import assert_close
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

import vtc

#: Sides of a patch and of a cell of patches, and frames of a patch.
PATCH, MERGE, FRAMES = 16, 2, 2


def model_of(case: Case) -> Qwen3VLForConditionalGeneration:
    """The model whose config and weights stand beside a case, in eval mode; its `generate` doesn't stop by itself."""
    weights = case.beside("weights")
    info = numbers(weights.info)
    sizes = [info["vision"][name] for name in ("patch_size", "spatial_merge_size", "temporal_patch_size")]
    assert sizes == [PATCH, MERGE, FRAMES]
    text = dict(info["text"])
    text["rope_parameters"] = {**text.pop("rope_scaling"), "rope_theta": float(text.pop("rope_theta"))}
    ids = {name: value for name, value in info.items() if name.endswith("_token_id")}
    config = Qwen3VLConfig(vision_config=info["vision"], text_config=text, tie_word_embeddings=False, **ids)
    model = Qwen3VLForConditionalGeneration._from_config(config, attn_implementation="eager").eval()
    model.load_state_dict(weights.reals())
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    return model


def numbers(value: Any) -> Any:
    """What the metadata says, its numbers as numbers however they are stored, whole ones as int."""
    if isinstance(value, dict):
        return {name: numbers(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [numbers(entry) for entry in value]
    try:
        number = float(value)
    except (TypeError, ValueError):
        return value
    return int(number) if number == round(number) and not isinstance(value, bool) else number


def pixels_of(picture: Tensor) -> Tensor:
    """Patches [T·h·w, C·FRAMES·PATCH²], cell by cell, of a picture [H, W, 3] or of a video [FRAMES·T, H, W, 3].

    They are of 0 to 255; mean and deviation are 0.5. A picture is its own next frame.
    """
    frames = picture.expand(FRAMES, *picture.shape) if picture.dim() == 3 else picture
    scaled = (frames.float() / 255 - 0.5) / 0.5
    steps = scaled.permute(0, 3, 1, 2).unflatten(0, (-1, FRAMES))
    cut = steps.unflatten(4, (-1, MERGE, PATCH)).unflatten(3, (-1, MERGE, PATCH))
    return cut.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).flatten(5).flatten(0, 4)


def inputs_of(ids: Tensor, kind: str, pictures: list[Tensor], config: Qwen3VLConfig) -> dict[str, Tensor]:
    """What a processor gives for a prompt of one row and its pictures (kind "image") or videos ("video")."""
    grids = [[(len(p) // FRAMES if p.dim() == 4 else 1), *(side // PATCH for side in p.shape[-3:-1])] for p in pictures]
    pixels = "pixel_values" if kind == "image" else "pixel_values_videos"
    types = (ids == config.image_token_id).int() + 2 * (ids == config.video_token_id).int()
    return {
        "input_ids": ids[None],
        "attention_mask": torch.ones_like(ids)[None],
        "mm_token_type_ids": types[None],
        pixels: torch.cat([pixels_of(picture) for picture in pictures]),
        f"{kind}_grid_thw": torch.tensor(grids),
    }


@torch.no_grad()
def check_replayed(case: Case, model: Any, method: Any, inputs: dict[str, Tensor], kept: str) -> dict[str, Any]:
    """The untouched model, and what its decoder is given and gives under a method, are as a case says.

    Args:
        case: its `kept`, places, position_ids, deepstack0, logits and logits_unpruned are compared.
        model: of the case.
        method: that removes visual tokens.
        inputs: of the model, for a prompt of one row.
        kept: the name of what is left, counted over all that is shown.

    Returns:
        The decoder's keyword arguments under the method.
    """
    assert_close(model(**inputs).logits[0, -1], case["logits_unpruned"], **SCORE)
    given: dict[str, Any] = {}
    with vtc.patched(model, method):
        handle = model.model.language_model.register_forward_pre_hook(
            lambda module, args, kwargs: given.update(kwargs), with_kwargs=True
        )
        logits = model(**inputs).logits[0, -1]
        handle.remove()
        images = vtc.trace(model).images
    starts = [0, *torch.tensor([len(image.source) for image in images]).cumsum(0).tolist()]
    left = torch.cat([image.kept() + start for image, start in zip(images, starts)])
    alive = inputs["mm_token_type_ids"][0] == 0
    alive[(~alive).nonzero()[left, 0]] = True
    assert torch.equal(left, case.index(kept)) and torch.equal(alive.nonzero()[:, 0], case.index("places"))
    assert torch.equal(given["position_ids"][-3:, 0], case.index("position_ids"))
    assert_close(given["deepstack_visual_embeds"][0], case["deepstack0"], **SCORE)
    assert_close(logits, case["logits"], **SCORE)
    return given
