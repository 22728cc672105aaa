"""What a decoder records of its layers under a patch: attentions, chosen hidden states, router logits, their loss."""

import pytest
import torch
from contract import EVERY, batch
from covering import product

import vtc

FAMILY = ("llava", "qwen2_5_vl", "internvl", "gemma3", "mistral3", "paligemma", "qwen3_vl")
SPECS = (
    "divprune:keep=0.5",
    "hiprune:keep=0.5",
    "tome:keep=0.5",
    "fastv:keep=0.5,layer=2",
    "pyramiddrop:keep=0.5",
    "token_skip:keep=0.5",
    "spatten:keep=0.5,keep_heads=0.5",
    "divprune:keep=0.7+fastv:keep=0.5,layer=3",
)


def alive(model, inputs, layers):
    """For each layer and row, the places of the tokens that run there, told from the trace alone."""
    trace, mask = vtc.trace(model), inputs["attention_mask"].bool()
    places = []
    for layer in range(layers):
        here = mask.clone()
        for image in trace.images:
            here[image.row, image.source.positions] = False
            here[image.row, image.source.positions[image.kept(layer)]] = True
        places.append([row.nonzero()[:, 0] for row in here])
    return places


def raw_weights(layers):
    """The attention of each layer as its module gives it, [B, H, n, S], collected from now on."""
    found = []
    for layer in layers:
        attention = next(m for n, m in layer.named_modules() if n.endswith(("self_attn", "attn")))
        attention.register_forward_hook(lambda m, a, output: found.append(output[1]))
    return found


def decoder_layers(model):
    return [m.layers for m in model.modules() if isinstance(getattr(m, "layers", None), torch.nn.ModuleList)][-1]


@product(family=FAMILY, spec=SPECS)
@torch.no_grad()
def test_attentions_are_the_layers_own_at_the_places_of_their_tokens(family, spec):
    model = EVERY[family].build(attn="eager")
    inputs = batch(family, "ragged", "eager")[1]
    with vtc.patched(model, spec):
        layers = decoder_layers(model)
        found = raw_weights(layers)
        output = model(**inputs, output_attentions=True)
        length, token = inputs["input_ids"].shape[1], torch.full((len(inputs["input_ids"]), 1), 30)
        mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 1), value=1)
        there = alive(model, inputs, len(layers))
        prefill = list(found)
        found.clear()
        step = model.generate(
            torch.cat([inputs["input_ids"], token], dim=1),
            attention_mask=mask,
            past_key_values=output.past_key_values,
            max_new_tokens=1,
            output_attentions=True,
            return_dict_in_generate=True,
        ).attentions[0]
    assert len(output.attentions) == len(layers) == len(prefill) == len(step)
    for layer, given in enumerate(output.attentions):
        assert given.shape == (len(token), 4, length, length)
        if prefill[layer].shape[2] == length:  # nothing is gone yet
            assert torch.equal(given, prefill[layer])
            continue
        expected = torch.zeros_like(given)
        for row, places in enumerate(there[layer]):
            own = prefill[layer][row, :, -len(places) :, -len(places) :]
            expected[row][:, places[:, None], places] = own
        assert torch.equal(given, expected), layer
    for layer, given in enumerate(step):
        assert given.shape == (len(token), 4, 1, length + 1)
        for row, places in enumerate(there[layer]):
            keys = torch.cat([places, torch.tensor([length])])
            own = found[layer][row, :, 0]
            held = keys[-own.shape[-1] :]  # a window holds the newest
            expected = torch.zeros(4, length + 1)
            expected[:, held] = own[:, -len(held) :]
            assert torch.equal(given[row, :, 0], expected), (layer, row)


@product(family=FAMILY, spec=SPECS[3:6], each="value")
def test_records_in_front_of_a_prune_are_what_ran(family, spec):
    """So that gradients reach them; others are copies at the user's places."""
    model = EVERY[family].build(attn="eager")
    inputs = batch(family, "ragged", "eager")[1]
    with torch.enable_grad(), vtc.patched(model, spec):
        output = model(**inputs, output_hidden_states=True, output_attentions=True)
        first = int((vtc.trace(model).tokens_per_layer < vtc.trace(model).original_tokens).any(dim=1).int().argmax())
        records = [*output.hidden_states[: first + 1], *output.attentions[:first]]
        for record in records:
            record.retain_grad()
        output.logits.sum().backward()
    assert first > 0
    assert all(record.grad is not None and record.grad.any() for record in records)


