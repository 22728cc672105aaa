"""What a call goes on with: caches that a patch knows, those that it doesn't, and arguments that look like others."""

import warnings

import pytest
import torch
from contract import batch, greedy, model_of
from releases import HERE
from transformers import DynamicCache

import vtc
from vtc.calls.outputs import Output

pytestmark = pytest.mark.usefixtures("no_grad")
CACHE = "cache" if HERE.release[:2] >= (5, 24) else "past_key_values"


def text(count, start=20):
    return torch.arange(start, start + count)[None]


def cache_of(output):
    return Output(output).cache


def used(model, family):
    """The model, patched, once it has compressed a conversation."""
    greedy(model, batch(family, "single")[1], 2)
    return model


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3"])
def test_drafts_of_text_go_on_with_caches_that_lost_nothing(family):
    model = model_of(family)
    ids = torch.cat([text(12), text(6)], dim=1)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    bare = greedy(model, inputs, 8)
    with vtc.patched(model, "divprune:keep=0.5"):
        assert torch.equal(greedy(used(model, family), inputs, 8, prompt_lookup_num_tokens=3), bare)


@pytest.mark.parametrize("family", ["llava", "gemma3", "mistral3"])
def test_a_cropped_cache_of_text_goes_on(family):
    model = model_of(family)

    def asked():
        cache = cache_of(model(input_ids=text(8), use_cache=True))
        cache.crop(-3)
        return model(input_ids=text(2, 50), **{CACHE: cache}).logits

    bare = asked()
    with vtc.patched(model, "divprune:keep=0.5"):
        assert torch.equal(asked(), bare)
        used(model, family)
        assert torch.equal(asked(), bare)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "paligemma"])
def test_a_cache_that_was_filled_before_the_patch_goes_on(family):
    model, inputs = batch(family, "single")
    outputs = [model(**inputs, use_cache=True) for _ in range(2)]
    bare = model(input_ids=text(2), **{CACHE: cache_of(outputs[0])}).logits
    with vtc.patched(model, "divprune:keep=0.5"):
        assert torch.equal(model(input_ids=text(2), **{CACHE: cache_of(outputs[1])}).logits, bare)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "internvl"])
@pytest.mark.parametrize("spec", ["divprune:keep=0.5", "fastv:layer=2,keep=0.5"])
def test_a_cache_rebuilt_from_a_compressed_one_is_refused(family, spec):
    model, inputs = batch(family, "single")
    with vtc.patched(model, spec):
        cache = cache_of(model(**inputs, use_cache=True))
        again = DynamicCache([(layer.keys, layer.values) for layer in cache.layers])
        with pytest.raises(RuntimeError, match=r"(?i)cache"):
            model(input_ids=text(1), **{CACHE: again})


def test_a_compressed_call_behind_others_wants_the_whole_mask():
    model, inputs = batch("llava", "single")
    with vtc.patched(model, "divprune:keep=0.5"):
        cache = cache_of(model(input_ids=text(9), use_cache=True))
        with pytest.raises(ValueError, match="a compressed call behind 9 needs it over all"):
            model(**inputs, **{CACHE: cache})


def test_a_mask_of_something_else_is_not_taken_for_the_attention_mask():
    model, inputs = batch("gemma4", "single")
    inputs.pop("attention_mask")
    frames = torch.ones_like(inputs["input_ids"], dtype=torch.bool)
    frames[0, 0] = False
    with vtc.patched(model, "divprune:keep=0.5"):
        whole = model.model(**inputs).last_hidden_state
        assert torch.equal(model.model(**inputs, input_features_mask=frames).last_hidden_state, whole)


def test_positions_may_begin_anywhere():
    model, inputs = batch("llava", "single")
    places = torch.arange(inputs["input_ids"].shape[1])[None]
    with vtc.patched(model, "divprune:keep=0.5"):
        one, two = (model(**inputs, position_ids=places + start).logits[:, -1] for start in (0, 5))
    torch.testing.assert_close(one, two, atol=1e-3, rtol=1e-3)  # rotary embeddings see distances


def test_numbers_beside_embeddings_are_no_pictures():
    model = model_of("llava")
    embeds = model.get_input_embeddings()(text(5))
    with vtc.patched(model, "divprune:keep=0.5"), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model(inputs_embeds=embeds, labels=text(5), num_items_in_batch=torch.tensor(7.0))
    (said,) = (str(warning.message) for warning in caught)
    assert "pictures were given" not in said and "inputs_embeds came without input_ids" in said


def test_an_error_of_ones_own_keeps_its_words():
    class Stop(RuntimeError):
        pass

    def stop(*_):
        raise Stop("stop")

    model, inputs = batch("llava", "single")
    handle = model.model.language_model.layers[1].register_forward_pre_hook(stop)
    try:
        with vtc.patched(model, "divprune:keep=0.5"), pytest.raises(Stop) as caught:
            model(**inputs)
        assert caught.value.args == ("stop",)
    finally:
        handle.remove()
