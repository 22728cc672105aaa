"""Encoder reducers act through the tower as they say: held against a tower that is run by hand, crop by crop."""

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from contract import ATTENTIONS, EVERY, MORE, batch, each_alone, model_of
from covering import of_cells, product
from families import Row, scenario
from torch.utils.flop_counter import FlopCounterMode
from tower_reference import Result, Tower

import vtc
import vtc.attention.tap
from vtc.method.budget import Keep
from vtc.method.patches import Patches
from vtc.method.reduction import Reduction
from vtc.ops.mixing import Mixing
from vtc.tracing import ImageTrace

torch.set_num_threads(1)


@dataclass
class Largest(vtc.Reducer):
    """Keeps the units with the largest rows ("norm"), or by their place ("place"); the others go, or are merged."""

    name: ClassVar[str] = "test-largest"  # not registered: other tests count the registered ones
    keep: Keep = 0.5
    layers: tuple[int, ...] = (0, 2)
    rule: str = "norm"
    acts: str = "block"  # type: ignore[misc]
    merges: bool = False
    proportional: bool = False

    def blocks(self, parts: vtc.model.parts.Parts) -> tuple[int, ...]:
        return self.layers

    def left(self, patches: Patches) -> int:
        return patches.target if patches.last else -(-(patches.units + patches.target) // 2)

    def reduce(self, patches: Patches) -> Reduction | None:
        images, now = patches.sizes.shape
        left = self.left(patches)
        if left == now:
            return None
        if "number" not in patches.memory:
            patches.memory["number"] = torch.arange(now).expand(images, now)
        by_place = (patches.memory["number"] * 37.0 + 11) % 101
        score = patches.hidden.float().norm(dim=-1).mean(dim=2) if self.rule == "norm" else by_place
        order = score.argsort(dim=1, descending=True)
        kept, gone = order[:, :left], order[:, left:]
        gone = gone.gather(1, patches.memory["number"].gather(1, gone).argsort(dim=1))
        if not self.merges:
            return Reduction(kept)
        target = torch.cat([torch.arange(left), torch.arange(now - left) % left]).expand(images, now)
        source = torch.cat([kept, gone], dim=1)
        size = patches.sizes.gather(1, source)
        total = torch.zeros(images, left).scatter_add(1, target, size)
        return Reduction(kept, Mixing(source, target, size / total.gather(1, target)))


FAMILIES = (
    "llava", "llava_next", "llava_onevision", "paligemma", "gemma3", "internvl", "mistral3",
    "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v", "smolvlm", "idefics3",
)  # fmt: skip


pytestmark = pytest.mark.usefixtures("no_grad")


def pixels(inputs: dict) -> dict:
    """What `get_image_features` takes of `inputs`."""
    return {name: value for name, value in inputs.items() if "image" in name or name == "pixel_values"}


def decoder_of(model: Any) -> torch.nn.Module:
    """The decoder of a tiny model."""
    return getattr(model.model, "language_model", None) or model.model.text_model


def see_entry(model: Any, inputs: dict, method: Any) -> tuple[dict, vtc.Trace]:
    """What the decoder of the patched model is given, and the trace."""
    seen: list[dict] = []
    with vtc.patched(model, method):
        hook = decoder_of(model).register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True
        )
        model(**inputs)
        hook.remove()
        return seen[0], vtc.trace(model)


def check_merged(image: ImageTrace, results: list[Result], method: Largest) -> None:
    """`merged_into` names the survivor of every token that went into one, and -1 for the others."""
    by_hand = {token: survivor for result in results for token, survivor in result.into.items()}
    into = image.merged_into()
    if into is None:  # newlines may be all that is gone
        assert not method.merges or all(token == survivor for token, survivor in by_hand.items())
        return
    assert method.merges and {*by_hand.values()} <= {*image.kept().tolist()}
    assert {token: to for token, to in enumerate(into.tolist()) if to >= 0} == by_hand


