"""Decoder layers that attend to the keys of another one: the last ones of Gemma 4 E2B and E4B."""

from contextlib import ExitStack
from types import SimpleNamespace

import pytest
import torch
from contract import ATTENTIONS, EVERY, check_rows, model_of
from families import Row

import vtc
from vtc.calls.attention import sources_of_keys

FAMILY = EVERY["gemma4_shared"]
ROWS = [Row(((6, 12),), 2), Row(((8, 8),), 5), Row(((12, 4), (8, 8)), 3)]
PRUNES = ("fastv:layer=1,keep=0.4", "fastv:layer=2,keep=0.4", "fastv:layer=1,keep=0.7+fastv:layer=2,keep=0.4")
STEPS = 4


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def model_and_inputs(rows, attention="eager"):
    model = model_of(FAMILY.name, attention)
    return model, FAMILY.inputs(model, rows)


def hidden_by_masks(model, dropped):
    """Hooks under which decoder layers see none of the tokens `dropped[layer]`, places in the one row."""

    def hide(places):
        def before(module, args, kwargs):
            mask = kwargs["attention_mask"].clone()
            mask[..., places] = torch.finfo(mask.dtype).min
            return args, {**kwargs, "attention_mask": mask}

        return before

    stack = ExitStack()
    for layer, places in zip(model.model.language_model.layers, dropped, strict=True):
        stack.callback(layer.register_forward_pre_hook(hide(places), with_kwargs=True).remove)
    return stack


def dropped_of(trace):
    """Of each layer, the places in the row that are not there."""

    def gone(image, layer):
        places = image.source.positions
        return places[~torch.isin(torch.arange(len(places)), image.kept(layer).cpu())]

    return [torch.cat([gone(image, layer) for image in trace.images]) for layer in range(len(trace.tokens_per_layer))]


@pytest.mark.parametrize("spec", PRUNES)
@pytest.mark.parametrize("row", ROWS)
def test_a_pruned_prompt_is_one_whose_tokens_are_hidden_in_each_layer(spec, row):
    model, inputs = model_and_inputs([row])
    with vtc.patched(model, spec):
        pruned = model(**inputs).logits
        dropped = dropped_of(vtc.trace(model))
    assert len(dropped[-1]) > len(dropped[0]) == 0
    with hidden_by_masks(model, dropped):
        hidden = model(**inputs).logits
    text = inputs["input_ids"][0] >= 16
    torch.testing.assert_close(pruned[0, text], hidden[0, text], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("spec", PRUNES)
def test_so_is_what_is_generated_behind_it(spec):
    model = FAMILY.build("eager", sliding_window=512)  # of a shorter window, more is in sight where some are gone
    inputs = FAMILY.inputs(model, ROWS[:1])
    options = {"max_new_tokens": STEPS, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    with vtc.patched(model, spec):
        pruned = model.generate(**inputs, **options)
        model(**inputs)
        dropped = dropped_of(vtc.trace(model))
    with hidden_by_masks(model, dropped):
        hidden = model.generate(**inputs, **options)
    assert torch.equal(pruned.sequences, hidden.sequences)
    torch.testing.assert_close(torch.stack(pruned.logits), torch.stack(hidden.logits), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(
    "spec", ["divprune:keep=0.5", "pool:keep=0.5", "fastv:layer=2,keep=0.5", "fastv:layer=1,keep=1.0"]
)
def test_logits_that_are_not_asked_for_change_none_of_the_others(spec, attention):
    """`generate` asks for the last ones alone, and the decoder makes no others then."""
    model, inputs = model_and_inputs(ROWS, attention)
    with vtc.patched(model, spec):
        whole = model(**inputs).logits
        for count in (1, 2, 5):
            some = model(**inputs, logits_to_keep=count).logits
            torch.testing.assert_close(some, whole[:, -count:], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("spec", ["divprune:keep=0.5", "pool:keep=0.5"])
def test_steps_are_what_the_whole_would_give_anew(spec, attention):
    model, inputs = model_and_inputs(ROWS[1:2], attention)
    options = {"max_new_tokens": STEPS, "do_sample": False}
    with vtc.patched(model, spec):
        tokens = model.generate(**inputs, **options)[:, -STEPS:]
        for step in range(STEPS):
            longer = {**inputs, "input_ids": torch.cat([inputs["input_ids"], tokens[:, :step]], dim=1)}
            longer["attention_mask"] = torch.ones_like(longer["input_ids"])
            longer |= FAMILY.extras(longer["input_ids"], longer["attention_mask"])
            assert model(**longer, use_cache=False).logits[:, -1, 16:].argmax(-1) + 16 == tokens[:, step]


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("spec", ["divprune:keep=0.5", *PRUNES])
def test_rows_are_generated_as_each_alone(spec, attention):
    check_rows(FAMILY, model_of(FAMILY.name, attention), spec, ROWS, STEPS)


@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("spec", ["fastv:layer=2,keep=1.0", "divprune:keep=1.0"])
def test_keeping_all_is_bit_exact_whatever_is_asked_for(spec, count):
    model, inputs = model_and_inputs(ROWS, "sdpa")
    plain = model(**inputs, logits_to_keep=count).logits
    with vtc.patched(model, spec):
        assert torch.equal(model(**inputs, logits_to_keep=count).logits, plain)


@pytest.mark.parametrize("spec", ["fastv:layer=3", "fastv:layer=5", "pyramiddrop", "divprune+fastv:layer=4"])
def test_a_prune_between_keys_and_those_who_take_them(spec):
    model, _ = model_and_inputs(ROWS)
    with pytest.raises(ValueError, match=r"layer \d .* keys of layer [23]; let .* in front of layers 1 to 2 alone"):
        vtc.patch(model, spec)


def test_sources_of_keys():
    shared, own = SimpleNamespace(is_kv_shared_layer=True), SimpleNamespace(is_kv_shared_layer=False)
    kinds = ["sliding", "full", "sliding", "full"]
    config = SimpleNamespace(layer_types=kinds, num_kv_shared_layers=2)
    assert sources_of_keys([own, own, shared, shared], config) == {2: 0, 3: 1}
    assert sources_of_keys([None] * 4, config) == {2: 0, 3: 1}  # modules that don't say
    assert sources_of_keys([own] * 4, SimpleNamespace(num_kv_shared_layers=0)) == {}
    told = SimpleNamespace(kv_source_layers=[0, 0, 2, 0])
    assert sources_of_keys([own, shared, own, shared], told) == {1: 0, 3: 0}
    assert sources_of_keys([own, own, own, shared], SimpleNamespace()) == {3: 2}
