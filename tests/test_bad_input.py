"""Every bad input is an error that names the argument, the value and the way out; nothing is changed by it."""

import re

import pytest
import torch
from contract import EVERY, FAMILIES, FIELDS, METHODS, model_of, state_of, takes
from families import scenario
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import vtc
from vtc.eval.results.settings import fields_of
from vtc.method.registry import method_class
from vtc.spec import build

#: Methods that keep=None gives a budget by another field.
BY_ANOTHER = {"dycoke", "evs"}


@pytest.mark.parametrize(
    ("keep", "error"),
    [
        (0.0, ValueError), (-0.5, ValueError), (1.5, ValueError), (float("nan"), ValueError),
        (float("inf"), ValueError), (0, ValueError), (-3, ValueError), (True, TypeError), ("half", TypeError),
        (None, TypeError),
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", [name for name in METHODS if "keep" in fields_of(method_class(name))])
def test_keep(method, keep, error):
    if keep is None and (method in BY_ANOTHER or method_class(method).may_adapt):
        assert build(method, {"keep": None}).adaptive != (method in BY_ANOTHER)
        return
    model = model_of("llava")
    before = state_of(model)
    with pytest.raises(error, match="keep.*" + re.escape(repr(keep))):
        vtc.patch(model, method, keep=keep)
    assert state_of(model) == before


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("divprun", "did you mean 'divprune'"),
        ("xyz", "unknown method 'xyz'; known: .*divprune"),
        ("divprune:kep=0.5", "no field 'kep'.*did you mean 'keep'"),
        ("divprune:keep=0.5,keep=0.2", "given twice"),
        ("divprune:keep", "not key=value"),
        ("divprune:keep=0.5+kcenter:keep=0.2", "divprune and kcenter can't be composed"),
        ("fastv:layer=2+fastv:layer=2", "both prune in front of layer 2"),
        ("fastv:layer=99", "layer 99 is out of range.*layers 0 to 4"),
        ("fastv:layer=0", "layer=0"),
        ("hiprune:object_layer=40", "tower layer 40 is out of range.*4 blocks"),
        ("kcenter:layer=-9", "tower layer -9 is out of range"),
        ("kcenter:rule=sum", "rule='sum'.*max-min.*max-sum"),
        ("", "unknown method ''"),
    ],
)
def test_specs(spec, words):
    model = model_of("llava")
    before = state_of(model)
    with pytest.raises(ValueError, match=words):
        vtc.patch(model, spec)
    assert state_of(model) == before


@pytest.mark.parametrize("family", ["qwen2_5_vl", "gemma3", "llava_onevision"])
def test_a_method_that_needs_cls_says_so(family):
    with pytest.raises(ValueError, match=f"CLS token, which {family} lacks; use pivot='mean'"):
        vtc.patch(model_of(family), "kcenter")


def test_patching_twice_and_unpatching_what_is_not_patched():
    model = model_of("llava")
    with pytest.raises(ValueError, match="not patched"):
        vtc.unpatch(model)
    with pytest.raises(ValueError, match="not patched"):
        vtc.trace(model)
    with vtc.patched(model, "divprune"):
        with pytest.raises(ValueError, match="patched already"):
            vtc.patch(model, "divprune")
        with pytest.raises(ValueError, match="patched already"):
            vtc.patch(model.model, "divprune")
        with pytest.raises(ValueError, match="has not run yet"):
            vtc.trace(model)


def test_arguments_of_patch():
    model = model_of("llava")
    with pytest.raises(ValueError, match="no method given"):
        vtc.patch(model)
    with pytest.raises(TypeError, match="spec=3 is a int"):
        vtc.patch(model, 3)
    with pytest.raises(ValueError, match="keep=… beside several methods"):
        vtc.patch(model, "divprune", "fastv", keep=0.5)
    with pytest.raises(ValueError, match="kind='selectr'"):
        vtc.list_methods("selectr")


