"""Caches that store otherwise than they give: quantized, in several stretches, recording, offloaded."""

import pytest
import torch
from contract import EVERY, model_of
from families import Row
from releases import HERE
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, QuantizedLayer

import vtc
from vtc.calls.cache import keys_in_layer, keys_with
from vtc.calls.outputs import Output

CACHE = "cache" if HERE.release[:2] >= (5, 24) else "past_key_values"
pytestmark = pytest.mark.usefixtures("no_grad")
SPECS = ["divprune:keep=0.5", "fastv:layer=2,keep=0.5", "pyramiddrop", "transprune", "lazyllm", "token_skip:keep=0.5"]


class Exact(QuantizedLayer):
    """A quantizer that loses nothing: what is stored lies where a lossy one puts it."""

    def _quantize(self, tensor, axis):
        return tensor.clone()

    def _dequantize(self, tensor):
        return tensor


class Elsewhere(DynamicLayer):
    """Keys that are not where attention wants them until they are fetched."""

    def prefetch(self):
        self.here = True

    def update(self, keys, values, *args, **kwargs):
        assert self.here
        return super().update(keys, values, *args, **kwargs)


def cache_of(layer, model, **options):
    return Cache(layers=[layer(**options) for _ in range(model.config.get_text_config().num_hidden_layers)])


def logits(model, inputs, cache, new=3):
    options = {"max_new_tokens": new, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    out = model.generate(**inputs, **{CACHE: cache}, **options)
    return torch.stack(out.logits), out


def two_turns(model, inputs, cache):
    """The same picture's prompt twice, in one row."""
    first, out = logits(model, inputs, cache)
    ids = torch.cat([out.sequences, inputs["input_ids"]], dim=1)
    again = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return torch.cat([first, logits(model, again, Output(out).cache)[0]])


@pytest.mark.parametrize("residual", [4, 128])
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_a_quantized_cache_gives_what_a_plain_one_does(family, spec, residual):
    model, rows = model_of(family), [Row((EVERY[family].sizes[0],), seed) for seed in (2, 13)]
    batch, single = EVERY[family].inputs(model, rows), EVERY[family].inputs(model, rows[:1])
    with vtc.patched(model, spec):
        for run, inputs in ((lambda *given: logits(*given)[0], batch), (two_turns, single)):
            if run is two_turns and family != "llava":
                continue
            plain = run(model, inputs, DynamicCache())
            assert torch.equal(run(model, inputs, cache_of(Exact, model, residual_length=residual)), plain)


@pytest.mark.parametrize("layer", [Exact, Elsewhere])
def test_a_cache_is_asked_and_stays_as_it_is(layer):
    model, asked = model_of("llava"), torch.manual_seed(0)
    cache, fed = cache_of(layer, model), [torch.randn(1, 2, length, 8, generator=asked) for length in (5, 3)]
    for layer_asked in cache.layers:
        layer_asked.here = True
    for keys in fed:
        cache.update(keys, keys, 1)
    cache.layers[1].here = False
    for _ in range(2):
        assert keys_in_layer(cache, 1, 0) == 8
        assert torch.equal(keys_with(cache, 1, fed[1], fed[1], 8), torch.cat([*fed, fed[1]], dim=2))


def test_a_lossy_backend_stays_close():
    quanto = pytest.importorskip("optimum.quanto")
    from transformers.cache_utils import QuantizedCache

    model, family = model_of("llava"), EVERY["llava"]
    inputs = family.inputs(model, [Row((family.sizes[0],), 2), Row((family.sizes[0],), 13)])
    with vtc.patched(model, "fastv:layer=2,keep=0.5"):
        got = logits(model, inputs, QuantizedCache("quanto", model.config.get_text_config()))[0]
        plain = logits(model, inputs, DynamicCache())[0]
    assert quanto is not None and (got[0] - plain[0]).abs().max() < 1e-4 and (got - plain).abs().max() < 0.5
