"""Decode steps of a patched model are one compiled graph; what can be exported is what the untouched model is."""

import copy

import flash_stand_in
import pytest
import torch
from contract import EVERY, batch, spec_of
from covering import product
from families import Row, scenario
from torch._dynamo.utils import counters
from transformers import CompileConfig, StaticCache

import vtc

FAMILY = ("llava", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "mistral3", "smolvlm")
METHOD = ("none", "divprune", "hiprune", "fastv", "pyramiddrop", "token_skip", "tome")
NEW = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}


def whole_graph():
    """What `generate` compiles its steps with, on a CPU as well."""
    config = CompileConfig(fullgraph=True, dynamic=False, backend="eager", mode=None)
    config._compile_all_devices = True
    return config


@product(family=FAMILY, method=METHOD, each="value")
@torch.no_grad()
def test_steps_are_one_graph_without_a_break(family, method):
    model = EVERY[family].build()
    inputs = EVERY[family].inputs(model, scenario(EVERY[family], "ragged"))
    with vtc.patched(model, spec_of(method, family)):
        expected = model.generate(**inputs, **NEW)
        counters.clear()
        tokens = model.generate(**inputs, **NEW, cache_implementation="static", compile_config=whole_graph())
    assert torch.equal(tokens, expected)
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]


@product(family=("gemma3", "gemma4", "mistral3"), method=("divprune", "fastv", "token_skip"), each="value")
@torch.no_grad()
def test_steps_in_a_window_that_holds_all_are_the_graphs_of_the_untouched_model(family, method):
    """Layers that keep a window count in Python what they hold, so that transformers compiles each step anew."""
    model, graphs = EVERY[family].build(sliding_window=512), []
    inputs = EVERY[family].inputs(model, scenario(EVERY[family], "ragged"))
    for spec in ("none", spec_of(method, family)):
        with vtc.patched(model, spec):
            expected = model.generate(**inputs, **NEW)
            torch._dynamo.reset()
            counters.clear()
            tokens = model.generate(**inputs, **NEW, cache_implementation="static", compile_config=whole_graph())
        assert torch.equal(tokens, expected)
        assert not counters["graph_break"]
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[1]


@product(family=("llava", "mistral3", "internvl"), method=("divprune", "fastv", "sparsevlm"))
@torch.no_grad()
def test_a_loop_of_ones_own_over_a_compiled_model(family, method):
    """Without a mask, and with one of two dimensions: prompt, step by step, and one more turn that is not compiled."""
    model = EVERY[family].build()
    inputs = EVERY[family].inputs(model, scenario(EVERY[family], "single"))
    length = inputs["input_ids"].shape[1]
    with vtc.patched(model, spec_of(method, family)):
        wanted = model.generate(**inputs, **NEW, return_dict_in_generate=True, output_logits=True)
        cache = StaticCache(model.config.get_text_config(decoder=True), max_cache_len=length + 30)
        step = torch.compile(model, fullgraph=True, backend="eager")
        logits = model(**inputs, past_key_values=cache, use_cache=True).logits[:, -1]
        found = [logits]
        for number in range(5):
            told = torch.ones(1, length + number + 1, dtype=torch.long)
            token = wanted.sequences[:, length + number, None]
            found.append(step(input_ids=token, attention_mask=told, past_key_values=cache).logits[:, -1])
        assert int(cache.get_seq_length()) == length + 5
        torch.testing.assert_close(found, list(wanted.logits), atol=1e-5, rtol=1e-5)
        turn = torch.tensor([[40, 41, 42]])
        told = torch.ones(1, length + 8, dtype=torch.long)
        again = model.generate(
            torch.cat([wanted.sequences[:, :-1], turn], dim=1),
            attention_mask=told,
            past_key_values=wanted.past_key_values,
            **NEW,
        )
        same = model.generate(
            torch.cat([wanted.sequences[:, :-1], turn], dim=1), attention_mask=told, past_key_values=cache, **NEW
        )
    assert torch.equal(again, same)