def check_entry(family: str, model: Any, rows: list[Row], method: Any, atol=2e-5, rtol=2e-4) -> vtc.Trace:
    """The visual tokens that enter the decoder are those of the tower run by hand, in their places."""
    tiny = EVERY[family]
    inputs = tiny.inputs(model, rows)
    tower = Tower(tiny, model, inputs, rows)
    results = tower.run(method)
    given, trace = see_entry(model, inputs, method)
    plain: list[dict] = []
    hook = decoder_of(model).register_forward_pre_hook(
        lambda module, args, kwargs: plain.append(kwargs), with_kwargs=True
    )
    model(**inputs)
    hook.remove()
    image = 0
    for row, counts in enumerate(tiny.visual_tokens(rows)):
        places = (inputs["input_ids"][row] == tiny.image_id).nonzero()[:, 0].split(counts)
        alive = inputs["attention_mask"][row].bool()
        expected = plain[0]["inputs_embeds"][row].clone()
        for here, count in zip(places, counts, strict=True):
            tokens, features = tower.features(results[image])
            expected[here[tokens]] = features
            budget = method.keep if isinstance(method.keep, int) else max(round(method.keep * count), 1)
            kept = trace.images[image].kept()
            assert len(kept) == min(budget, count)
            made = torch.cat([s.tokens for s in tower.sequences if s.image == image])
            assert torch.equal(kept[torch.isin(kept, made)], tokens)  # the rest are newlines
            assert (kept.diff() > 0).all() and kept.min() >= 0 and kept.max() < count
            check_merged(trace.images[image], results[image], method)
            gone = torch.ones(count, dtype=torch.bool)
            gone[kept] = False
            alive[here[gone]] = False
            image += 1
        left = expected[alive]
        torch.testing.assert_close(given["inputs_embeds"][row, -len(left) :], left, atol=atol, rtol=rtol)
    return trace


@pytest.mark.parametrize("family", FAMILIES)
def test_the_reference_is_the_model_where_nothing_is_removed(family):
    model, tiny = model_of(family), EVERY[family]
    rows = scenario(tiny, "several_images")
    tower = Tower(tiny, model, tiny.inputs(model, rows), rows)
    check_entry(family, model, rows, Largest(keep=1.0))
    assert all(len(result.tokens) for results in tower.run(Largest(keep=1.0)) for result in results)


METHODS = {
    "drop": Largest(),
    "drop by place": Largest(keep=0.3, layers=(1,), rule="place", acts="attention"),
    "merge": Largest(keep=0.4, layers=(0, 1, 2), merges=True),
    "merge before the MLP": Largest(keep=0.4, acts="attention", merges=True, proportional=True),
    "drop at the entry": Largest(keep=0.3, rule="place", acts="entry"),
    "merge at the entry": Largest(keep=0.4, acts="entry", merges=True, proportional=True),
}


@product(family=FAMILIES, method=METHODS, each="value")
def test_what_enters_the_decoder_is_the_tower_run_by_hand(family, method):
    name = "ragged" if "merge" in method else "several_images"
    check_entry(family, model_of(family), scenario(EVERY[family], name), METHODS[method])


@product(
    family=[name for name in FAMILIES if name not in ("llava", "paligemma", "gemma3")],
    keep=[1, 2, "the smallest image", "one less"],
    each="value",
)
def test_a_count_leaves_small_images_and_some_crops_whole_and_others_empty(family, keep):
    rows = scenario(EVERY[family], "ragged")
    least = min(count for row in EVERY[family].visual_tokens(rows) for count in row)
    most = max(count for row in EVERY[family].visual_tokens(rows) for count in row)
    count = {"the smallest image": least, "one less": most - 1}.get(keep, keep)
    for method in (Largest(keep=count), Largest(keep=count, acts="attention", merges=True, proportional=True)):
        check_entry(family, model_of(family), rows, method)


@pytest.mark.parametrize("family", ["llava_next", "llava_onevision"])
def test_a_tile_that_unpadding_cuts_off_whole_takes_part_until_the_first_cut(family, monkeypatch):
    monkeypatch.setattr(EVERY[family], "pinpoints", [[48, 48]])
    model = EVERY[family].build()
    model.config.vision_aspect_ratio = "anyres_max_9"  # of llava_onevision: so many tiles are not scaled down
    check_entry(family, model, [Row(((8, 48),), 3), Row(((16, 20),), 4)], Largest(keep=0.5))


IMPLEMENTATIONS = [
    (family, attention)
    for family in ("llava", "internvl", "qwen2_5_vl", "mistral3", "llava_onevision")
    for attention in ATTENTIONS
]
TOLERANCE = {torch.float32: (2e-5, 2e-4), torch.bfloat16: (0.12, 0.05), torch.float16: (0.012, 0.01)}


