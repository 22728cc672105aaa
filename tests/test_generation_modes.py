"""Every way of generating agrees with the others under a patch, and every output has the form that it has without.

What transformers' own generation tests hold, on models of which tokens are removed. With keep=1.0 outputs are those of
the untouched model, bit for bit. With fewer tokens one form is another by definition: in steps, attentions of layers
that keep a window of the newest tokens cover all that the user fed, since the window holds older ones too.
"""

import copy

import flash_stand_in
import pytest
import torch
from contract import EVERY, batch, model_of, slides, spec_of
from covering import product
from families import scenario
from releases import CHUNKS_SHOW
from transformers import ContinuousBatchingConfig, GenerationConfig, StaticCache

import vtc

FAMILY = (
    "llava", "llava_next", "llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "gemma3", "paligemma",
    "mistral3", "glm4v", "smolvlm",
)  # fmt: skip
METHOD = ("divprune", "hiprune", "fastv", "pyramiddrop", "tome")
KEEP = (1.0, 0.5)
MODES = {
    "greedy": {"do_sample": False},
    "sample": {"do_sample": True},
    "beam": {"do_sample": False, "num_beams": 2},
    "several": {"do_sample": True, "num_return_sequences": 2},
}
NEW = {"max_new_tokens": 4, "min_new_tokens": 4}
ALL = {
    "return_dict_in_generate": True,
    "output_attentions": True,
    "output_hidden_states": True,
    "output_logits": True,
    "output_scores": True,
}


def generated(model, inputs, **options):
    torch.manual_seed(0)
    return model.generate(**inputs, **NEW, **options)


def leaves(value, path=()):
    """(path, tensor or None) of everything in an output but its cache."""
    if isinstance(value, torch.Tensor) or value is None:
        yield path, value
    elif isinstance(value, dict):
        for name, part in value.items():
            if name not in {"past_key_values", "cache"}:
                yield from leaves(part, (*path, name))
    elif isinstance(value, tuple | list):
        for index, part in enumerate(value):
            yield from leaves(part, (*path, index))


def form(output, windowed=False):
    """Path -> shape; without the keys' axis of attentions where layers have windows."""
    shapes = {path: None if value is None else tuple(value.shape) for path, value in leaves(output)}
    return {path: shape[:-1] if windowed and "attentions" in path else shape for path, shape in shapes.items()}


@product(family=FAMILY, method=METHOD, keep=KEEP, mode=MODES)
@torch.no_grad()
def test_every_output_has_the_form_that_it_has_unpatched(family, method, keep, mode):
    model, inputs = batch(family, "ragged", "eager")
    bare = generated(model, inputs, **MODES[mode], **ALL)
    with vtc.patched(model, spec_of(method, family, keep)):
        output = generated(model, inputs, **MODES[mode], **ALL)
        fewer = vtc.trace(model).tokens_per_layer[-1] < vtc.trace(model).original_tokens
    windowed = keep < 1 and slides(family)
    assert form(output, windowed) == form(bare, windowed)
    assert output.attentions[0][0].dim() == 4 and len(output.hidden_states) == 4
    assert bool(fewer.all()) == (keep < 1)
    if keep == 1:
        for (path, mine), (_, theirs) in zip(leaves(output), leaves(bare), strict=True):
            assert mine is None or torch.equal(mine, theirs), path


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
@torch.no_grad()
def test_attentions_of_tokens_that_come_back(family):
    model, inputs = batch(family, "ragged", "eager")
    bare = generated(model, inputs, do_sample=False, **ALL)
    with vtc.patched(model, spec_of("lazyllm", family)):
        output = generated(model, inputs, do_sample=False, **ALL)
        assert vtc.trace(model).revived_tokens.sum() > 0
    assert form(output) == form(bare)
    for step in output.attentions[1:]:
        for weights in step:
            torch.testing.assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:-1]))


@product(family=FAMILY, method=METHOD, keep=KEEP, scene=("single", "ragged"))
@torch.no_grad()
def test_a_static_cache_generates_what_a_dynamic_one_does(family, method, keep, scene):
    model, inputs = batch(family, scene)
    with vtc.patched(model, spec_of(method, family, keep)):
        wanted = {"return_dict_in_generate": True, "output_logits": True, "do_sample": False}
        dynamic, static = (generated(model, inputs, cache_implementation=how, **wanted) for how in (None, "static"))
        assert torch.equal(static.sequences, dynamic.sequences)
        torch.testing.assert_close(static.logits, dynamic.logits, atol=1e-5, rtol=1e-5)
        assert static.past_key_values.is_compileable
        length = inputs["input_ids"].shape[1] + 3  # the last token was not fed
        assert int(static.past_key_values.get_seq_length()) == length
        assert dynamic.past_key_values.get_seq_length() == length


