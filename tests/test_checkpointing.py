"""Gradient checkpointing: losses, gradients and steps are those without it, also where hooks run again in backward."""

import copy
import functools
from unittest.mock import Mock

import pytest
import torch
from contract import EVERY, METHODS, spec_of, taken, without_dropout
from covering import product
from families import scenario
from torch.utils.checkpoint import checkpoint

import vtc

#: Families whose masks are made outside of the decoder, inside, on several axes, by DeepStack, and with gated layers.
CHECKED = ("gemma3", "gemma4", "paligemma", "paligemma2", "llava", "qwen2_vl", "qwen3_vl", "idefics3", "internvl")


def gradients(model, inputs):
    model.zero_grad(set_to_none=True)
    loss = model(**inputs, labels=inputs["input_ids"]).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def trained(name, rows):
    """A model in training, without dropout, and its inputs."""
    model = without_dropout(EVERY[name].build().train())
    return model, EVERY[name].inputs(model, scenario(EVERY[name], rows))


def hooks_run_again(model, reentrant):
    """Let decoder layers be checkpointed around their hooks, as releases of transformers before 5.20 do it."""
    (layers,) = [m.layers for m in model.modules() if isinstance(getattr(m, "layers", None), torch.nn.ModuleList)][-1:]
    decoder = next(m for m in model.modules() if getattr(m, "layers", None) is layers)
    decoder.gradient_checkpointing = True
    for layer in layers:
        plain = type(layer).__call__

        def again(self, *args, plain=plain, **kwargs):
            return checkpoint(functools.partial(plain, self, **kwargs), *args, use_reentrant=reentrant)

        layer.__class__ = type(type(layer).__name__, (type(layer),), {"__call__": again})


def same(model, spec, inputs, expected):
    with torch.enable_grad(), vtc.patched(model, spec):
        same_gradients(model, inputs, expected)


def same_gradients(model, inputs, expected):
    loss, found = gradients(model, inputs)
    torch.testing.assert_close(loss, expected[0], atol=1e-5, rtol=1e-5)
    assert found.keys() == expected[1].keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[1][name], atol=1e-5, rtol=1e-4, msg=name)


@product(
    family=CHECKED,
    spec=("divprune:keep=0.5", "hiprune:keep=0.5", "pool:keep=0.5"),
    reentrant=(False, True),
    rows=("single", "ragged"),
    where=lambda cell: cell["spec"][0] != "h" or cell["family"] != "gemma4",  # its tower has no attention to read
    each="value",
)
def test_gradients_are_those_without_checkpointing(family, spec, reentrant, rows):
    model, inputs = trained(family, rows)
    model.enable_input_require_grads()
    with torch.enable_grad(), vtc.patched(model, spec):
        expected = gradients(model, inputs)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    same(model, spec, inputs, expected)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("spec", ["divprune:keep=0.5", "tome:keep=0.5", "fastv:keep=0.5,layer=2"])
def test_a_checkpoint_function_of_ones_own(spec, reentrant):
    """One that is an object with any attribute, and that hands on a function of its own."""
    model, inputs = trained("llava", "ragged")
    model.enable_input_require_grads()
    with torch.enable_grad(), vtc.patched(model, spec):
        expected = gradients(model, inputs)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    counted = []
    for layer in model.modules():
        original = vars(layer).get("_gradient_checkpointing_func")
        if original is not None:

            def own(function, *args, original=original):
                return original(lambda *given: counted.append(function) or function(*given), *args)

            object.__setattr__(layer, "_gradient_checkpointing_func", Mock(side_effect=own))
    same(model, spec, inputs, expected)
    assert len(counted) > len(set(counted)) > 0  # blocks whose output nobody reads run once


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize(("family", "rows"), [("gemma3", "ragged"), ("paligemma", "single"), ("llava", "ragged")])
def test_hooks_that_run_once_more_in_backward(family, rows, reentrant):
    model, inputs = trained(family, rows)
    model.enable_input_require_grads()
    with torch.enable_grad(), vtc.patched(model, "divprune:keep=0.5"):
        expected = gradients(model, inputs)
    hooks_run_again(model, reentrant)
    same(model, "divprune:keep=0.5", inputs, expected)