@of_cells(
    [
        {"family": family, "attention": attention, "dtype": dtype}
        for family, attention in IMPLEMENTATIONS
        for dtype in TOLERANCE
        if dtype == torch.float32 or family in ("llava", "internvl", "qwen2_5_vl")
    ]
)
def test_merging_under_every_attention_and_dtype(family, attention, dtype):
    """Which tokens are left is compared exactly in `check_entry`, what they are within the dtype's rounding."""
    model = model_of(family, attention, dtype)
    atol, rtol = TOLERANCE[dtype]
    method = Largest(keep=0.4, rule="place", acts="attention", merges=True, proportional=True)
    check_entry(family, model, scenario(EVERY[family], "several_images"), method, atol, rtol)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("dim", [16, 64, 72, 80, 96])
def test_the_bias_of_a_key_is_added_to_its_logits_and_to_nothing_else(dim, dtype):
    """Also in half precision, whose own rounding of log(3) would be 2^-9 of it."""
    gen = torch.Generator().manual_seed(dim)
    query, key, value = (torch.randn(2, heads, 5, dim, generator=gen).to(dtype) for heads in (4, 2, 2))
    bias = torch.tensor([[0.0, 3.0, 7.0, 11.0, 500.0], [1.0, 2.0, 5.0, 6.0, 23.0]]).log().nan_to_num(neginf=-1e4)
    wide = vtc.attention.tap._with_bias(query, key, value, dim**-0.5, bias)
    assert all(x.shape[-1] == dim + 8 and x.isfinite().all() for x in wide)
    assert torch.equal(wide[2][..., :dim], value) and not wide[2][..., dim:].any()
    more = wide[1].double()[..., dim:].repeat_interleave(2, dim=1)
    added = wide[0].double()[..., dim:] @ more.transpose(-1, -2) * dim**-0.5
    torch.testing.assert_close(added, bias[:, None, None].double().expand_as(added), atol=2e-5, rtol=2e-5)
    assert torch.equal(wide[0][..., :dim], query) and torch.equal(wide[1][..., :dim], key)


@dataclass
class Spreading(Largest):
    """Spreads each unit that goes over two survivors: a fifth into the first, the rest into the second of them."""

    def reduce(self, patches: Patches) -> Reduction | None:
        reduction = super().reduce(patches)
        assert reduction is not None and reduction.mixing is not None
        left, mixing = reduction.kept.shape[1], reduction.mixing
        gone = mixing.source[:, left:]
        source = torch.cat([mixing.source[:, :left], gone, gone], dim=1)
        first = mixing.target[:, left:]
        target = torch.cat([mixing.target[:, :left], (first + 1) % left, first], dim=1)
        weight = torch.cat(
            [torch.full((left,), 0.6), torch.full_like(gone[0] * 1.0, 0.8), torch.full_like(gone[0] * 1.0, 0.2)]
        )
        return Reduction(reduction.kept, Mixing(source, target, weight.expand_as(source)))


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_a_token_in_several_survivors_names_the_one_with_the_largest_weight(family):
    model, inputs = batch(family, "single")
    given = {}
    with vtc.patched(model, Largest(layers=(1,), rule="place", merges=True)):
        model(**inputs)
        given["all in one"] = vtc.trace(model).images[0]
    with vtc.patched(model, Spreading(layers=(1,), rule="place", merges=True)):
        model(**inputs)
        given["spread"] = vtc.trace(model).images[0]
    one, spread = given["all in one"].merged_into(), given["spread"].merged_into()
    kept = given["spread"].kept()
    tokens = torch.arange(len(one))
    by_place = [t for t in tokens.tolist() if t in kept]
    assert torch.equal(given["all in one"].kept(), kept)
    assert torch.equal(one[kept], kept) and torch.equal(spread[kept], kept)
    gone = torch.tensor([t for t in tokens.tolist() if t not in by_place])
    assert (spread[gone] != one[gone]).all()  # four fifths went to the next survivor
    assert {*spread[gone].tolist()} <= {*kept.tolist()}


# ---------------------------------------------------------------- fewer rows, and what they cost


