"""Listening to attention changes nothing of what a model sees of itself, and holds nothing."""

import copy
import gc
import threading
import weakref

import pytest
import torch
from contract import EVERY, METHODS, batch, model_of, refusal, spec_of, takes
from covering import REST
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import vtc
from vtc.attention.tap import Tap

READERS = ("fastv:layer=2,keep=0.5", "hiprune:keep=0.5", "tome:keep=0.6+fastv:layer=3,keep=0.5", "spatten:keep=0.5")


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def registry():
    """All that can be told of the registry of attention functions."""
    functions = ALL_ATTENTION_FUNCTIONS
    return type(functions), {**vars(functions)}, functions["sdpa"], functions.get_interface("eager", registry)


# ---------------------------------------------------------------- what a model sees of itself


@pytest.mark.parametrize("spec", READERS)
def test_a_model_reads_the_name_of_its_attention_as_ever(spec):
    model, inputs = batch("llava", "ragged")
    read = []
    modules = [module for module in model.modules() if hasattr(module, "config")]
    hooks = [
        module.register_forward_pre_hook(lambda module, args: read.append(module.config._attn_implementation))
        for module in modules
    ]
    with vtc.patched(model, spec):
        assert {module.config._attn_implementation for module in modules} == {"sdpa"}
        model(**inputs)
    for hook in hooks:
        hook.remove()
    assert len(read) > len(modules) / 2 and set(read) == {"sdpa"}


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3", "gemma4_shared"])
@pytest.mark.parametrize("spec", READERS)
def test_another_implementation_may_be_set_under_a_patch(family, spec):
    """As if it had been set before; and it stays."""
    if refusal(family, spec) is not None:
        pytest.skip("refused")
    model, inputs = EVERY[family].build(), batch(family, "ragged")[1]
    reference = model_of(family, "eager")
    with vtc.patched(reference, spec):
        expected, counts = reference(**inputs).logits, vtc.trace(reference).tokens_per_layer
    with vtc.patched(model, spec):
        model(**inputs)
        model.set_attn_implementation("eager")
        assert torch.equal(model(**inputs).logits, expected)
        assert torch.equal(vtc.trace(model).tokens_per_layer, counts)
    assert model.config.get_text_config()._attn_implementation == "eager"
    assert torch.equal(model(**inputs).logits, reference(**inputs).logits)


def test_an_implementation_that_a_prune_cannot_have_is_refused_when_it_is_used():
    model, inputs = EVERY["llava"].build(), batch("llava", "ragged")[1]
    expected = model(**inputs).logits
    with vtc.patched(model, "fastv:layer=2,keep=0.5"):
        for config in (model.config, model.config.text_config):
            config._attn_implementation_internal = "flex_attention"
        with pytest.raises(ValueError, match=r"block masks of flex_attention; call model\.set_attn_implementation"):
            model(**inputs)
        for config in (model.config, model.config.text_config):
            config._attn_implementation_internal = "sdpa"
        assert model(**inputs).logits.shape == expected.shape
    assert torch.equal(model(**inputs).logits, expected)


def test_only_the_model_that_is_patched_is_heard():
    """Although the other one shares its config, and runs meanwhile in another thread."""
    family, inputs = EVERY["llava"], batch("llava", "single")[1]
    one = family.build()
    two = type(one)(one.config).eval()
    plain = two(**inputs).logits
    seen = []
    with vtc.patched(one, "fastv:layer=2,keep=0.5"):
        expected = one(**inputs).logits
        thread = threading.Thread(target=lambda: seen.extend(two(**inputs).logits for _ in range(5)))
        thread.start()
        ours = [one(**inputs).logits for _ in range(5)]
        thread.join()
    assert len(seen) == 5 and all(torch.equal(logits, plain) for logits in seen)
    assert all(torch.equal(logits, expected) for logits in ours)


def test_a_module_that_asks_for_a_name_itself_is_heard():
    """As files of transformers 4 did, which checkpoints bring along."""
    model, inputs = batch("llava", "ragged")
    with vtc.patched(model, "fastv:layer=2,keep=0.5"):
        expected = model(**inputs).logits
        heard = ALL_ATTENTION_FUNCTIONS["sdpa"]
        assert heard is not sdpa_attention_forward and heard.args == (sdpa_attention_forward,)
        cls = type(ALL_ATTENTION_FUNCTIONS)
        ALL_ATTENTION_FUNCTIONS.get_interface = lambda name, default: ALL_ATTENTION_FUNCTIONS[name]
        try:
            assert torch.equal(model(**inputs).logits, expected)
        finally:
            del ALL_ATTENTION_FUNCTIONS.get_interface
        assert type(ALL_ATTENTION_FUNCTIONS) is cls


