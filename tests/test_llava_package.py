"""The contract on the original LLaVA package, whose placeholders never reach the decoder."""

from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch

pytest.importorskip("llava")

import contract
import tiny_llava_package as tiny
from contract import ATTENTIONS, COMPOSED, NUMBERED, state_of, takes
from covering import product
from test_tower_scores import Spy, random_scores
from tiny_base import SCENARIOS, SQUARE, Row
from tiny_llava_package import VARIANTS, generate, inputs, length, model_of

import vtc
from vtc.adapters.llava_package import LlavaPackageAdapter
from vtc.method.budget import Keep
from vtc.model.adapter import adapter_class
from vtc.ops.mixing import Mixing

METHODS = [name for name in contract.METHODS if takes("llava", name)]
MATRIX = {"name": VARIANTS, "attn": ATTENTIONS}
MATRIX["where"] = lambda cell: cell["attn"] == "sdpa" or cell["name"] == "spatial_unpad"
SPECS = ("divprune:keep=0.5", "hiprune:keep=0.5", "test-norm:keep=0.5", "stride:keep=0.6+test-norm-packed:layer=3")
RAGGED = SCENARIOS["ragged"]


def spec_of(method, keep=0.5, name=""):
    if method == "lazyllm" and name == "mistral":  # a sliding window
        return f"lazyllm:keep={keep},revive=False"
    return contract.spec_of(method, "llava", keep)


pytestmark = pytest.mark.usefixtures("no_grad")


@contextmanager
def padding(model, side):
    """The package's own setting. By default it pads on the right, where it goes on generating from padding."""
    model.config.tokenizer_padding_side = side
    try:
        yield
    finally:
        del model.config.tokenizer_padding_side


def close(one, other):
    torch.testing.assert_close(one, other, atol=3e-4, rtol=1e-4)


def check_rows(name, attn, spec, rows, compared=range):
    """Patched, rows of a batch equal their own batch-1 run, padded on either side; `compared` as in the contract."""
    variant, model = VARIANTS[name], model_of(name, attn)
    batch, lengths = inputs(variant, rows), [length(variant, row) for row in rows]
    with vtc.patched(model, spec):
        with padding(model, "right"):
            right, trace = model(**batch).logits, vtc.trace(model)
        with padding(model, "left"):
            left, tokens = model(**batch).logits, generate(model, batch)
        counts = [[len(image.source) for image in trace.images if image.row == i] for i in range(len(rows))]
        assert counts == [variant.tokens(row) for row in rows]
        assert left.shape[:2] == right.shape[:2] == (len(rows), max(lengths))
        if any(contract.acts_on(spec, image.source.grids) for image in trace.images):
            fewest = trace.tokens_per_layer.amin(dim=0)
            assert (fewest < trace.original_tokens)[trace.original_tokens > 0].all()
        for index in compared(len(rows)):
            alone = inputs(variant, [rows[index]])
            single = model(**alone).logits[0, -1]
            close(right[index, lengths[index] - 1], single)
            if NUMBERED.isdisjoint(part.partition(":")[0] for part in spec.split("+")):  # a plain call counts padding
                close(left[index, -1], single)
            assert torch.equal(generate(model, alone)[0], tokens[index]), f"row {index}"


@product(**MATRIX, method=METHODS, scenario=SCENARIOS, each="value")
def test_rows_equal_their_own_run(name, attn, method, scenario, compared):
    check_rows(name, attn, spec_of(method, name=name), SCENARIOS[scenario], compared)


@product(**MATRIX, spec=COMPOSED, scenario=SCENARIOS, each="value")
def test_rows_of_compositions_equal_their_own_run(name, attn, spec, scenario):
    check_rows(name, attn, spec, SCENARIOS[scenario])


@cache
def untouched(name, attn, scenario):
    """Logits and new tokens without vtc."""
    model, batch = model_of(name, attn), inputs(VARIANTS[name], SCENARIOS[scenario])
    return model(**batch).logits, generate(model, batch)