@product(family=FAMILIES, method=["drop", "drop by place", "drop at the entry"], each="value")
def test_fewer_rows_enter_blocks_and_projector_and_flops_count_them(family, method):
    model, tiny = model_of(family, "eager"), EVERY[family]
    rows = scenario(tiny, "single")
    inputs = tiny.inputs(model, rows)
    tower = Tower(tiny, model, inputs, rows)
    ((results),) = tower.run(METHODS[method])
    together = max if len(tower.hidden) > 1 else sum  # crops are padded to the longest
    crops = len(tower.hidden)
    expected = [[crops * together(r.entered[b][p] for r in results) for p in (0, 1)] for b in range(len(tower.blocks))]
    entered: list[int] = []
    through_mlp: list[int] = []
    projected: list[int] = []

    def count(into: list[int], index: int = 0):
        return lambda module, args, kwargs: into.append((args or [*kwargs.values()])[0].shape[:-1].numel())

    with vtc.patched(model, METHODS[method]):
        hooks = [b.register_forward_pre_hook(count(entered), with_kwargs=True) for b in tower.blocks]
        mlps = [getattr(b, "mlp", None) or b.feed_forward for b in tower.blocks]
        hooks += [mlp.register_forward_pre_hook(count(through_mlp), with_kwargs=True) for mlp in mlps]
        projector = vtc.model.adapter.adapter_class(model)(model).projector or tower.tower.merger
        hooks.append(projector.register_forward_pre_hook(count(projected), with_kwargs=True))
        with FlopCounterMode(display=False, depth=None) as counter:
            model(**inputs)
        for hook in hooks:
            hook.remove()
        trace = vtc.trace(model)
    assert entered == trace.tower_rows.tolist() == [block[0] for block in expected]
    assert through_mlp == [block[1] for block in expected]
    assert entered[-1] < entered[0]
    if family not in ("gemma3", "mistral3"):  # whose projectors pool over the picture
        kept = sum(len(result.tokens) for result in results)
        assert projected == [kept * (4 if family in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl") else 1)]
    counts = counter.get_flop_counts()
    path = {module: f"{type(model).__name__}.{name}" for name, module in model.named_modules()}
    flops = trace.flops()
    if family not in ("llava_next", "llava_onevision"):  # whose padding is kept out by heads that are a little wider
        assert flops.tower == pytest.approx(sum(sum(counts[path[block]].values()) for block in tower.blocks), rel=0.01)
    assert flops.tower < flops.unpatched_tower


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "mistral3"])
def test_the_untouched_tower_costs_what_it_costs_without_a_reducer(family, attention):
    model, inputs = batch(family, "several_images", attention)
    with vtc.patched(model, "none"):
        model(**inputs)
        plain = vtc.trace(model).flops().tower
    with vtc.patched(model, Largest(layers=(2,))):
        model(**inputs)
        flops = vtc.trace(model).flops()
    assert flops.unpatched_tower == plain
    assert 0.7 * plain < flops.tower < plain  # only one block of four gets fewer rows


@pytest.mark.parametrize(("family", "attention"), [("qwen2_5_vl", "sdpa"), ("mistral3", "flash_stand_in")])
def test_a_packed_tower_costs_the_sum_of_its_images(family, attention):
    model, inputs = batch(family, "ragged", attention)
    with vtc.patched(model, Largest()):
        model(**inputs)
        together = vtc.trace(model).flops()
        alone = []
        for single in each_alone(EVERY[family], model, scenario(EVERY[family], "ragged")):
            model(**single)
            alone.append(vtc.trace(model).flops())
    assert together.tower == sum(flops.tower for flops in alone)
    assert together.unpatched_tower == sum(flops.unpatched_tower for flops in alone)


@pytest.mark.parametrize("before", ["nothing", "features", "a call"])
@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_5_vl", "internvl"])
def test_a_tower_called_alone_is_not_reduced(family, before):
    model, inputs = batch(family, "single")
    tower, given = getattr(model.model, "visual", None) or model.model.vision_tower, []
    hook = tower.register_forward_pre_hook(lambda m, args, kwargs: given.append((args, kwargs)), with_kwargs=True)
    model(**inputs)
    hook.remove()
    ((args, kwargs),) = given
    expected = tower(*args, **kwargs).last_hidden_state
    with vtc.patched(model, Largest()):
        if before == "features" and family != "internvl":  # which needs the prompt
            model.get_image_features(**pixels(inputs))
        if before == "a call":
            model(**inputs)
        assert torch.equal(tower(*args, **kwargs).last_hidden_state, expected)


# ---------------------------------------------------------------- what the tower gives


