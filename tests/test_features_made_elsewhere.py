"""Features that were made ahead, copied, saved, rebuilt, offloaded: the same stays as from pixels, or it is refused.

Right is what the same patch keeps of the same pictures, given as pixels to a model on one device.
"""

import copy
import inspect
import tempfile

import pytest
import torch
from contract import EVERY, model_of
from copies import by_torch
from covering import product
from families import Row, scenario
from transformers import AutoModelForImageTextToText

import vtc

AHEAD = "mm_encoder_outputs"
pytestmark = [
    pytest.mark.usefixtures("no_grad"),
    pytest.mark.skipif(
        AHEAD not in inspect.signature(type(model_of("llava")).forward).parameters, reason="this release takes none"
    ),
]

FAMILIES = (
    "llava", "llava_next", "llava_onevision", "qwen2_5_vl", "internvl", "gemma3", "mistral3", "smolvlm",
    "qwen2_5_vl_video", "llava_onevision_video",
)  # fmt: skip
SPECS = ("stride:keep=0.5", "pool:keep=0.5", "evs:keep=0.25", "hiprune:keep=0.5", "visionzip:keep=0.5", "tome:keep=0.5")
#: What reads the tower, or works in it.
TOWER = ("hiprune:keep=0.5", "visionzip:keep=0.5", "tome:keep=0.5")
#: Not known without the call's own facts.
SIZED = ("llava_next", "mistral3")


def rebuilt(output):
    """As accelerate's hooks send it from device to device."""
    return type(output)(**dict(output.items()))


def moved(output):
    """As they send it to another device: no tensor stays the same."""

    def move(value):
        if isinstance(value, torch.Tensor):
            return value.clone()
        return type(value)(map(move, value)) if isinstance(value, list | tuple) else value

    return type(output)(**{name: move(value) for name, value in output.items()})


WAYS = {"saved": by_torch, "copied": copy.deepcopy, "rebuilt": rebuilt, "moved": moved}


def kept(model):
    return [image.kept().tolist() for image in vtc.trace(model).images]


def case(family):
    """(model, its inputs without pixels, the pixels, how its features are made)."""
    model = model_of(family)
    inputs = EVERY[family].inputs(model, scenario(EVERY[family], "several_images"))
    pixels = {name: inputs.pop(name) for name in list(inputs) if name.startswith("pixel_")}
    kind = "video" if "pixel_values_videos" in pixels else "image"

    def make():
        method = getattr(model.model, f"get_{kind}_features")
        given = {**inputs, **pixels}
        return method(**{n: given[n] for n in inspect.signature(method).parameters if n in given}, return_dict=True)

    return model, inputs, pixels, kind, make


@product(family=FAMILIES, spec=SPECS, way=list(WAYS))
def test_features_made_under_the_patch_are_known_again(family, spec, way):
    if spec in TOWER[2:] and family in ("internvl", "smolvlm", "llava_onevision_video"):
        pytest.skip("a reducer needs the prompt here, or can't follow pooled frames")
    model, inputs, pixels, kind, make = case(family)
    with vtc.patched(model, spec):
        expected = model(**inputs, **pixels).logits
        right = kept(model)
        made = WAYS[way](make())
        torch.testing.assert_close(model(**inputs, **{AHEAD: {kind: made}}).logits, expected)
        assert kept(model) == right


@product(family=FAMILIES, spec=SPECS)
def test_features_made_before_the_patch_have_the_grid_of_the_call(family, spec):
    model, inputs, pixels, kind, make = case(family)
    made = make()
    if spec in TOWER[2:] and family == "llava_onevision_video":
        pytest.skip("no reducer here")
    with vtc.patched(model, spec):
        if spec in TOWER:
            with pytest.raises(ValueError, match=r"make the features after vtc\.patch"):
                model(**inputs, **{AHEAD: {kind: made}})
            return
        model(**inputs, **pixels)
        right = kept(model)
        model(**inputs, **{AHEAD: {kind: made}})
        assert kept(model) == right


@product(family=SIZED, spec=["stride:keep=0.5", "pool:keep=0.5", "frame_stride:keep=0.5", "atp:keep=0.5"])
def test_a_grid_that_nobody_tells_is_refused(family, spec):
    model, inputs, pixels, kind, make = case(family)
    made = make()
    del inputs["image_sizes"], pixels
    inputs.pop("batch_num_images", None)
    with (
        vtc.patched(model, spec),
        pytest.raises(ValueError, match=r"rows and columns is not known.*image_sizes"),
    ):
        model(**inputs, **{AHEAD: {kind: made}})
    with vtc.patched(model, "fastv:layer=1,keep=0.5"):
        model(**inputs, **{AHEAD: {kind: made}})
    with vtc.patched(model, "stride:keep=1.0"):
        assert torch.equal(
            model(**inputs, **{AHEAD: {kind: made}}).logits, model_of(family)(**inputs, **{AHEAD: {kind: made}}).logits
        )