@product(**MATRIX, method=METHODS, scenario=SCENARIOS, each="value")
def test_keeping_all_is_bit_exact_and_so_is_unpatching(name, attn, method, scenario):
    model, batch = model_of(name, attn), inputs(VARIANTS[name], SCENARIOS[scenario])
    logits, tokens = untouched(name, attn, scenario)
    with vtc.patched(model, spec_of(method, 1.0, name)):
        assert torch.equal(model(**batch).logits, logits)
        assert (vtc.trace(model).tokens_per_layer == vtc.trace(model).original_tokens).all()
        assert torch.equal(generate(model, batch), tokens)
    with vtc.patched(model, spec_of(method, name=name)):
        model(**batch)
    assert torch.equal(model(**batch).logits, logits)


@cache
def decisions(attn, method):
    """What a method keeps of each image of a batch."""
    model = model_of("spatial_unpad", attn)
    with vtc.patched(model, spec_of(method)):
        model(**inputs(VARIANTS["spatial_unpad"], RAGGED))
        return [image.kept().tolist() for image in vtc.trace(model).images]


@product(attn=ATTENTIONS[1:], method=[name for name in METHODS if name != "none"])
def test_decisions_do_not_depend_on_the_attention_implementation(attn, method):
    assert decisions(attn, method) == decisions("sdpa", method)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("name", ["llava-1.5", "spatial_unpad"])
def test_beams_and_samples(name, spec):
    variant, model = VARIANTS[name], model_of(name)
    rows = SCENARIOS["several_images"]
    batch = inputs(variant, rows)
    with vtc.patched(model, spec), padding(model, "left"):
        beams = generate(model, batch, num_beams=3, num_return_sequences=2)
        assert vtc.trace(model).original_tokens.tolist() == [sum(variant.tokens(row)) for row in rows for _ in range(3)]
        for index, row in enumerate(rows):
            alone = generate(model, inputs(variant, [row]), num_beams=3, num_return_sequences=2)
            assert torch.equal(alone, beams[2 * index : 2 * index + 2])
        drawn = []
        for _ in range(2):
            torch.manual_seed(0)
            drawn.append(generate(model, batch, do_sample=True, num_return_sequences=2))
        assert drawn[0].shape == (2 * len(rows), 3)
        assert torch.equal(*drawn)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("name", ["llava-1.5", "spatial_unpad"])
def test_decoding_equals_recomputing(name, spec):
    variant, model = VARIANTS[name], model_of(name)
    with vtc.patched(model, spec), padding(model, "left"):
        output = generate(model, inputs(variant, RAGGED), new=4, return_dict_in_generate=True, output_logits=True)
        for index, row in enumerate(RAGGED):
            alone = inputs(variant, [row])
            alone["input_ids"] = torch.cat([alone["input_ids"], output.sequences[index : index + 1]], dim=1)
            again = model(**{**alone, "attention_mask": None}, use_cache=False).logits[0, length(variant, row) - 1 : -1]
            close(torch.stack([step[index] for step in output.logits]), again)


@pytest.mark.parametrize("spec", SPECS)
def test_a_second_turn(spec):
    variant, model = VARIANTS["spatial_unpad"], model_of("spatial_unpad")
    first = inputs(variant, [Row((SQUARE,), 1)])
    text = torch.tensor([[20, 21, 22]])
    with vtc.patched(model, spec):
        cache = model(**first, use_cache=True).past_key_values
        assert cache.get_seq_length() == length(variant, Row((SQUARE,), 1))
        turn = model(input_ids=text, past_key_values=cache).logits[:, -1]
        whole = {**first, "input_ids": torch.cat([first["input_ids"], text], dim=1), "attention_mask": None}
        close(turn, model(**whole).logits[:, -1])
        answer = generate(model, first, return_dict_in_generate=True)
        known = torch.cat([first["input_ids"], answer.sequences, text], dim=1)
        longer = {**first, "input_ids": known, "attention_mask": None}
        second = generate(model, longer, past_key_values=answer.past_key_values)
        assert torch.equal(second, generate(model, longer))