def steps(model, inputs, number=5):
    """The parameters after some optimiser steps."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(number):
        gradients(model, inputs)
        optimizer.step()
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@product(
    family=("llava", "qwen2_5_vl", "gemma3", "internvl"),
    method=[method for method in METHODS if method != "utrc"],
    reentrant=(False, True),
    where=taken,
    each="value",
)
def test_every_method_trains_as_without_checkpointing(family, method, reentrant):
    spec = spec_of(method, family)
    model, inputs = trained(family, "ragged")
    start = copy.deepcopy(model.state_dict())
    model.enable_input_require_grads()
    with torch.enable_grad(), vtc.patched(model, spec):
        loss, expected = gradients(model, inputs)
        trace = vtc.trace(model).tokens_per_layer
        after = steps(model, inputs)
    model.load_state_dict(start)
    ran = runs_again(model)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    with torch.enable_grad(), vtc.patched(model, spec):
        same_gradients(model, inputs, (loss, expected))
        assert torch.equal(vtc.trace(model).tokens_per_layer, trace)
        assert ran.count(2) == len(ran), "layers did not run once more in backward"
        found = steps(model, inputs)
    for name, parameter in found.items():
        torch.testing.assert_close(parameter, after[name], atol=1e-5, rtol=1e-4, msg=name)
        if name in expected and expected[name].abs().max() > 1e-4:
            assert not torch.equal(parameter, start[name]), name


def runs_again(model):
    """How often the MLP of each decoder layer runs, counted from now on."""
    layers = [m.layers for m in model.modules() if isinstance(getattr(m, "layers", None), torch.nn.ModuleList)][-1]
    counts = [0] * len(layers)

    def count(index, *_):
        counts[index] += 1

    for index, layer in enumerate(layers):
        layer.mlp.register_forward_pre_hook(functools.partial(count, index))
    return counts


@pytest.mark.parametrize(
    "spec", ["fastv:layer=2", "spatten:keep=0.5,keep_heads=0.5", "token_skip:keep=0.5", "tome:keep=0.5"]
)
def test_checkpointing_may_be_switched_on_under_a_patch_and_the_model_is_given_back(spec):
    model, inputs = trained("llava", "ragged")
    model.enable_input_require_grads()
    with torch.enable_grad(), vtc.patched(model, spec):
        expected = gradients(model, inputs)
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        functions = {name: vars(m).get("_gradient_checkpointing_func") for name, m in model.named_modules()}
        same_gradients(model, inputs, expected)
    assert {name: vars(m).get("_gradient_checkpointing_func") for name, m in model.named_modules()} == functions
    assert any(functions.values())


@pytest.mark.parametrize("spec", ["tome:keep=0.5", "diffrate:keep=0.5", "spatten:keep=0.5,keep_heads=0.5"])
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_backward_twice_over_one_call(family, spec):
    model, inputs = trained(family, "ragged")
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    with torch.enable_grad(), vtc.patched(model, spec):
        once = gradients(model, inputs)[1]
        model.zero_grad(set_to_none=True)
        loss = model(**inputs, labels=inputs["input_ids"]).loss
        loss.backward(retain_graph=True)
        loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, 2 * once[name], atol=1e-5, rtol=1e-4, msg=name)


def test_a_text_only_call_is_checkpointed_as_ever():
    model = trained("llava", "ragged")[0]
    model.enable_input_require_grads()
    text = {"input_ids": torch.tensor([[3, 4, 5, 6, 7, 8]])}
    with torch.enable_grad():
        expected = gradients(model, text)
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        with vtc.patched(model, "fastv:layer=2"):
            same_gradients(model, text, expected)


def test_a_prune_under_a_checkpointing_that_nobody_knows_is_refused_in_backward():
    model, inputs = trained("llava", "ragged")
    hooks_run_again(model, False)
    with torch.enable_grad(), vtc.patched(model, "fastv:layer=2"):
        loss = model(**inputs, labels=inputs["input_ids"]).loss
        with pytest.raises(RuntimeError, match="checkpointing that transformers does not know"):
            loss.backward()


@pytest.mark.parametrize("spec", ["divprune:keep=0.5", "fastv:layer=2", "tome:keep=0.5"])
@pytest.mark.parametrize("family", ["llava", "gemma3"])
def test_two_calls_before_one_backward(family, spec):
    model, inputs = trained(family, "single")
    if spec.startswith("divprune"):
        hooks_run_again(model, False)
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()
    other = {**inputs, "input_ids": inputs["input_ids"].clone(), "pixel_values": inputs["pixel_values"].flip(-1)}
    other["input_ids"][0, -1] = 20
    with torch.enable_grad(), vtc.patched(model, spec):
        apart = [gradients(model, each)[1] for each in (inputs, other)]
        model.zero_grad(set_to_none=True)
        sum(model(**each, labels=each["input_ids"]).loss for each in (inputs, other)).backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, apart[0][name] + apart[1][name], atol=1e-5, rtol=1e-4)