@pytest.mark.parametrize("spec", ["fastv:layer=2,keep=0.5", "spatten:keep=0.5,keep_heads=0.5", "hiprune:keep=0.5"])
def test_attention_that_passes_the_registry_by_ends_in_an_error(spec):
    model, inputs = EVERY["llava"].build(), batch("llava", "ragged")[1]
    with vtc.patched(model, spec):
        ALL_ATTENTION_FUNCTIONS.get_interface = lambda name, default: sdpa_attention_forward
        try:
            with pytest.raises((RuntimeError, ValueError), match=r"seen|passing transformers' attention"):
                model(**inputs)
        finally:
            del ALL_ATTENTION_FUNCTIONS.get_interface


def test_a_module_has_one_listener():
    model, _ = batch("llava", "single")
    attention = model.model.language_model.layers[2].self_attn
    before = registry()
    with vtc.patched(model, "fastv:layer=3"), pytest.raises(ValueError, match="part of another one, which is patched"):
        Tap({attention: lambda attention, kwargs: None})
    assert registry() == before


@pytest.mark.parametrize("spec", ["hiprune:keep=0.5"])
def test_a_compiled_model_is_heard(spec):
    model, inputs = EVERY["llava"].build(), batch("llava", "ragged")[1]
    plain = model(**inputs).logits
    with vtc.patched(model, spec):
        expected, counts = model(**inputs).logits, vtc.trace(model).tokens_per_layer
        compiled = torch.compile(model, backend="eager")
        torch.testing.assert_close(compiled(**inputs).logits, expected, atol=1e-4, rtol=1e-4)
        assert torch.equal(vtc.trace(model).tokens_per_layer, counts)
    torch.testing.assert_close(compiled(**inputs).logits, plain, atol=1e-4, rtol=1e-4)
    torch._dynamo.reset()


# ---------------------------------------------------------------- nothing is held


@pytest.fixture
def frozen():
    """What is there already is not looked at: it is much, and slow."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize("method", METHODS)
def test_a_patched_model_that_is_dropped_is_freed(method, frozen):
    before, family = registry(), "llava" if takes("llava", method) else "qwen2_vl"
    model, inputs = EVERY[family].build(), batch(family, "single")[1]
    vtc.patch(model, spec_of(method, family))
    gone = [weakref.ref(model)]
    threads = [threading.Thread(target=torch.no_grad()(model), kwargs=inputs), threading.Thread(target=gc.collect)]
    output = model(**inputs, use_cache=True)
    for thread in threads:
        thread.start()
        thread.join()
    gone += [weakref.ref(output.past_key_values), weakref.ref(vtc.trace(model))]
    del output
    threads.clear()
    del thread
    gc.collect()
    assert gone[1]() is None, "its cache, while it is still there"
    del model
    gc.collect()
    assert [held() for held in gone] == [None] * 3
    assert registry() == before


#: What holds on in different ways: taps of the decoder and the tower, reducers, kept states, heads, probes.
HOLDING = ("fastv", "hiprune", "tome", "lazyllm", "spatten", "pyramiddrop")


@pytest.mark.parametrize(
    "method", [method if method in HOLDING else pytest.param(method, marks=REST) for method in METHODS]
)
def test_fifty_rounds_hold_no_more_than_five(method, frozen):
    """Of models that are patched, used and dropped: objects that live, and bytes of tensors."""
    family = "llava" if takes("llava", method) else "qwen2_vl"
    base, inputs = EVERY[family].build(), batch(family, "single")[1]

    def rounds(number: int) -> tuple[int, int, int]:
        for _ in range(number):
            model = vtc.patch(copy.deepcopy(base), spec_of(method, family))
            model(**inputs, use_cache=True)
            str(vtc.trace(model))
        del model
        gc.collect()
        living = gc.get_objects()
        tensors = [one for one in living if isinstance(one, torch.Tensor)]
        return sum(isinstance(one, type(base)) for one in living), len(living), sum(one.nbytes for one in tensors)

    models, objects, held = rounds(5)
    after = rounds(45)
    assert after[0] == models
    assert after[1] <= objects + 20 and after[2] <= held


def test_patching_and_unpatching_again_and_again_leaves_nothing():
    model, inputs = EVERY["llava"].build(), batch("llava", "single")[1]
    model(**inputs)  # transformers leaves a note of its own
    before, functions = [dict(vars(module)) for module in model.modules()], registry()
    hooks = [
        {name: dict(value) for name, value in of.items() if "hooks" in name and isinstance(value, dict)}
        for of in before
    ]
    for _ in range(1000 // len(READERS) + 1):
        for spec in READERS:
            vtc.unpatch(vtc.patch(model, spec))
    with pytest.raises(RuntimeError), vtc.patched(model, READERS[0]):
        model(**inputs)
        raise RuntimeError
    after = [dict(vars(module)) for module in model.modules()]
    assert [list(of) for of in after] == [list(of) for of in before]
    assert all(new[name] is of[name] for new, of in zip(after, before, strict=True) for name in of)
    assert hooks == [
        {name: dict(value) for name, value in of.items() if "hooks" in name and isinstance(value, dict)} for of in after
    ]
    assert registry() == functions