@pytest.mark.parametrize("spec", ["none", "divprune:keep=0.5", "hiprune:keep=0.5", "pool:keep=0.5"])
@pytest.mark.parametrize("name", ["llava-1.5", "spatial_unpad"])
def test_a_second_image_in_a_later_turn(name, spec):
    variant, model = VARIANTS[name], model_of(name)
    one, two = (inputs(variant, [row]) for row in RAGGED[1:])
    join = torch.cat if name == "llava-1.5" else lambda lists: [*lists[0], *lists[1]]
    both = {"input_ids": torch.cat([one["input_ids"], two["input_ids"]], dim=1)}
    both |= {key: join([one[key], two[key]]) for key in ("images", "image_sizes") if key in one}
    with vtc.patched(model, spec):
        cache = model(**one, use_cache=True).past_key_values
        turns = model(**{**two, "attention_mask": None}, past_key_values=cache).logits[:, -1]
        close(turns, model(**both).logits[:, -1])
        cache = model(**one, use_cache=True).past_key_values
        resumed = generate(model, both, past_key_values=cache)  # the package is given the whole conversation again
        assert torch.equal(resumed, generate(model, both))


@pytest.mark.parametrize("spec", SPECS)
def test_labels_give_a_loss_and_gradients_flow(spec):
    variant, model = VARIANTS["spatial_unpad"], model_of("spatial_unpad")
    batch = inputs(variant, RAGGED)
    with torch.enable_grad(), vtc.patched(model, spec):
        output = model(**batch, labels=batch["input_ids"].masked_fill(batch["input_ids"] < 0, tiny.IGNORE))
        output.loss.backward()
    assert output.loss.isfinite()
    gradients = [p.grad for p in model.model.mm_projector.parameters()]
    assert all(g.isfinite().all() for g in gradients) and all(g.abs().sum() > 0 for g in gradients)
    model.zero_grad(set_to_none=True)


@pytest.mark.parametrize("spec", ["fastv:layer=2,keep=0.25", "sparsevlm:keep=0.5", "pyramiddrop:keep=0.25"])
def test_labels_tell_where_the_prompt_ends(spec):
    """Though the package makes a longer sequence of embeddings: what predicts the answer is as if it were not there."""
    variant, model = VARIANTS["spatial_unpad"], model_of("spatial_unpad")
    batch = inputs(variant, RAGGED[:1])
    answer = torch.tensor([[60, 61, 62, 63]])
    longer = {**batch, "input_ids": torch.cat([batch["input_ids"], answer], dim=1)}
    longer["attention_mask"] = torch.ones_like(longer["input_ids"])
    told = torch.cat([torch.full_like(batch["input_ids"], tiny.IGNORE), answer], dim=1)
    with vtc.patched(model, spec):
        wanted = model(**batch).logits[0, -1]
        close(model(**longer, labels=told).logits[0, -5], wanted)
        steps = generate(model, batch, 5)
        assert torch.equal(generate(model, batch, 5, use_cache=False), steps)


def test_text_only_calls_run_untouched():
    model, ids = model_of("llava-1.5"), torch.tensor([[1, 20, 30, 40]])
    expected = model(input_ids=ids).logits, generate(model, {"input_ids": ids})
    with vtc.patched(model, "divprune:keep=0.5+fastv:layer=2"):
        assert torch.equal(model(input_ids=ids).logits, expected[0])
        assert torch.equal(generate(model, {"input_ids": ids}), expected[1])
        assert vtc.trace(model).images == ()


def test_embeddings_that_were_prepared_by_hand():
    variant, model = VARIANTS["llava-1.5"], model_of("llava-1.5")
    batch = inputs(variant, RAGGED[:2])
    with vtc.patched(model, "divprune:keep=0.5+fastv:layer=2"):
        expected = model(**batch).logits
        made = model.prepare_inputs_labels_for_multimodal(
            batch["input_ids"], None, batch["attention_mask"], None, None, batch["images"]
        )
        assert torch.equal(model(inputs_embeds=made[4], attention_mask=made[2]).logits, expected)
        assert torch.equal(model(inputs_embeds=made[4].clone(), attention_mask=made[2]).logits, expected)
        model(inputs_embeds=torch.randn_like(made[4]), attention_mask=made[2])  # as long, but another prompt
        assert vtc.trace(model).images == ()