@pytest.mark.parametrize("name", ["qwen3_vl"])
def test_deepstack_features_are_those_of_the_survivors(name):
    model, tiny = model_of(name), EVERY[name]
    rows = scenario(tiny, "several_images")
    inputs = tiny.inputs(model, rows)
    tower = Tower(tiny, model, inputs, rows)
    for method in (Largest(), METHODS["merge"]):
        results = tower.run(method)
        given, _ = see_entry(model, inputs, method)
        for which, features in enumerate(given["deepstack_visual_embeds"]):
            parts = [tower.deepstack(r, s, which) for r, s in zip(results, tower.sequences, strict=True)]
            torch.testing.assert_close(features, torch.cat(parts), atol=2e-5, rtol=2e-4)


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_5_vl", "paligemma"])
def test_hidden_states_of_the_tower_hold_survivors_in_their_places_and_zeros(family, fresh):
    """`fresh`: transformers' own capturing hooks come behind ours, or before."""
    tiny, method = EVERY[family], Largest(keep=36 if family == "llava_next" else 0.5, layers=(0, 1))
    model, rows = model_of(family), scenario(tiny, "ragged")
    inputs = tiny.inputs(model, rows)
    tower = Tower(tiny, model, inputs, rows)
    results = [result for image in tower.run(method) for result in image]
    if fresh:
        model = tiny.build()
    with vtc.patched(model, method):
        features = model.model.get_image_features(**pixels(inputs), output_hidden_states=True)
    states = features.hidden_states
    assert len(states) == len(tower.blocks) + 1
    assert torch.equal(states[0].view_as(tower.hidden), tower.hidden)
    for block, state in enumerate(states[1 : tower.last]):
        full = torch.zeros_like(tower.hidden)
        begin = 0
        for entry, (result, sequence) in enumerate(zip(results, tower.sequences, strict=True)):
            x, at = result.states[block]
            where = (0, at + begin) if len(tower.hidden) == 1 else (entry, at)
            full[where] = x
            begin += len(sequence.hidden)
        torch.testing.assert_close(state.view_as(full), full, atol=2e-5, rtol=2e-4)


# ---------------------------------------------------------------- nothing stays behind


