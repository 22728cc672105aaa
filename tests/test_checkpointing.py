"""Gradient checkpointing: a selector's gradients are those without it, also where hooks run again in backward."""

import functools

import pytest
import torch
from contract import EVERY
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
    model = EVERY[name].build().train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
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
@pytest.mark.parametrize(("family", "rows"), [("gemma3", "ragged"), ("paligemma", "single"), ("llava", "ragged")])
def test_hooks_that_run_once_more_in_backward(family, rows, reentrant):
    model, inputs = trained(family, rows)
    model.enable_input_require_grads()
    with torch.enable_grad(), vtc.patched(model, "divprune:keep=0.5"):
        expected = gradients(model, inputs)
    hooks_run_again(model, reentrant)
    same(model, "divprune:keep=0.5", inputs, expected)


def test_two_calls_before_one_backward():
    model, inputs = trained("gemma3", "single")
    hooks_run_again(model, False)
    model.enable_input_require_grads()
    other = {**inputs, "input_ids": inputs["input_ids"].clone()}
    other["input_ids"][0, -1] = 20
    with torch.enable_grad(), vtc.patched(model, "divprune:keep=0.5"):
        apart = [gradients(model, each)[1] for each in (inputs, other)]
        model.zero_grad(set_to_none=True)
        sum(model(**each, labels=each["input_ids"]).loss for each in (inputs, other)).backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, apart[0][name] + apart[1][name], atol=1e-5, rtol=1e-4)