@pytest.mark.parametrize("rows", ["ragged", "several_images", "text_row"])
@pytest.mark.parametrize("name", list(VARIANTS))
def test_scores_follow_patches_to_tokens(name, rows, monkeypatch):
    """A token's score is that of the row of the tower which its gradient says it is made of."""
    variant, model, spy, taken = VARIANTS[name], model_of(name), Spy(), []

    def leaf(module, args):
        taken.append(args[0].detach().clone().requires_grad_())
        return (taken[-1],)

    scores = random_scores(monkeypatch)
    with torch.enable_grad(), vtc.patched(model, spy):
        hook = model.model.mm_projector.register_forward_pre_hook(leaf)
        model(**inputs(variant, SCENARIOS[rows]))
        hook.remove()
        check_scores(spy, taken[0], scores[0], variant)


def check_scores(spy, taken, scores, variant):
    expected = scores[:, scores.shape[1] - taken.shape[1] :]
    assert spy.seen
    for features, received in spy.seen:
        for token, score in zip(features.flatten(0, 1), received.flatten()):
            (gradient,) = torch.autograd.grad(token.sum() + token.square().sum(), taken, retain_graph=True)
            of = gradient.abs().sum(dim=-1) > 0
            if variant.feature == "cls_patch":
                of[:, 0] = False  # the CLS token has no place in the picture
            assert score.isnan() if not of.any() else torch.equal(score, expected[of].mean())


@dataclass
class Reader(vtc.Selector):
    """Reads everything that can be asked for."""

    keep: Keep = 0.5
    name = "reader"

    def needs(self, parts):
        return vtc.Needs(cls=(2,), keys=(2,), hidden=(2,), projection=True, text=True)

    def select(self, visual, k):
        self.visual = visual
        return vtc.Reduction(torch.arange(k).expand(len(visual.features), k))


@pytest.mark.parametrize("name", list(VARIANTS))
def test_what_a_selector_may_read(name):
    variant, model = VARIANTS[name], model_of(name)
    row = Row((SQUARE,), 1)
    batch, reader = inputs(variant, [row]), Reader()
    with vtc.patched(model, reader):
        model(**batch)
    visual = reader.visual
    after = batch["input_ids"][0, (batch["input_ids"][0] < 0).nonzero()[-1] + 1 :]
    assert torch.equal(visual.question[0], after)
    assert torch.equal(visual.text[0], model.model.embed_tokens(after))
    places = ~visual.separators
    assert visual.hidden[2].shape == (1, sum(variant.tokens(row)), 32)
    assert visual.hidden[2].isfinite().all(dim=-1)[0].equal(places)
    if variant.feature == "cls_patch":
        assert visual.projection is None
        return
    made = model.model.mm_projector(visual.projection.rows[0, places])
    close(made, visual.features[0, places])
    crops = 1 if variant.merge is None else len(batch["images"][0])
    assert visual.projection.cls.shape == (1, crops, 32)
    assert visual.crops.count == crops


@dataclass
class TowerNorm(vtc.Reducer):
    """Keeps the patches with the largest rows; merges the others into the first one where asked to."""

    keep: Keep = 0.5
    merge: bool = False
    acts = "block"
    name = "tower-norm"

    def blocks(self, parts):
        return (1,)

    def reduce(self, patches):
        norms = patches.hidden.float().norm(dim=-1).mean(dim=-1)
        kept = norms.topk(patches.target, dim=1).indices.sort(dim=1).values
        if not self.merge:
            return vtc.Reduction(kept)
        sources = torch.arange(patches.units).expand(len(kept), -1)
        targets = torch.searchsorted(kept, sources.contiguous(), right=True).sub(1).clamp(min=0)
        counts = torch.zeros(kept.shape).scatter_add(1, targets, torch.ones(sources.shape))
        return vtc.Reduction(kept, Mixing(sources, targets, 1 / counts.gather(1, targets)))


@dataclass
class InsideNorm(TowerNorm):
    """The same between attention and MLP."""

    acts = "attention"


REDUCERS = (TowerNorm(), TowerNorm(merge=True), InsideNorm())


@product(**MATRIX, reducer=REDUCERS, each="value")
def test_reducers(name, attn, reducer):
    variant, model = VARIANTS[name], model_of(name, attn)
    for rows in SCENARIOS.values():
        batch = inputs(variant, rows)
        logits = model(**batch).logits
        with vtc.patched(model, replace(reducer, keep=1.0)):
            assert torch.equal(model(**batch).logits, logits)
        with vtc.patched(model, reducer), padding(model, "left"):
            output, trace, tokens = model(**batch).logits, vtc.trace(model), generate(model, batch)
            expected = [sum(reducer.count(n) for n in variant.tokens(row)) for row in rows]
            assert trace.tokens_per_layer[0].tolist() == expected
            generate(model, batch, num_beams=2)
            for index, row in enumerate(rows):
                alone = inputs(variant, [row])
                close(output[index, -1], model(**alone).logits[0, -1])
                assert torch.equal(generate(model, alone)[0], tokens[index])
        assert torch.equal(model(**batch).logits, logits)


