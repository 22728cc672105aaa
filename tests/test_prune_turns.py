"""Later turns of a conversation with prunes: some rows with an image, right padding, drafts; and gradients."""

import pytest
import torch
from contract import EVERY, METHODS, model_of, spec_of, state_of, stepwise
from covering import product
from families import Row, scenario
from test_prune_decode import NEW, REVIVING, SPECS

import vtc
from vtc.method.registry import method_class

FAMILY = EVERY["llava"]
STEPS = 3
MERGING = ("sparsevlm:keep=0.5", "holitom_inner:keep=0.5", "utrc:keep=0.5")
PRUNES = [m for m in METHODS if method_class(m).kind == "prune" and not m.startswith("test-")]


def positions(mask):
    return (mask.cumsum(dim=1) - 1).clamp_min(0)


def steps(model, cache, mask, token):
    """Logits [B, vocabulary] of each of three further tokens, the same in all rows."""
    logits = []
    for step in range(STEPS):
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        ids = torch.full((len(mask), 1), token + step)
        given = {"input_ids": ids, "attention_mask": mask, "position_ids": positions(mask)[:, -1:]}
        logits.append(model(**given, past_key_values=cache).logits[:, -1])
    return logits


def two_turns(model, first, second):
    """The second of two turns, then three tokens: the last logits of each call."""
    one, two = FAMILY.inputs(model, first), FAMILY.inputs(model, second)
    cache = model(**one, position_ids=positions(one["attention_mask"]), use_cache=True).past_key_values
    mask = torch.cat([one["attention_mask"], two["attention_mask"]], dim=1)
    two |= {"attention_mask": mask, "position_ids": positions(mask)[:, -two["input_ids"].shape[1] :]}
    return [model(**two, past_key_values=cache).logits[:, -1], *steps(model, cache, mask, 50)]


@product(spec=SPECS, brings=["an image in each row", "an image in one row"], each="value")
def test_rows_of_a_second_turn_equal_their_own_run(spec, brings, compared):
    model, size = model_of("llava"), FAMILY.sizes[0]
    first = [Row((size,), 2), Row((size,), 5)]
    second = [Row((size,), 11), Row((size,) if brings == "an image in each row" else (), 14)]
    with torch.no_grad(), vtc.patched(model, spec):
        if spec in REVIVING and brings == "an image in one row":
            way_out = "decode=False" if spec.startswith("dycoke") else "revive=False"
            words = f"row 1 brings no image in this turn while other rows do.*{way_out}"
            with pytest.raises(ValueError, match=words):
                two_turns(model, first, second)
            return
        together = two_turns(model, first, second)
        for row in compared(2):
            alone = two_turns(model, first[row : row + 1], second[row : row + 1])
            for logits, own in zip(together, alone):
                torch.testing.assert_close(logits[row], own[0], atol=3e-4, rtol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("spec", ["lazyllm:keep=0.3", "fastv:keep=0.5,layer=2", "spatten:keep=0.5,keep_heads=0.5"])
def test_a_padded_turn_of_text(spec, side):
    model, size = model_of("llava"), FAMILY.sizes[0]
    rows = [Row((size,), 2), Row((size,), 5), Row((), 7)]
    words = [[40, 41, 42], [50, 51, 52, 53, 54], [60, 61, 62, 63]]

    def run(chosen):
        first, longest = FAMILY.inputs(model, [rows[i] for i in chosen]), max(len(words[i]) for i in chosen)
        given = first | {"position_ids": positions(first["attention_mask"])}
        cache = model(**given, use_cache=True).past_key_values
        ids = torch.zeros(len(chosen), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, i in enumerate(chosen):
            place = slice(longest - len(words[i]), None) if side == "left" else slice(len(words[i]))
            ids[row, place], mask[row, place] = torch.tensor(words[i]), 1
        mask = torch.cat([first["attention_mask"], mask], dim=1)
        given = {"input_ids": ids, "attention_mask": mask, "position_ids": positions(mask)[:, -longest:]}
        logits = model(**given, past_key_values=cache).logits
        last = [longest - 1 if side == "left" else len(words[i]) - 1 for i in chosen]
        return [torch.stack([logits[row, place] for row, place in enumerate(last)]), *steps(model, cache, mask, 70)]

    with torch.no_grad(), vtc.patched(model, spec):
        together = run([0, 1, 2])
        for row in range(3):
            for logits, own in zip(together, run([row])):
                torch.testing.assert_close(logits[row], own[0], atol=3e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v"])
def test_a_turn_of_text_where_positions_have_several_axes(family):
    model = model_of(family)
    inputs = EVERY[family].inputs(model, scenario(EVERY[family], "ragged"))
    with torch.no_grad(), vtc.patched(model, "lazyllm:keep=0.3"):
        first = stepwise(model, inputs)
        words = torch.tensor([[20, 21, 22]]).expand(len(first.sequences), -1)
        ids = torch.cat([first.sequences, words], dim=1)
        more = ids.shape[1] - inputs["input_ids"].shape[1]
        text = {name: torch.nn.functional.pad(inputs[name], (0, more)) for name in inputs if "type_ids" in name}
        text["attention_mask"] = torch.nn.functional.pad(inputs["attention_mask"], (0, more), value=1)
        text["input_ids"] = ids
        second = stepwise(model, text, past_key_values=first.past_key_values)
        assert second.sequences.shape == (len(ids), ids.shape[1] + NEW)
        assert all(logits.isfinite().all() for logits in second.logits)


def test_drafts_are_refused_where_tokens_come_back():
    model = model_of("llava")
    inputs, ran = FAMILY.inputs(model, scenario(FAMILY, "single")), []
    model.generate(**inputs, max_new_tokens=1)  # transformers notes things on first use
    before = state_of(model)
    with torch.no_grad(), vtc.patched(model, "lazyllm:keep=0.3"):
        handle = model.model.language_model.layers[0].register_forward_pre_hook(lambda *_: ran.append(1))
        with pytest.raises(ValueError, match=r"assisted generation takes steps back.*revive=False"):
            model.generate(**inputs, max_new_tokens=6, do_sample=False, prompt_lookup_num_tokens=2)
        handle.remove()
        assert not ran
    assert state_of(model) == before
    with torch.no_grad(), vtc.patched(model, "lazyllm:keep=0.3,revive=False"):
        drafted = model.generate(**inputs, max_new_tokens=6, do_sample=False, prompt_lookup_num_tokens=2)
        assert torch.equal(drafted, model.generate(**inputs, max_new_tokens=6, do_sample=False))


@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
@pytest.mark.parametrize("method", PRUNES)
def test_gradients_reach_every_layer(family, method):
    """Also those of the tower, through tokens that were merged."""
    model = model_of(family)
    inputs = EVERY[family].inputs(model, scenario(EVERY[family], "ragged"))
    spec = next((s for s in MERGING if s.startswith(method)), spec_of(method, family))
    model.zero_grad(set_to_none=True)
    try:
        with vtc.patched(model, spec):
            model(**inputs, labels=inputs["input_ids"]).loss.backward()
        blind = {name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()}
        layers = [name for name in blind if "language_model.layers" in name]
        assert not layers or method == "todre_stage2"
        assert not [name for name in blind if "patch_embed" in name and name.endswith("weight")]
    finally:
        model.zero_grad(set_to_none=True)