@pytest.mark.parametrize("family", ["qwen2_5_vl_video", "qwen2_5_vl", "mistral3"])
def test_generate_is_told_of_features_by_its_own_arguments(family):
    model, inputs, pixels, kind, make = case(family)
    made = make()
    with vtc.patched(model, "stride:keep=0.5"):
        for options in ({}, {"num_beams": 2}):
            model.generate(**inputs, **pixels, max_new_tokens=2, do_sample=False, **options)
            right = kept(model)
            given = {AHEAD: {kind: copy.deepcopy(made)}}
            model.generate(**inputs, **given, max_new_tokens=2, do_sample=False, **options)
            assert kept(model) == right


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3"])
def test_features_of_another_picture_or_changed_ones_are_not_taken_for_those_that_were_made(family):
    model, inputs, _, kind, make = case(family)
    with vtc.patched(model, "hiprune:keep=0.5"):
        made = make()
        parts = made.pooler_output
        (parts if isinstance(parts, torch.Tensor) else parts[0]).mul_(2)
        with pytest.raises(ValueError, match=r"make the features after vtc\.patch"):
            model(**inputs, **{AHEAD: {kind: made}})
        made = make()
        made.pooler_output = [part + 1 for part in made.pooler_output]
        if isinstance(parts, torch.Tensor):
            made.pooler_output = torch.stack(made.pooler_output)
        with pytest.raises(ValueError, match=r"make the features after vtc\.patch"):
            model(**inputs, **{AHEAD: {kind: made}})


@product(family=["llava", "gemma3", "qwen2_5_vl"], spec=["hiprune:keep=0.5", "tome:keep=0.5"])
def test_features_in_another_order_bring_what_was_seen_of_each(family, spec):
    """Two pictures, encoded as A, B and shown as B, A; right is that they are encoded as B, A."""
    model, one = model_of(family), EVERY[family]
    size = one.sizes[1]
    ab, ba = (one.inputs(model, [Row((size,), seed), Row((size,), other)]) for seed, other in ((4, 5), (5, 4)))
    with vtc.patched(model, spec):
        model(**ba)
        right = kept(model)
        names = inspect.signature(model.model.get_image_features).parameters
        made = model.model.get_image_features(**{n: ab[n] for n in names if n in ab}, return_dict=True)
        parts = made.pooler_output
        made.pooler_output = parts.flip(0) if isinstance(parts, torch.Tensor) else list(parts)[::-1]
        model(**{n: v for n, v in ba.items() if n != "pixel_values"}, **{AHEAD: {"image": made}})
        assert kept(model) == right


@pytest.mark.parametrize("family", ["llava", "llava_next", "llava_onevision", "qwen2_5_vl", "internvl", "gemma3"])
def test_an_offloaded_model_keeps_the_same(family, tmp_path):
    base = EVERY[family].build()
    inputs = EVERY[family].inputs(base, scenario(EVERY[family], "ragged"))
    places = {"lm_head": "cpu", **{f"model.{name}": "disk" for name, _ in base.model.named_children()}}
    places |= {f"model.{name}": "cpu" for name, _ in base.model.named_parameters(recurse=False)}
    base.save_pretrained(tmp_path)
    with tempfile.TemporaryDirectory() as folder:
        model = AutoModelForImageTextToText.from_pretrained(tmp_path, device_map=places, offload_folder=folder)
        model.generation_config = base.generation_config
        for spec in ("stride:keep=0.5", "hiprune:keep=0.5", "tome:keep=0.5"):
            with vtc.patched(base, spec):
                base(**inputs)
                right = kept(base)
                tokens = base.generate(**inputs, max_new_tokens=2, do_sample=False)
                assert kept(base) == right
            with vtc.patched(model, spec):
                model(**inputs)
                assert kept(model) == right
                again = model.generate(**inputs, max_new_tokens=2, do_sample=False)
                assert kept(model) == right and torch.equal(again, tokens)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "glm4v"])
@pytest.mark.parametrize("spec", ["stride:keep=0.5", "pool:keep=0.25"])
def test_a_call_that_tells_another_grid_than_the_features_were_made_with_is_believed(family, spec):
    """As many tokens in other rows and columns: what is kept is what is kept of a picture that lies so."""
    model = model_of(family)
    wide, tall = (EVERY[family].inputs(model, [Row((size,), 2)]) for size in ((8, 12), (12, 8)))
    with vtc.patched(model, spec):
        model(**wide)
        of_wide = kept(model)
        model(**tall)
        right = kept(model)
        assert right != of_wide
        made = model.model.get_image_features(wide["pixel_values"], wide["image_grid_thw"], return_dict=True)
        model(**{name: value for name, value in tall.items() if name != "pixel_values"}, **{AHEAD: {"image": made}})
        assert kept(model) == right