@product(name=VARIANTS, method=[*METHODS, *REDUCERS], each="value")
def test_prompts_that_the_package_cuts_off(name, method):
    variant, model = VARIANTS[name], model_of(name)
    batch = inputs(variant, RAGGED)
    cut = min(length(variant, row) for row in RAGGED) - 12
    model.config.tokenizer_model_max_length = cut
    try:
        with vtc.patched(model, spec_of(method, name=name) if method in METHODS else method):
            assert model(**batch).logits.shape[1] == cut
            for image in vtc.trace(model).images:
                assert int(image.source.positions[-1]) < cut
                assert len(image.kept()) <= len(image.source)
                tokens = torch.cat([grid.tokens().flatten() for grid in image.source.grids])
                assert len(tokens.unique()) == len(tokens) == (~image.source.separators()).sum()
    finally:
        del model.config.tokenizer_model_max_length


@pytest.mark.parametrize("name", ["llava-1.5", "spatial_unpad"])
def test_parts(name):
    model = model_of(name)
    adapter = adapter_class(model)(model)
    assert type(adapter) is LlavaPackageAdapter
    parts = adapter.parts
    assert parts.composite is model and parts.decoder is model.model and parts.layers == tuple(model.model.layers)
    tower = model.get_vision_tower().vision_tower
    assert adapter.tower is tower and len(parts.blocks) == 4 and parts.has_cls
    pixels = torch.randn(1, 3, 16, 16)
    outputs = []
    hook = parts.blocks[parts.feature_layer].register_forward_hook(lambda module, args, output: outputs.append(output))
    features = model.get_vision_tower()(pixels)
    hook.remove()
    output = outputs[0][0] if isinstance(outputs[0], tuple) else outputs[0]
    assert torch.equal(output[:, 1:], features)


def test_a_llava_of_transformers_and_one_of_the_package_are_told_apart():
    from contract import model_of as transformers_model

    assert adapter_class(transformers_model("llava")) is not LlavaPackageAdapter
    model = tiny.build(VARIANTS["llava-1.5"])
    model.config.model_type = "llava"  # as in older checkpoints
    assert adapter_class(model) is LlavaPackageAdapter
    with vtc.patched(model, "divprune:keep=0.5"):
        model(**inputs(VARIANTS["llava-1.5"], RAGGED))
        assert vtc.trace(model).tokens_per_layer[0].tolist() == [8, 8, 8]


@pytest.mark.parametrize("spec", ["hiprune:keep=0.5+transprune:layers=(1,2,3)", "divprune:keep=0.5+fastv:layer=2"])
@pytest.mark.parametrize("name", ["llava-1.5", "spatial_unpad"])
def test_unpatching_leaves_nothing_even_after_an_exception(name, spec):
    model, batch = model_of(name), inputs(VARIANTS[name], RAGGED)
    weights = [p.clone() for p in model.parameters()]
    expected = model(**batch).logits
    generate(model, batch)
    before = state_of(model)
    for module in (model.lm_head, model.model.layers[3], model.model.mm_projector):
        for call in (lambda: model(**batch), lambda: generate(model, batch)):
            handle = module.register_forward_pre_hook(lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError), vtc.patched(model, spec):
                call()
            handle.remove()
            assert state_of(model) == before
    assert torch.equal(model(**batch).logits, expected)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), weights))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    variant = VARIANTS["spatial_unpad"]
    model = tiny.build(variant, dtype=dtype)
    batch = inputs(variant, RAGGED, dtype)
    for spec in ("divprune:keep=0.5+transprune:keep=0.5,layers=(1,2,3)", "hiprune:keep=0.5+fastv:layer=2"):
        with vtc.patched(model, spec):
            logits = model(**batch).logits
            assert logits.dtype == dtype and logits[:, -1].isfinite().all()
            assert generate(model, batch).shape == (3, 3)