@torch.no_grad()
def test_a_token_that_a_step_hides_stays_hidden():
    """A 2-D mask of a step is written to where the steps' masks are kept, compiled or not."""
    model = EVERY["llava"].build()
    inputs = EVERY["llava"].inputs(model, scenario(EVERY["llava"], "ragged"))
    rows, length = inputs["input_ids"].shape
    told = [torch.tensor([[1, 1], [0, 1], [1, 1]])[:rows, :n] for n in (1, 2)]
    with vtc.patched(model, "divprune:keep=0.5"):
        ends = []
        for fixed in (False, True):
            cache = StaticCache(model.config.get_text_config(decoder=True), max_cache_len=length + 4) if fixed else None
            cache = model(**inputs, past_key_values=cache, use_cache=True).past_key_values
            for number, more in enumerate(told):
                mask = torch.cat([inputs["attention_mask"], more], dim=1)
                places = mask.cumsum(dim=1)[:, -1:] - 1
                token = torch.full((rows, 1), 30 + number)
                options = {"attention_mask": mask, "position_ids": places, "past_key_values": cache}
                end = model(input_ids=token, **options).logits[:, -1]
            ends.append(end)
        torch.testing.assert_close(*ends, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", ["divprune", "hiprune", "fastv", "tome"])
@pytest.mark.parametrize("family", ["llava", "internvl", "gemma3", "paligemma"])
@torch.no_grad()
def test_a_model_that_keeps_all_is_exported_as_the_untouched_one(family, method):
    model = EVERY[family].build()
    inputs = {**EVERY[family].inputs(model, scenario(EVERY[family], "ragged")), "use_cache": False}
    try:
        bare = torch.export.export(model, (), inputs, strict=False).module()(**inputs).logits
    except Exception as error:
        pytest.skip(f"transformers can't export {family}: {type(error).__name__}")
    with vtc.patched(model, spec_of(method, family, 1.0)):
        program = torch.export.export(model, (), inputs, strict=False)
    assert torch.equal(program.module()(**inputs).logits, bare)


def test_what_removes_tokens_is_not_exported():
    model, inputs = batch("llava", "single")
    for spec in ("divprune:keep=0.5", "fastv:layer=2", "tome:keep=0.5"):
        with vtc.patched(model, spec), pytest.raises(ValueError, match="can't be exported"):
            torch.export.export(model, (), {**inputs, "use_cache": False}, strict=False)


def test_a_static_cache_has_no_room_for_tokens_that_come_back():
    model, inputs = batch("llava", "single")
    with vtc.patched(model, "lazyllm:keep=0.5"), pytest.raises(ValueError, match="has no room"):
        model.generate(**inputs, **NEW, cache_implementation="static")


@torch.no_grad()
def test_two_chats_that_take_turns_keep_their_own_offsets():
    """Without positions, Qwen2.5-VL makes those of a step by an offset that it remembers of the last prompt alone."""
    family = EVERY["qwen2_5_vl"]
    model, rows = family.build(), [[Row((size,), seed)] for size, seed in zip(family.sizes, (2, 13))]
    chats = [family.inputs(model, row) for row in rows]
    assert chats[0]["input_ids"].shape != chats[1]["input_ids"].shape

    def ends(fixed, order):
        with vtc.patched(model, "divprune:keep=0.5"):
            caches = [StaticCache(model.config.get_text_config(decoder=True), max_cache_len=64) if fixed else None] * 2
            caches = [copy.deepcopy(cache) for cache in caches]
            for place in order[:2]:
                caches[place] = model(**chats[place], past_key_values=caches[place], use_cache=True).past_key_values
            tokens = {}
            for number, place in enumerate(order[2:]):
                token = torch.tensor([[30 + number // 2]])
                tokens[place] = model(input_ids=token, past_key_values=caches[place]).logits[:, -1]
            return tokens[0], tokens[1]

    for order in ([0, 1, 0, 1, 0, 1], [0, 1, 1, 0, 1, 0]):
        torch.testing.assert_close(ends(True, order), ends(False, order), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_another_attention_within_a_conversation_with_a_static_cache_is_refused():
    model = EVERY["llava"].build()
    inputs = EVERY["llava"].inputs(model, scenario(EVERY["llava"], "single"))
    with vtc.patched(model, "divprune:keep=0.5"):
        cache = StaticCache(model.config.get_text_config(decoder=True), max_cache_len=64)
        cache = model(**inputs, past_key_values=cache, use_cache=True).past_key_values
        token = {"input_ids": torch.tensor([[30]]), "past_key_values": cache}
        model.set_attn_implementation("eager")
        model(**token)
        model.set_attn_implementation(flash_stand_in.NAME)
        with pytest.raises(RuntimeError, match="implementation was changed within a conversation"):
            model(**token)
