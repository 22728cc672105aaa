"""What would go wrong silently is refused: each case ran to a wrong result, or to an obscure error, before it was."""

import copy
from dataclasses import dataclass

import pytest
import torch
from contract import EVERY, batch, model_of
from releases import CHUNKS_SHOW, MAKES_AHEAD

import vtc
from vtc.method.base import Method
from vtc.method.budget import Keep

pytestmark = pytest.mark.usefixtures("no_grad")


@dataclass
class Wrong(vtc.Selector):
    """Keeps the first token k times."""

    keep: Keep = 0.5
    name = "wrong"

    def select(self, visual, k):
        return vtc.Reduction(torch.zeros(len(visual.features), k, dtype=torch.long))


@dataclass
class Unrun(Method):
    """Of no kind."""

    keep: Keep = 0.5
    name = "unrun"


def test_a_selector_that_repeats_a_token():
    model, inputs = batch("llava", "single")
    with vtc.patched(model, Wrong()), pytest.raises(RuntimeError, match="wrong must keep ascending positions"):
        model(**inputs)


def test_a_method_of_no_kind():
    with pytest.raises(ValueError, match="unrun is neither a Reducer nor a Selector nor a Prune"):
        vtc.patch(model_of("llava"), Unrun())


@pytest.mark.parametrize("spec", ["divprune:keep=0.5", "fastv:layer=2"])
def test_a_mask_over_visual_tokens(spec):
    model, inputs = batch("llava", "single")
    inputs["attention_mask"][0, 8] = 0
    with vtc.patched(model, spec), pytest.raises(ValueError, match="attention_mask hides visual tokens of row 0"):
        model(**inputs)


def test_cropping_a_cache_into_an_image():
    model, inputs = batch("llava", "single")
    with vtc.patched(model, "divprune:keep=0.5"):
        cache = model(**inputs, use_cache=True).past_key_values
        with pytest.raises(ValueError, match="reaches into an image"):
            cache.crop(-12)
        cache.crop(-2)
        assert cache.get_seq_length() == inputs["input_ids"].shape[1] - 2


def test_a_copied_cache_after_its_patch():
    model, inputs = batch("llava", "single")
    with vtc.patched(model, "divprune:keep=0.5"):
        cache = copy.deepcopy(model(**inputs, use_cache=True).past_key_values)
    with pytest.raises(RuntimeError, match="unpatched"):
        model(input_ids=torch.tensor([[30]]), past_key_values=cache)


def test_a_copy_of_a_patched_model():
    model, _ = batch("llava", "single")
    with vtc.patched(model, "divprune:keep=0.5"), pytest.raises(ValueError, match="can't be copied"):
        copy.deepcopy(model)


def test_two_models_with_one_config():
    family, inputs = EVERY["llava"], batch("llava", "single")[1]
    one = family.build()
    two = type(one)(one.config).eval()
    vtc.patch(one, "fastv:layer=2")
    vtc.patch(two, "fastv:layer=2")
    vtc.unpatch(one)
    two(**inputs)
    vtc.unpatch(two)
    assert one.config.text_config._attn_implementation == "sdpa"


def test_unpatching_a_part():
    model, _ = batch("llava", "single")
    with vtc.patched(model, "divprune"), pytest.raises(ValueError, match="not patched"):
        vtc.unpatch(model.model.language_model)


@pytest.mark.skipif(not CHUNKS_SHOW, reason="in this release the bare model forgets pictures of a prompt in chunks")
@pytest.mark.skipif(not CHUNKS_SHOW, reason="the bare model of this release forgets its pictures in chunks")
def test_chunked_prefill_of_a_model_patched_inside():
    """`generate` belongs to the model outside, which is not seen: it feeds chunks, and these cut a picture apart."""
    model, inputs = batch("llava", "single")
    with vtc.patched(model.model, "divprune:keep=0.5"), pytest.raises(ValueError, match="comes in chunks"):
        model.generate(**inputs, max_new_tokens=2, prefill_chunk_size=8)


@pytest.mark.skipif(not MAKES_AHEAD, reason="this release takes no features that were made ahead")
def test_features_made_before_the_patch():
    model, inputs = batch("llava", "single")
    features = model.get_image_features(inputs.pop("pixel_values"), return_dict=True)
    with vtc.patched(model, "hiprune:keep=0.5"), pytest.raises(ValueError, match=r"make the features after vtc\.patch"):
        model(**inputs, mm_encoder_outputs={"image": features})


def test_a_prompt_that_ends_in_an_image_is_predicted_from_a_survivor():
    model, inputs = batch("llava", "single")
    end = int((inputs["input_ids"][0] == 2).nonzero()[-1]) + 1
    short = {name: value[:, :end] if value.dim() == 2 else value for name, value in inputs.items()}
    for spec in ("divprune:keep=2", "fastv:layer=2,keep=2"):
        with vtc.patched(model, spec):
            assert model(**short).logits[0, -1].std() > 0.1
            assert model(**inputs).logits[0, end - 1].std() > 0.1