def everything(model) -> dict:
    """All hooks, attributes and attention settings of a model's modules."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called")
    return {
        name: (
            [list(getattr(module, hook)) for hook in hooks],
            sorted(vars(module)),
            getattr(getattr(module, "config", None), "_attn_implementation", None),
        )
        for name, module in model.named_modules()
    }


@pytest.mark.parametrize("acts", ["entry", "block", "attention"])
@pytest.mark.parametrize("family", FAMILIES)
def test_keeping_all_is_bit_exact_and_unpatching_leaves_nothing(family, acts):
    model, inputs = batch(family, "several_images")
    logits = model(**inputs).logits
    before = everything(model)
    with vtc.patched(model, Largest(keep=1.0, acts=acts)):
        assert torch.equal(model(**inputs).logits, logits)
        trace = vtc.trace(model)
        assert trace.flops().tower == trace.flops().unpatched_tower
        assert all(len(image.kept()) == len(image.source) for image in trace.images)
    with vtc.patched(model, Largest(keep=0.3, acts=acts, merges=True, proportional=True)):
        assert not torch.equal(model(**inputs).logits, logits)
        assert everything(model) != before
    assert everything(model) == before
    assert torch.equal(model(**inputs).logits, logits)


@dataclass
class Failing(Largest):
    """Raises at its second stage, as long as `broken`."""

    broken: bool = True

    def reduce(self, patches: Patches) -> Reduction | None:
        if self.broken and patches.last:
            raise KeyError("a bug in a reducer")
        return super().reduce(patches)


@pytest.mark.parametrize("acts", ["block", "attention"])
@pytest.mark.parametrize("family", ["llava", "llava_next", "internvl", "qwen2_5_vl"])
def test_after_an_exception_in_a_reducer_all_is_well(family, acts):
    model, inputs = batch(family, "several_images")
    logits, before = model(**inputs).logits, everything(model)
    with vtc.patched(model, Largest(acts=acts)):
        expected = model(**inputs).logits
    with vtc.patched(model, method := Failing(acts=acts)):
        for call in (lambda: model(**inputs), lambda: model.generate(**inputs, max_new_tokens=1)):
            with pytest.raises(KeyError, match="a bug in a reducer"):
                call()
        method.broken = False
        assert torch.equal(model(**inputs).logits, expected)
    assert everything(model) == before
    assert torch.equal(model(**inputs).logits, logits)


# ---------------------------------------------------------------- generate, turns, gradients


MERGING = METHODS["merge before the MLP"]


@pytest.mark.parametrize("family", FAMILIES)
def test_generate_makes_features_ahead_for_beams_and_several_sequences(family):
    model, inputs = batch(family, "ragged")
    rows = scenario(EVERY[family], "ragged")
    more = {"max_new_tokens": 3, "do_sample": False}
    with vtc.patched(model, MERGING):
        step = model.generate(**inputs, **more, output_logits=True, return_dict_in_generate=True).logits[0]
        torch.testing.assert_close(step, model(**inputs).logits[:, -1], atol=1e-4, rtol=1e-4)
        beams = model.generate(**inputs, **more, num_beams=2, num_return_sequences=2)
        for row, alone in enumerate(each_alone(EVERY[family], model, rows)):
            single = model.generate(**alone, **more, num_beams=2, num_return_sequences=2)
            assert torch.equal(single[:, -3:], beams[2 * row : 2 * row + 2, -3:])
        text = {"input_ids": torch.tensor([[1, 20, 21, 22]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
        text |= {"token_type_ids": torch.zeros(1, 4, dtype=torch.long)} if "token_type_ids" in inputs else {}
        only_text = model(**text).logits
    assert torch.equal(only_text, model(**text).logits)


@pytest.mark.parametrize("generate", [False, True])
@pytest.mark.parametrize("family", ["llava", "llava_next", "internvl", "mistral3"])
def test_a_second_image_in_a_later_turn(family, generate):
    """Two turns with an image each equal one prompt with both."""
    model, tiny = model_of(family), EVERY[family]
    row, other = scenario(tiny, "ragged")[1], scenario(tiny, "ragged")[1]
    one, two = tiny.inputs(model, [row]), tiny.inputs(model, [other])
    ids = {n: torch.cat([one[n], two[n]], dim=1) for n in ("input_ids", "attention_mask")}
    both = ids | {n: torch.cat([one[n], two[n]]) for n in one if n not in ids}
    with vtc.patched(model, MERGING):
        cache = model(**one, use_cache=True).past_key_values
        if generate:  # the prompt so far, and the new picture
            given = ids | {n: two[n] for n in two if n not in ids}
            options = {"output_logits": True, "return_dict_in_generate": True, "do_sample": False}
            turns = model.generate(**given, max_new_tokens=1, past_key_values=cache, **options).logits[0]
        else:
            turns = model(**{**two, "attention_mask": ids["attention_mask"]}, past_key_values=cache).logits[:, -1]
        torch.testing.assert_close(turns, model(**both).logits[:, -1], atol=3e-4, rtol=1e-4)


@pytest.mark.parametrize("method", ["drop", "merge", "merge before the MLP", "merge at the entry"])
@pytest.mark.parametrize("family", ["llava", "llava_onevision", "internvl", "qwen2_5_vl", "mistral3"])
def test_gradients_are_those_of_the_tower_run_by_hand(family, method):
    model, tiny = EVERY[family].build().train(), EVERY[family]
    rows = scenario(tiny, "ragged")
    inputs = tiny.inputs(model, rows)

    def gradients(embeddings: torch.Tensor) -> list[torch.Tensor]:
        (embeddings * torch.linspace(-1, 1, embeddings.shape[-1])).sum().backward()
        found = [p.grad.clone() for p in weights]
        model.zero_grad()
        return found

    with torch.enable_grad():
        tower = Tower(tiny, model, inputs, rows)
        weights = [p for p in tower.blocks[0].parameters() if p.grad is None]
        features = [tower.features(results)[1] for results in tower.run(METHODS[method])]
        expected = gradients(torch.cat(features))
        given, trace = see_entry(model, inputs, METHODS[method])
        visual = []
        for image in trace.images:
            kept = image.kept()
            kept = kept[~image.source.separators()[kept]]
            visual.append((image.row, image.source.positions[kept]))
        alive = [
            torch.cat([image.source.positions[image.kept()] for image in trace.images if image.row == row])
            for row in range(len(rows))
        ]
        rest = inputs["attention_mask"].bool() & (inputs["input_ids"] != tiny.image_id)
        parts = []
        for row, places in visual:
            left = torch.cat([rest[row].nonzero()[:, 0], alive[row]]).sort().values
            embeds = given["inputs_embeds"][row, -len(left) :]
            parts.append(embeds[torch.isin(left, places)])
        got = gradients(torch.cat(parts))
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-3, rtol=1e-3)
    assert max(float(g.abs().max()) for g in got) > 0


@pytest.mark.parametrize("family", ["llava", "internvl", "qwen2_5_vl", "gemma3"])
def test_a_tower_in_another_dtype(family):
    model, inputs = EVERY[family].build(), batch(family, "ragged")[1]
    tower = getattr(model.model, "visual", None) or model.model.vision_tower
    tower.to(torch.bfloat16)
    if (projector := getattr(model.model, "multi_modal_projector", None)) is not None:
        projector.to(torch.bfloat16)
    if family == "internvl":  # it casts pixels to the whole model's dtype
        inputs["pixel_values"] = inputs["pixel_values"].to(torch.bfloat16)
    with vtc.patched(model, Largest(keep=0.4, rule="place", acts="attention", merges=True, proportional=True)):
        mixed = model(**inputs).logits
    expected = EVERY[family].build()
    with vtc.patched(expected, Largest(keep=0.4, rule="place", acts="attention", merges=True, proportional=True)):
        inputs["pixel_values"] = inputs["pixel_values"].float()
        torch.testing.assert_close(mixed[:, -1], expected(**inputs).logits[:, -1], atol=0.3, rtol=0.1)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize("family", ["llava", "internvl", "qwen2_5_vl"])
def test_features_made_before_patching_are_refused(family):
    model, inputs = batch(family, "single")
    features = model.model.get_image_features(**pixels(inputs), return_dict=True)
    rest = {name: value for name, value in inputs.items() if name not in ("pixel_values", "image_sizes")}
    with (
        vtc.patched(model, Largest()),
        pytest.raises(ValueError, match="did not come from it: make the features after"),
    ):
        model(**rest, mm_encoder_outputs={"image": features})


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "llava_next"])
def test_features_made_by_the_patched_model_ahead_are_used(family):
    model, inputs = batch(family, "single")
    rest = {name: value for name, value in inputs.items() if name not in ("pixel_values", "image_sizes")}
    with vtc.patched(model, Largest()):
        expected = model(**inputs).logits
        features = model.get_image_features(**pixels(inputs), return_dict=True)
        given = model(**rest, mm_encoder_outputs={"image": features}).logits
        assert torch.equal(given, expected)


@pytest.mark.parametrize(
    ("methods", "words"),
    [
        ((Largest(), vtc.DivPrune()), "test-largest and divprune can't be composed"),
        ((Largest(), Largest(keep=0.3)), "test-largest and test-largest can't be composed"),
        ((Largest(layers=(0, 3)),), "tower block 3 is out of range; llava reads its features from block 2"),
        ((Largest(layers=(-1,)),), "tower block -1 is out of range"),
        ((Largest(layers=(2, 0)),), r"blocks \(2, 0\) must name one or more tower blocks, ascending"),
        ((Largest(layers=()),), r"blocks \(\) must name one or more"),
    ],
)
def test_what_does_not_compose_or_fit_is_refused_and_changes_nothing(methods, words):
    model, _ = batch("llava", "single")
    before = everything(model)
    with pytest.raises(ValueError, match=words):
        vtc.patch(model, *methods)
    assert everything(model) == before


@pytest.mark.parametrize("family", MORE)
def test_a_family_whose_patches_are_not_followed_refuses(family):
    model, inputs = batch(family, "ragged")
    try:
        vtc.patch(model, Largest())
    except ValueError as error:
        assert any(
            words in str(error) for words in ("use a selector", "such as 'divprune'", "none was found", "no module")
        )
        return
    try:
        model(**inputs)
        counts = [(len(image.source), len(image.kept())) for image in vtc.trace(model).images]
        assert all(left == round(total / 2) for total, left in counts)
    except ValueError as error:
        assert "video" in family and "use a selector" in str(error)
    finally:
        vtc.unpatch(model)


@dataclass
class Wrong(Largest):
    """Breaks the contract of `reduce`."""

    how: str = ""

    def reduce(self, patches: Patches) -> Any:
        images, now = patches.sizes.shape
        left = self.left(patches)
        kept = torch.arange(left).expand(images, left)
        ones = torch.ones(images, left)
        return {
            "nothing": None,
            "too few": Reduction(kept[:, 1:]),
            "too many": Reduction(torch.arange(left + 1).expand(images, -1)),
            "none at all": Reduction(kept[:, :0]),
            "duplicates": Reduction(torch.zeros_like(kept)),
            "out of range": Reduction(kept + now),
            "negative": Reduction(kept - 1),
            "a list": kept.tolist(),
            "one dimension": Reduction(kept[0]),
            "images": Reduction(kept[:1].expand(images + 1, -1)),
            "source out of range": Reduction(kept, Mixing(kept + now, kept, ones)),
            "target out of range": Reduction(kept, Mixing(kept, kept + left, ones)),
            "sizes of another shape": Reduction(kept, sizes=torch.ones(images, left + 1)),
            "features": Reduction(kept, features=patches.hidden[:, :left, 0]),
        }[self.how]


HOW = (
    "nothing", "too few", "too many", "none at all", "duplicates", "out of range", "negative", "a list",
    "one dimension", "images", "source out of range", "target out of range", "sizes of another shape", "features",
)  # fmt: skip


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_a_reducer_that_breaks_its_contract_is_named(family, how):
    model, inputs = batch(family, "several_images")
    with vtc.patched(model, Wrong(how=how)), pytest.raises(RuntimeError, match="test-largest"):
        model(**inputs)


# ---------------------------------------------------------------- one image does not see another


@dataclass
class Varying(Largest):
    """Its first stage leaves a number that depends on the content of all that it is shown at once."""

    shown: str = "sequence"

    @property
    def together(self) -> str:
        return self.shown

    def left(self, patches: Patches) -> int:
        if patches.last:
            return patches.target
        seen = float(patches.hidden.float().square().mean()) * 1000 % 1.0
        return patches.target + int(seen * (patches.units - patches.target))


@of_cells(
    [
        {"family": family, "attention": attention, "shown": shown, "name": name}
        for family, attention in [*IMPLEMENTATIONS[3:], ("llava", "sdpa"), ("llava_next", "sdpa")]
        for shown, name in (("sequence", "ragged"), ("sequence", "several_images"), ("image", "ragged"))
    ]
)
def test_each_image_is_as_in_its_own_run(family, name, shown, attention):
    model, inputs = batch(family, name, attention)
    rows = scenario(EVERY[family], name)
    with vtc.patched(model, Varying(shown=shown, merges=True, proportional=True, keep=0.3)):
        logits = model(**inputs).logits[:, -1]
        kept = [image.kept().tolist() for image in vtc.trace(model).images]
        alone = []
        for row, inputs in enumerate(each_alone(EVERY[family], model, rows)):
            torch.testing.assert_close(model(**inputs).logits[0, -1], logits[row], atol=3e-4, rtol=1e-4)
            alone += [image.kept().tolist() for image in vtc.trace(model).images]
    assert alone == kept


@dataclass
class Adapting(Largest):
    """Keeps the units whose rows are no shorter than their mean, however many these are."""

    keep: Keep | None = None
    may_adapt: ClassVar[bool] = True

    @property
    def together(self) -> str:
        return "sequence"

    def reduce(self, patches: Patches) -> Reduction | None:
        length = patches.hidden.float().norm(dim=-1).mean(dim=2)[0]
        return Reduction((length >= length.mean()).nonzero().T)


@pytest.mark.parametrize("acts", ["entry", "block"])
@pytest.mark.parametrize("family", ["llava", "llava_next", "internvl", "qwen2_5_vl", "qwen3_vl", "mistral3"])
def test_a_reducer_may_leave_as_many_as_it_finds_of_each_crop(family, acts):
    model, inputs = batch(family, "ragged")
    with vtc.patched(model, Adapting(acts=acts)):
        logits = model(**inputs).logits[:, -1]
        images = vtc.trace(model).images
        kept = [image.kept().tolist() for image in images]
        alone = []
        for row, inputs in enumerate(each_alone(EVERY[family], model, scenario(EVERY[family], "ragged"))):
            torch.testing.assert_close(model(**inputs).logits[0, -1], logits[row], atol=3e-4, rtol=1e-4)
            alone += [image.kept().tolist() for image in vtc.trace(model).images]
    assert alone == kept
    assert all(0 < len(tokens) < len(image.source) for tokens, image in zip(kept, images, strict=True))


@dataclass
class Counting(Varying):
    """Notes how many sequences it is shown at once."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.groups: list[int] = []

    def reduce(self, patches: Patches) -> Reduction | None:
        self.groups.append(len(patches.sizes))
        return Largest.reduce(self, patches)


@pytest.mark.parametrize(("shown", "groups"), [("all", [7]), ("image", [3, 1, 3]), ("sequence", [1] * 7)])
def test_how_many_crops_are_shown_at_once(shown, groups):
    model, inputs = batch("internvl", "ragged")  # 3, 1 and 3 tiles
    with vtc.patched(model, method := Counting(layers=(1,), shown=shown)):
        model(**inputs)
    assert method.groups == groups