@product(family=("mistral3", "gemma3"), window=(30, 512), method=(*METHOD, "token_skip"), scene=("single", "ragged"))
@torch.no_grad()
def test_windows_of_a_static_cache_are_those_of_a_dynamic_one(family, window, method, scene):
    """Shorter than the prompt and what is generated, which then falls out of it, and longer than both."""
    model = EVERY[family].build(sliding_window=window)
    inputs = EVERY[family].inputs(model, scenario(EVERY[family], scene))
    wanted = {"return_dict_in_generate": True, "output_logits": True, "do_sample": False}
    with vtc.patched(model, spec_of(method, family)):
        torch.testing.assert_close(
            generated(model, inputs, cache_implementation="static", **wanted).logits,
            generated(model, inputs, **wanted).logits,
            atol=1e-5,
            rtol=1e-5,
        )


@product(family=("qwen2_5_vl", "qwen3_vl", "glm4v"), method=("divprune", "fastv", "pyramiddrop", "tome"), axes=(2, 3))
@torch.no_grad()
def test_positions_of_ones_own_on_one_axis_or_several(family, method, axes):
    """A model that turns tokens on several axes is told the same by positions on one, with either cache."""
    model, inputs = batch(family, "single")
    length, ends = inputs["input_ids"].shape[1], []
    told = torch.arange(length + 3)[None]
    told = told.expand(3, 1, -1) if axes == 3 else told
    for fixed in (False, True):
        cache = StaticCache(model.config.get_text_config(decoder=True), max_cache_len=length + 8) if fixed else None
        with vtc.patched(model, spec_of(method, family)):
            first = model(**inputs, position_ids=told[..., :length], past_key_values=cache, use_cache=True)
            found = [first.logits[:, -1]]
            for place in range(length, length + 3):
                step = {"position_ids": told[..., place, None], "past_key_values": first.past_key_values}
                found.append(model(input_ids=torch.tensor([[place]]), **step).logits[:, -1])
        ends.append(torch.stack(found))
    torch.testing.assert_close(ends[1], ends[0], atol=1e-5, rtol=1e-5)
    if axes == 2:
        with vtc.patched(model, spec_of(method, family)):
            same = model(**inputs, position_ids=told[None, :, :length].expand(3, 1, -1)).logits[:, -1]
        torch.testing.assert_close(ends[0][0], same, atol=1e-5, rtol=1e-5)


@product(family=("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v"), method=METHOD, each="value")
@torch.no_grad()
def test_embeddings_alone_are_turned_as_the_untouched_model_turns_them(family, method):
    """Without the ids of a prompt, a model that turns tokens on several axes counts them.

    A new model, since one that has seen a prompt counts from that one's offset.
    """
    model = EVERY[family].build()
    inputs = EVERY[family].inputs(model, scenario(EVERY[family], "single"))
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    given = {**{name: value for name, value in inputs.items() if name != "input_ids"}, "inputs_embeds": embeds}
    counted = torch.arange(embeds.shape[1]).expand(3, 1, -1)
    torch.testing.assert_close(model(**given).logits, model(**inputs, position_ids=counted).logits)
    with vtc.patched(model, spec_of(method, family)):
        expected = model(**inputs, position_ids=counted).logits
        assert (vtc.trace(model).tokens_per_layer[-1] < vtc.trace(model).original_tokens).all()
        torch.testing.assert_close(model(**given).logits, expected)


@product(family=FAMILY, method=METHOD, each="value")
@torch.no_grad()
def test_beams_and_later_turns_with_a_static_cache(family, method):
    model, inputs = batch(family, "ragged")
    with vtc.patched(model, spec_of(method, family)):
        beams = [
            generated(model, inputs, num_beams=2, do_sample=False, cache_implementation=how) for how in (None, "static")
        ]
        assert torch.equal(*beams)
        ends = []
        for room in (None, inputs["input_ids"].shape[1] + 20):
            cache = (
                None if room is None else StaticCache(model.config.get_text_config(decoder=True), max_cache_len=room)
            )
            options = {"do_sample": False, "return_dict_in_generate": True, "past_key_values": cache}
            first = generated(model, inputs, **options)
            longer = torch.cat([first.sequences, torch.full((len(first.sequences), 3), 30)], dim=1)
            mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 7), value=1)
            options["past_key_values"] = first.past_key_values
            again = {"input_ids": longer, "attention_mask": mask}
            ends.append(generated(model, again, output_logits=True, **options))
        assert torch.equal(ends[0].sequences, ends[1].sequences)
        torch.testing.assert_close(ends[0].logits, ends[1].logits, atol=1e-5, rtol=1e-5)