def test_models_without_visual_placeholders():
    text = LlamaForCausalLM(LlamaConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, vocab_size=32,
                                        num_attention_heads=2))  # fmt: skip
    with pytest.raises(ValueError, match="llama: no module with get_placeholder_mask"):
        vtc.patch(text, "divprune")
    with pytest.raises(ValueError, match="no visual placeholders"):
        vtc.patch(nn.Linear(2, 2), "divprune")


def test_a_placeholder_count_that_does_not_match():
    model = model_of("llava")
    inputs = EVERY["llava"].inputs(model, scenario(EVERY["llava"], "single"))
    short = {name: value[:, :-2] if value.dim() == 2 else value for name, value in inputs.items()}
    short["input_ids"] = torch.where(torch.arange(short["input_ids"].shape[1]) == 8, 20, short["input_ids"])
    model(**inputs)  # transformers itself sets attributes in a model's first call
    before = state_of(model)
    with vtc.patched(model, "divprune:keep=0.5"), pytest.raises(Exception, match="do not match"):
        model(**short)
    assert state_of(model) == before


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("spec", ["hiprune:keep=0.5+transprune:layers=(1,2,3)", "divprune:keep=0.5+fastv:layer=2"])
def test_unpatching_leaves_nothing_even_after_an_exception(family, spec):
    model = model_of(family)
    inputs = EVERY[family].inputs(model, scenario(EVERY[family], "ragged"))
    weights = [p.clone() for p in model.parameters()]
    with torch.no_grad():
        expected = model(**inputs).logits  # first: transformers itself sets attributes in a model's first call
        model.generate(**inputs, max_new_tokens=2)
        before = state_of(model)
        handle = model.get_output_embeddings().register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError), vtc.patched(model, spec):
            model(**inputs)
        handle.remove()
        handle = (
            vtc.model.adapter.adapter_class(model)(model).parts.layers[3].register_forward_pre_hook(lambda *_: 1 / 0)
        )
        with pytest.raises(ZeroDivisionError), vtc.patched(model, spec):
            model.generate(**inputs, max_new_tokens=2)
        handle.remove()
        assert state_of(model) == before
        assert torch.equal(model(**inputs).logits, expected)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), weights))


def test_a_failure_in_mid_forward_does_not_spoil_the_next_call():
    model = model_of("llava")
    inputs = EVERY["llava"].inputs(model, scenario(EVERY["llava"], "ragged"))
    with torch.no_grad(), vtc.patched(model, "divprune:keep=0.5+fastv:layer=2"):
        expected = model(**inputs).logits
        handle = model.model.language_model.layers[3].register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(**inputs)
        handle.remove()
        assert torch.equal(model(**inputs).logits, expected)


def test_an_argument_of_unknown_shape_is_an_error_that_names_it():
    model = model_of("llava")
    inputs = EVERY["llava"].inputs(model, scenario(EVERY["llava"], "single"))
    odd = torch.zeros(3, inputs["input_ids"].shape[1], 7)
    with (
        torch.no_grad(),
        vtc.patched(model, "divprune:keep=0.5"),
        pytest.raises(ValueError, match=r"llava.*'odd_thing'"),
    ):
        model(**inputs, odd_thing=odd)


def test_keep_above_the_tokens_present_keeps_all():
    model = model_of("llava")
    inputs = EVERY["llava"].inputs(model, scenario(EVERY["llava"], "single"))
    with torch.no_grad():
        expected = model(**inputs).logits
        with vtc.patched(model, "divprune", keep=4096):
            assert torch.equal(model(**inputs).logits, expected)


@pytest.mark.parametrize("method", [name for name in METHODS if not name.startswith("test-") and takes("llava", name)])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_bad_features_never_give_duplicates_or_places_out_of_range(method, value):
    model = model_of("llava")
    inputs = EVERY["llava"].inputs(model, scenario(EVERY["llava"], "ragged"))
    inputs["pixel_values"][0] = value
    with torch.no_grad(), vtc.patched(model, method + FIELDS.get(method, "").replace(",", ":", 1)):
        model(**inputs)
        for image in vtc.trace(model).images:
            kept = image.kept()
            assert (kept.diff() > 0).all()
            assert not len(kept) or (kept.min() >= 0 and kept.max() < 16)