# -------------------------------------------------------------------- what cannot work says so


def refused(model, batch, words, spec="divprune:keep=0.5", error=ValueError, **options):
    with vtc.patched(model, spec), pytest.raises(error, match=words):
        generate(model, batch, **options)


def test_what_generate_refuses():
    model, batch = model_of("llava-1.5"), inputs(VARIANTS["llava-1.5"], SCENARIOS["single"])
    refused(model, batch, "inputs_embeds", error=NotImplementedError, inputs_embeds=torch.zeros(1, 4, 64))


def test_a_static_cache_gives_what_a_dynamic_one_does():
    model, batch = model_of("llava-1.5"), inputs(VARIANTS["llava-1.5"], SCENARIOS["single"])
    with vtc.patched(model, "divprune:keep=0.5"):
        assert torch.equal(generate(model, batch, cache_implementation="static"), generate(model, batch))


def test_the_tower_alone_is_left_alone():
    model, pixels = model_of("llava-1.5"), torch.rand(3, 3, 16, 16)
    expected = model.get_vision_tower()(pixels)
    with vtc.patched(model, TowerNorm()):
        assert torch.equal(model.get_vision_tower()(pixels), expected)


def test_a_cache_outlives_its_patch_only_with_an_error():
    model, batch = model_of("llava-1.5"), inputs(VARIANTS["llava-1.5"], SCENARIOS["single"])
    with vtc.patched(model, "divprune:keep=0.5"):
        cache = model(**batch, use_cache=True).past_key_values
    with pytest.raises(RuntimeError, match="unpatched"):
        model(input_ids=torch.tensor([[30]]), past_key_values=cache)


def test_half_a_model():
    with pytest.raises(ValueError, match="LlavaLlamaModel has no prepare_inputs_labels_for_multimodal"):
        vtc.patch(model_of("llava-1.5").model, "divprune")


def test_a_tower_that_is_not_loaded():
    model = tiny.build(VARIANTS["llava-1.5"], load=False)
    before = state_of(model)
    with pytest.raises(ValueError, match=r"model\.get_vision_tower\(\)\.load_model\(\) before vtc\.patch"):
        vtc.patch(model, "divprune")
    assert state_of(model) == before


def test_a_packing_that_cannot_be_followed():
    base = type(model_of("llava-1.5"))
    packed = base.prepare_inputs_labels_for_multimodal

    class Normed(base):
        def prepare_inputs_labels_for_multimodal(
            self, input_ids, position_ids, attention_mask, past_key_values, labels, images, image_sizes=None
        ):
            *first, embeds, _ = packed(self, input_ids, None, attention_mask, None, None, images, image_sizes)
            return *first, torch.nn.functional.layer_norm(embeds, (64,)), None

    class Cut(base):
        def prepare_inputs_labels_for_multimodal(
            self, input_ids, position_ids, attention_mask, past_key_values, labels, images, image_sizes=None
        ):
            *first, embeds, _ = packed(self, input_ids, None, None, None, None, images, image_sizes)
            return *first, embeds[:, : 20 if embeds.is_floating_point() else 10], None

    class Closed(base):
        def prepare_inputs_labels_for_multimodal(self, *args, **kwargs):
            return super().prepare_inputs_labels_for_multimodal(*args, **kwargs)

    batch = inputs(VARIANTS["llava-1.5"], SCENARIOS["single"])
    del batch["attention_mask"]
    for odd, why in (
        (Normed, "Error: .*norm"),
        (Cut, r"\(1, 10\) tokens were expected, and it made \(1, 20\)"),
        (Closed, "its arguments are self, args"),
    ):
        model = tiny.build(tiny.Variant(classes=(tiny.LlavaConfig, odd)))
        model(**batch)
        words = rf"{odd.__name__} puts visual tokens could not be followed.*{why}"
        with vtc.patched(model, "divprune:keep=0.5"), pytest.raises(ValueError, match=words):
            model(**batch)


def test_a_method_that_needs_a_block_which_the_tower_lacks():
    with pytest.raises(ValueError, match="tower layer 40 is out of range; llava_llama has 4 blocks"):
        vtc.patch(model_of("llava-1.5"), "hiprune:object_layer=40")