@product(family=FAMILY, method=METHOD, keep=KEEP, each="value")
@torch.no_grad()
def test_drafts_are_taken_as_greedy_steps_are(family, method, keep):
    model, inputs = batch(family, "single")
    with vtc.patched(model, spec_of(method, family, keep)):
        plain = generated(model, inputs, do_sample=False)
        assert torch.equal(generated(model, inputs, do_sample=False, prompt_lookup_num_tokens=2), plain)
        assert torch.equal(generated(model, inputs, do_sample=False, assistant_model=EVERY[family].build()), plain)


@product(family=FAMILY, method=METHOD, keep=KEEP, each="value")
@torch.no_grad()
def test_a_prompt_in_chunks_is_the_prompt(family, method, keep):
    model, inputs = batch(family, "ragged")
    config = GenerationConfig(do_sample=False, prefill_chunk_size=5, **NEW)
    before = config.to_dict()
    with vtc.patched(model, spec_of(method, family, keep)):
        whole = generated(model, inputs, do_sample=False)
        assert torch.equal(model.generate(**inputs, generation_config=config), whole)
        assert config.to_dict() == before
    if not CHUNKS_SHOW:
        return  # the bare model of this release can't take text in chunks in every family
    text = {"input_ids": torch.tensor([[5, 6, 7, 8, 9, 10, 11]])}
    bare = generated(model, text, do_sample=False, prefill_chunk_size=3)
    with vtc.patched(model, spec_of(method, family, keep)):
        assert torch.equal(generated(model, text, do_sample=False, prefill_chunk_size=3), bare)


@product(family=("llava", "qwen2_5_vl", "internvl", "gemma3"), method=METHOD, each="value")
@torch.no_grad()
def test_the_attention_implementation_is_read_and_set_as_ever(family, method):
    model = EVERY[family].build()
    inputs = EVERY[family].inputs(model, scenario(EVERY[family], "ragged"))
    names = ["eager", {"text_config": "eager", "vision_config": "sdpa"}, "sdpa"]
    if family != "gemma3":
        names.insert(0, flash_stand_in.NAME)

    def implementations():
        configs = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}
        return [config._attn_implementation for config in configs.values()]

    bare = []
    for name in names:
        model.set_attn_implementation(name)
        bare.append(implementations())
    with vtc.patched(model, spec_of(method, family)):
        expected = generated(model, inputs, do_sample=False)
        for name, there in zip(names, bare, strict=True):
            model.set_attn_implementation(name)
            assert implementations() == there
            assert torch.equal(generated(model, inputs, do_sample=False), expected), name


@pytest.mark.parametrize("method", METHOD)
def test_text_in_continuous_batching_runs_untouched(method):
    model = EVERY["llava"].build()
    config = GenerationConfig(max_new_tokens=3, do_sample=False, eos_token_id=-1, pad_token_id=0)
    prompts = [[3, 4, 5, 6], [7, 8, 9]]
    room = ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=64)  # else it takes all the memory that is free

    def answers():
        return {key: value.generated_tokens for key, value in model.generate_batch(prompts, config, room).items()}

    bare = answers()
    assert all(len(tokens) == 3 for tokens in bare.values())
    with vtc.patched(model, spec_of(method, "llava")):
        assert answers() == bare


@pytest.mark.parametrize("method", METHOD)
def test_a_copy_says_what_to_do_and_a_checkpoint_is_the_untouched_models(method, tmp_path):
    model = model_of("llava")
    model.save_pretrained(tmp_path / "bare")
    with vtc.patched(model, spec_of(method, "llava")):
        with pytest.raises(ValueError, match=r"call vtc.unpatch, copy or save it, and patch again"):
            copy.deepcopy(model)
        model.save_pretrained(tmp_path / "patched")
    bare, patched = ({f.name: f.read_bytes() for f in (tmp_path / n).iterdir()} for n in ("bare", "patched"))
    assert bare == patched and "model.safetensors" in bare
