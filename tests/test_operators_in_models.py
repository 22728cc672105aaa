"""Patched models whose operations go through torch's dispatcher, as on a GPU, give what they give without it."""

import pytest
import torch
from contract import EVERY, model_of, refusal, spec_of
from families import scenario

import vtc
from vtc.ops import attention, choosing, clusters, dispatch, operators

FAMILIES = ("llava", "llava_onevision", "qwen2_5_vl", "qwen3_vl", "granite4_vision", "ernie4_5_vl_moe", "gemma3")
METHODS = ("divprune", "visionzip", "pyramiddrop", "sparsevlm", "transprune", "tome", "token_skip")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_operators_give_the_same(family: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, model = spec_of(method, family), model_of(family)
    if why := refusal(family, spec):
        pytest.skip(why)
    inputs = EVERY[family].inputs(model, scenario(EVERY[family], "ragged"))
    with torch.no_grad(), vtc.patched(model, spec):
        expected = model(**inputs).logits
        called: list[str] = []

        def operator(name: str, tensor: torch.Tensor):
            called.append(name)
            return dispatch._operators[name]

        for module in (operators, attention, choosing, clusters):
            monkeypatch.setattr(module, "operator_for", operator)
        found = model(**inputs).logits
    assert "compact" in called
    assert torch.equal(found, expected)
