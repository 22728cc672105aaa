"""A compressed cache that was saved, copied or taken apart: it is the same again, or it is refused."""

import copy
import pickle
import subprocess
import sys

import pytest
import torch
from contract import batch
from copies import by_pickle, by_torch
from covering import product
from transformers import DynamicCache

import vtc

STEP = torch.tensor([[30]])
SPECS = (
    "divprune:keep=0.5",
    "hiprune:keep=0.5+fastv:layer=2,keep=0.5",
    "lazyllm:keep=0.5",
    "spatten:keep=0.5",
    "tome:keep=0.5",
)


def prefilled(family, inputs, model):
    cache = model(**inputs, use_cache=True).past_key_values
    length = inputs["input_ids"].shape[1]
    step = {"input_ids": STEP, "attention_mask": torch.ones(1, length + 1, dtype=torch.long)}
    if family.startswith("qwen"):
        step["position_ids"] = torch.full((3, 1, 1), length)
    return cache, step


def rebuilt(cache):
    return DynamicCache([(layer.keys, layer.values) for layer in cache.layers])


def filled(cache):
    """Another cache, into which keys and values were put by its own method."""
    new = DynamicCache()
    for index, layer in enumerate(cache.layers):
        new.update(layer.keys, layer.values, index)
    return new


@product(
    family=("llava", "qwen2_vl", "gemma3"),
    spec=SPECS,
    by=(by_torch, by_pickle, copy.deepcopy),
    where=lambda cell: cell["family"] != "gemma3" or "lazyllm" not in cell["spec"],  # which windows forbid
    each="value",
)
@torch.no_grad()
def test_what_comes_back_goes_on_as_before(family, spec, by):
    model, inputs = batch(family, "single")
    with vtc.patched(model, spec):
        cache, step = prefilled(family, inputs, model)
        twin = by(cache)
        want = model(**step, past_key_values=cache).logits
        assert torch.equal(model(**step, past_key_values=twin).logits, want)


@pytest.mark.parametrize("by", [by_torch, by_pickle])
@torch.no_grad()
def test_what_comes_back_after_its_patch_is_refused(by):
    model, inputs = batch("llava", "single")
    with vtc.patched(model, "divprune:keep=0.5"):
        cache, step = prefilled("llava", inputs, model)
    with pytest.raises(RuntimeError, match="unpatched since"):
        model(**step, past_key_values=by(cache))
    with vtc.patched(model, "divprune:keep=0.5"), pytest.raises(RuntimeError, match="unpatched since"):
        model(**step, past_key_values=by(cache))


@torch.no_grad()
def test_a_cache_in_another_process_is_refused(tmp_path):
    model, inputs = batch("llava", "single")
    with vtc.patched(model, "divprune:keep=0.5"):
        cache, _ = prefilled("llava", inputs, model)
        (tmp_path / "cache").write_bytes(pickle.dumps(cache))
    there = (
        "import pickle, sys, torch\n"
        "cache = pickle.loads(open(sys.argv[1], 'rb').read())\n"
        "print(type(cache).__name__, cache.get_seq_length())\n"
        "layer = cache.layers[0]\n"
        "cache.update(layer.keys[..., :1, :], layer.values[..., :1, :], 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", there, tmp_path / "cache"], capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["CompressedDynamicCache", str(inputs["input_ids"].shape[1])]
    assert "in another process" in done.stderr.splitlines()[-1]


@product(family=("llava", "qwen2_vl", "gemma3", "paligemma"), by=(rebuilt, filled), spec=SPECS[:2], each="value")
@torch.no_grad()
def test_a_cache_made_of_its_keys_is_refused(family, by, spec):
    """Also with a mask and positions that fit what it holds."""
    model, inputs = batch(family, "single")
    with vtc.patched(model, spec):
        cache, _ = prefilled(family, inputs, model)
        held = cache.layers[0].keys.shape[2]
        for more in (
            {"attention_mask": torch.ones(1, held + 1, dtype=torch.long), "position_ids": torch.tensor([[held]])},
            {"position_ids": torch.tensor([[held]])},
            {},
        ):
            with pytest.raises(RuntimeError, match="vtc: "):
                model(input_ids=STEP, past_key_values=by(cache), **more)


@torch.no_grad()
def test_a_whole_cache_from_elsewhere_is_taken():
    """Filled before the patch, also when that has compressed another conversation since, copied and rebuilt."""
    model, inputs = batch("llava", "single")
    text = torch.tensor([[20, 21, 22, 23]])
    cache = model(input_ids=text, use_cache=True).past_key_values
    mask = torch.ones(1, 5, dtype=torch.long)
    want = model(input_ids=STEP, attention_mask=mask, past_key_values=copy.deepcopy(cache)).logits
    with vtc.patched(model, "divprune:keep=0.5"):
        model(**inputs, use_cache=True)
        for past in (copy.deepcopy(cache), rebuilt(cache), by_pickle(cache)):
            torch.testing.assert_close(model(input_ids=STEP, attention_mask=mask, past_key_values=past).logits, want)