@product(family=FAMILY, spec=SPECS, each="value")
@torch.no_grad()
def test_chosen_hidden_states_are_those_of_all(family, spec):
    model, inputs = batch(family)
    try:
        bare = model(**inputs, output_hidden_states=[1, -1]).hidden_states
    except TypeError:
        pytest.skip("the bare model of this release fails, for its tower gets the choice as well")
    if bare[0] is not None:
        pytest.skip("this release gives all of them")
    with vtc.patched(model, spec):
        states = model(**inputs, output_hidden_states=True).hidden_states
        chosen = model(**inputs, output_hidden_states=[1, -1]).hidden_states
        first, second = (model(**inputs, output_hidden_states=[index]).hidden_states for index in (1, 3))
    assert len(chosen) == len(bare)
    for one, here in zip(chosen, bare, strict=True):
        assert (one is None) == (here is None)
    ahead = len(states) - len(bare)  # up to 5.20, chosen states are what the layers give
    for index, found in ((1, chosen), (1, first), (3, second)):
        assert states[index + ahead].shape[:2] == inputs["input_ids"].shape
        assert torch.equal(found[index], states[index + ahead])
    if chosen[-1] is not None:
        assert torch.equal(chosen[-1], states[-1])


@pytest.mark.parametrize("spec", SPECS)
@torch.no_grad()
def test_outputs_by_config_by_tuple_and_with_the_arguments_of_old_scripts(spec):
    model = EVERY["llava"].build(attn="eager")
    inputs = batch("llava", "ragged", "eager")[1]
    with vtc.patched(model, spec):
        wanted = model(**inputs, output_attentions=True)
        old = torch.arange(inputs["input_ids"].shape[1])
        assert torch.equal(model(**inputs, cache_position=old).logits, wanted.logits)
        assert torch.equal(model(**inputs, return_dict=False)[0], wanted.logits)
        for config in (model.config, model.config.get_text_config()):
            config.output_attentions = True
        given = model(**inputs)
    assert all(map(torch.equal, given.attentions, wanted.attentions))


MOE = ("qwen3_vl_moe", "ernie4_5_vl_moe")


def balance(ran, top):
    """The balancing loss of Switch Transformer: experts x sum of (share of tokens x mean probability)."""
    probability = torch.cat(ran).softmax(dim=-1)
    experts = probability.shape[-1]
    chosen = torch.nn.functional.one_hot(probability.topk(top, dim=-1).indices, experts).sum(dim=1).double()
    return experts * (chosen.mean(dim=0) * probability.double().mean(dim=0)).sum()


@product(family=MOE, spec=[s for s in SPECS if "skip" not in s and "tome" not in s])
@torch.no_grad()
def test_router_logits_and_their_loss_are_of_the_tokens_that_ran(family, spec):
    model, inputs = batch(family, "ragged")
    text = model.config.get_text_config()
    top = getattr(text, "num_experts_per_tok", None) or text.moe_k
    labels = inputs["input_ids"]
    with vtc.patched(model, spec):
        output = model(**inputs, output_router_logits=True, labels=labels)
        plain = model(**inputs, labels=labels)
        layers = len(decoder_layers(model))
        there = alive(model, inputs, layers)
    rows, length = inputs["input_ids"].shape
    user = inputs["attention_mask"].bool()
    first = layers - len(output.router_logits)  # dense layers come first
    ran = []
    for layer, given in enumerate(output.router_logits, first):
        assert given.shape[0] == rows * length
        grid, dropped = given.view(rows, length, -1), torch.ones(rows, length, dtype=torch.bool)
        for row, places in enumerate(there[layer]):
            ran.append(grid[row, places])
            dropped[row, places] = False
        if not (dropped & user).any():  # what padding gives is the layer's own affair
            dropped[:] = False
        assert not grid[dropped].any() and grid[~dropped].any(dim=-1).all()
    expected = balance(ran, top)
    torch.testing.assert_close(output.aux_loss.double(), expected, atol=1e-5, rtol=1e-5)
    factor = text.router_aux_loss_coef
    torch.testing.assert_close(output.loss, plain.loss + factor * output.aux_loss, atol=1e-6, rtol=1e-6)


def test_files_of_models_are_given_back():
    model, inputs = batch("qwen3_vl_moe", "ragged")
    from transformers.models.qwen3_vl_moe import modeling_qwen3_vl_moe as file

    function, bare = file.load_balancing_loss_func, model(**inputs, output_router_logits=True)
    with vtc.patched(model, "divprune:keep=0.5"):
        assert file.load_balancing_loss_func is not function
        with vtc.patched(EVERY["qwen3_vl_moe"].build(), "divprune:keep=0.5"):
            pass
        assert file.load_balancing_loss_func is not function
    assert file.load_balancing_loss_func is function
    assert torch.equal(model(**inputs, output_router_logits=True).aux_loss, bare.aux_loss)
