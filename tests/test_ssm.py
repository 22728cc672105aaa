"""UTRC and state-space decoders: counts, pairs by hand, and whole models against their own layers run by hand."""

import math
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from covering import product
from families import scenario
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_ssm import HAS_NEMOTRON, MambaVLM, NemotronOmni, mamba
from torch import Tensor
from torch.testing import assert_close
from transformers import DynamicCache

import vtc
from vtc.method.prune import Rows
from vtc.prunes.utrc import UTRC, fuse, pair, token_importance, unified_reduction
from vtc.tower.features import Features

torch.set_num_threads(1)
WIDTH = 32
#: Length and first and last + 1 visual place of each row.
ROWS = ((20, 2, 12), (16, 5, 11), (13, 0, 3), (9, 4, 5))

# ---------------------------------------------------------------- counts and fields


@pytest.mark.parametrize(
    ("fields", "present", "left"),
    [
        ({"keep": 0.25, "layers": (3, 5)}, 100, [50, 25]),
        ({"keep": 0.25, "layers": (3, 5)}, 7, [4, 2]),  # 3.5 and 1.75, rounded up
        ({"keep": 10, "layers": (3, 5, 7)}, 10_000, [5000, 2500, 1250]),  # 100 comes too soon: half at a time
        ({"keep": 10, "layers": (3, 5, 7), "rule": "score"}, 10_000, [1000, 100, 10]),
        ({"keep": 0.7, "layers": (3,)}, 10, [7]),  # 7.000…1 in floating point
        ({"keep": 64, "layers": (3, 4)}, 30, [30, 30]),
        ({"keep": 1.0, "layers": (3, 4)}, 30, [30, 30]),
        ({"keep": 1, "layers": (3, 4)}, 2, [2, 1]),
    ],
)
def test_each_layer_leaves_the_same_share_rounded_up(fields: dict[str, Any], present: int, left: list[int]) -> None:
    method = UTRC(**fields)
    assert [method.count_at(stage, present) for stage in range(len(left))] == left
    assert method.count(present) == left[-1]


@settings(max_examples=60, deadline=None)
@given(
    present=st.integers(0, 3000),
    keep=st.one_of(st.integers(1, 4000), st.floats(0.01, 1.0)),
    depth=st.sampled_from((24, 48, 64)),
)
def test_counts_fall_by_half_at_most_and_end_at_keep(present: int, keep: float, depth: int) -> None:
    method = UTRC(keep=keep)
    stages = len(method.schedule(depth))
    left = [present, *(method.count_at(stage, present) for stage in range(stages))]
    for before, after in pairwise(left):
        assert before - before // 2 <= after <= before
    wanted = min(keep, present) if isinstance(keep, int) else math.ceil(round(present * keep, 9))
    if wanted >= present / 2**stages + stages:  # not where half at a time is too slow
        assert left[-1] == wanted


def test_the_published_layers_are_scaled_and_each_model_has_its_own() -> None:
    assert UTRC().schedule(64) == (13, 18, 23, 28, 33, 38, 43)
    assert UTRC().schedule(48) == (11, 16, 21, 26, 31, 36)
    assert UTRC().schedule(24) == (6, 9, 11, 13, 16, 19)
    assert UTRC().schedule(6) == (2, 3, 4, 5)
    method = UTRC()
    deep, shallow = method.split()[0], method.split()[0]
    deep.schedule(64), shallow.schedule(48)
    assert deep.count(1000) == shallow.count(1000) == 500
    assert deep.count_at(0, 1000) == 906 and shallow.count_at(0, 1000) == 891
    with pytest.raises(ValueError, match="schedule"):
        UTRC().count(10)


@pytest.mark.parametrize(
    "fields", [{"pruned": 1.5}, {"importance": "max"}, {"rule": "pair"}, {"layers": (3, 3)}, {"layers": (0,)}]
)
def test_a_bad_field_is_named(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        UTRC(**fields)


# ---------------------------------------------------------------- one layer, by hand


def by_hand(mixer: Tensor, residual: Tensor, may_go: list[int], remove: int, pruned: float) -> tuple[dict, dict]:
    """Paper's algorithm for one row [n, D] in plain loops: place -> new token of the survivors, source -> target."""
    score = mixer.clamp_min(0).mean(dim=1)
    order = sorted(may_go, key=lambda i: float(score[i]))
    less, more = order[: len(order) // 2], sorted(order[len(order) // 2 :])
    edges = []
    for source in less:
        similar = [float(torch.cosine_similarity(mixer[source], mixer[target], dim=0)) for target in more]
        edges.append((max(similar), source, more[similar.index(max(similar))]))
    edges = sorted(edges, key=lambda edge: -edge[0])[:remove]
    into = {source: target for _, source, target in edges}
    merged = [source for _, source, _ in edges[math.floor(pruned * len(edges)) :]]
    new = {}
    for place in range(len(mixer)):
        sources = [source for source in into if into[source] == place]
        branch = torch.stack([mixer[i] for i in (place, *(s for s in sources if s in merged))]).mean(dim=0)
        rest = torch.stack([residual[i] for i in (place, *sources)]).mean(dim=0)
        new[place] = branch + rest
    return {place: token for place, token in new.items() if place not in into}, into


@pytest.mark.parametrize("pruned", [0.0, 0.5, 0.7, 1.0])
def test_a_batch_is_reduced_as_its_rows_by_hand(pruned: float) -> None:
    generator = torch.Generator().manual_seed(3)
    mixer, residual = (torch.randn(3, 17, 6, generator=generator) for _ in range(2))
    visual = torch.zeros(3, 17, dtype=torch.bool)
    visual[0, 3:14], visual[1, [1, 4, 5, 9]], visual[2, 16] = True, True, True
    method = UTRC(layers=(4,), pruned=pruned)
    memory = {"layer3": mixer}
    valid = torch.ones_like(visual)
    rows = Rows(layer=4, hidden=mixer + residual, visual=visual, valid=valid, instruction=~visual)
    decision = method.decide(rows, (7, 2, 1), memory)
    assert not memory and decision.into is not None and decision.hidden is not None
    for row, (go, remove) in enumerate(zip([list(range(3, 14)), [1, 4, 5, 9], [16]], (4, 2, 0))):
        tokens, into = by_hand(mixer[row], residual[row], go, remove, pruned)
        assert decision.alive[row].nonzero()[:, 0].tolist() == [place for place in go if place not in into]
        assert {i: int(t) for i, t in enumerate(decision.into[row]) if t >= 0} == into
        for place, token in tokens.items():
            assert_close(decision.hidden[row, place], token)
            if place not in into.values():
                assert torch.equal(decision.hidden[row, place], rows.hidden[row, place])


def test_equal_tokens_go_in_order_and_what_is_not_finite_counts_as_zero() -> None:
    y = torch.ones(1, 6, 4)
    everything = torch.ones(1, 6, dtype=torch.bool)
    edges = pair(y, everything, everything)
    assert edges.source[0].tolist() == [0, 1, 2] and edges.target[0].tolist() == [3, 3, 3]
    y[0, 4] = float("nan")
    y[0, 5, 0] = float("inf")
    edges = pair(y, everything, everything)
    assert edges.source[0].tolist()[-1] == 4  # the least important, and like nothing
    mixed, rest, gone = unified_reduction(torch.zeros(1, 6, 4), torch.ones(1, 6, 4), edges, torch.tensor([2]))
    assert gone[0].tolist() == [True, True, False] and mixed.eq(0).all() and rest.eq(1).all()
    assert torch.equal(
        fuse(y[:, :4], pair(y[:, :4], everything[:, :4], everything[:, :4]), gone[:, :2] & False), y[:, :4]
    )


def test_importance_by_name() -> None:
    y = torch.tensor([[3.0, -4.0]])
    values = {name: float(token_importance(y, name)) for name in ("clipped", "l1", "l2", "plain")}
    assert values == {"clipped": 1.5, "l1": 3.5, "l2": 5.0, "plain": -0.5}


# ---------------------------------------------------------------- Mamba decoders


def batch(rows: tuple[tuple[int, int, int], ...]) -> SimpleNamespace:
    """Left-padded rows (junk in the padding) of embeddings, with visual places and two tokens to decode."""
    length = max(n for n, _, _ in rows)
    embeds, decoded = 7 * torch.randn(len(rows), length, WIDTH), torch.randn(len(rows), 2, WIDTH)
    visual = torch.zeros(len(rows), length, dtype=torch.bool)
    mask = torch.zeros(len(rows), length, dtype=torch.long)
    for row, (n, first, last) in enumerate(rows):
        generator = torch.Generator().manual_seed(100 * n + first)
        embeds[row, length - n :] = torch.randn(n, WIDTH, generator=generator)
        decoded[row] = torch.randn(2, WIDTH, generator=generator)
        visual[row, length - n + first : length - n + last] = True
        mask[row, length - n :] = 1
    return SimpleNamespace(embeds=embeds, visual=visual, mask=None if mask.all() else mask, decoded=decoded)


@torch.no_grad()
def prefill_and_decode(model: MambaVLM, given: SimpleNamespace) -> Tensor:
    """Last hidden states [B, 3, D] of prefill and two decode steps."""
    cache = DynamicCache(config=model.config)
    out = [model(given.embeds, given.visual, given.mask, cache_params=cache).last_hidden_state]
    assert out[0].shape == given.embeds.shape
    out += [model(token, cache_params=cache).last_hidden_state for token in given.decoded.split(1, dim=1)]
    return torch.cat([hidden[:, -1:] for hidden in out], dim=1)


@torch.no_grad()
def layers_by_hand(model: MambaVLM, given: SimpleNamespace, method: UTRC) -> tuple[Tensor, list[int]]:
    """The same of a single row without a cache: all tokens through plain layers, shortened by `by_hand`."""
    hidden = torch.cat([given.embeds, given.decoded], dim=1)
    visual = torch.cat([given.visual, torch.zeros(1, 2, dtype=torch.bool)], dim=1)
    present, lengths, mixer = int(visual.sum()), [], torch.zeros_like(hidden)
    schedule = method.schedule(len(model.language_model.layers))
    for index, layer in enumerate(model.language_model.layers):
        if index in schedule:
            remove = int(visual.sum()) - method.count_at(schedule.index(index), present)
            go = visual[0].nonzero()[:, 0].tolist()
            tokens, _ = by_hand(mixer[0], hidden[0], go, remove, method.pruned)
            hidden, visual = torch.stack(list(tokens.values()))[None], visual[:, list(tokens)]
        else:
            hidden = hidden + mixer
        lengths.append(int(visual.sum()))
        mixer = layer.mixer(layer.norm(hidden))
    return model.language_model.norm_f(hidden + mixer)[:, -3:], lengths


METHODS = (UTRC(layers=(2, 4)), UTRC(layers=(1, 2, 5), keep=0.3, pruned=0.25), UTRC())


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("version", [1, 2])
def test_prefill_and_decode_are_the_layers_run_by_hand(version: int, method: UTRC) -> None:
    model = mamba(version)
    for row in ROWS:
        given = batch((row,))
        expected, lengths = layers_by_hand(model, given, *method.split())
        with vtc.patched(model, method):
            assert_close(prefill_and_decode(model, given), expected, atol=1e-5, rtol=1e-5)
            assert vtc.trace(model).tokens_per_layer[:, 0].tolist() == lengths


EVERY_KIND = (*METHODS, UTRC(layers=(3,), rule="score", keep=0.2), vtc.DivPrune(keep=0.5), "random:keep=2+utrc")


@product(method=EVERY_KIND, version=[1, 2], shapes=["padded", "same length"], each="value")
def test_rows_equal_their_own_run(shapes: str, version: int, method: Any) -> None:
    rows = ROWS if shapes == "padded" else ((12, 1, 9), (12, 3, 6))
    model, given = mamba(version), batch(rows)
    with vtc.patched(model, method), torch.no_grad():
        together = prefill_and_decode(model, given)
        trace = vtc.trace(model)
        assert trace.original_tokens.tolist() == [last - first for _, first, last in rows]
        assert trace.flops().decoder < trace.flops().unpatched_decoder
        uncached = model(given.embeds, given.visual, given.mask, use_cache=False, output_hidden_states=True)
        assert_close(uncached.last_hidden_state[:, -1], together[:, 0])
        assert all(state.shape == given.embeds.shape for state in uncached.hidden_states)
        for row, shape in enumerate(rows):
            assert_close(together[row], prefill_and_decode(model, batch((shape,)))[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("version", [1, 2])
def test_keeping_all_is_bit_exact_and_so_is_unpatching(version: int) -> None:
    model, given = mamba(version), batch(ROWS)
    untouched = prefill_and_decode(model, given)
    for method in (UTRC(keep=1.0), UTRC(keep=99, layers=(1,)), vtc.DivPrune(keep=1.0)):
        with vtc.patched(model, method):
            assert torch.equal(prefill_and_decode(model, given), untouched)
    with vtc.patched(model, UTRC()):
        assert not torch.equal(prefill_and_decode(model, given), untouched)
    assert torch.equal(prefill_and_decode(model, given), untouched)


@pytest.mark.parametrize("spec", ["fastv:layer=2", "transprune:layers=(1,2,3)", "visionzip"])
def test_methods_that_read_attention_are_refused(spec: str) -> None:
    model = mamba()
    with pytest.raises(ValueError, match="attention"):
        vtc.patch(model, spec)
    assert not any(part._forward_pre_hooks or part._forward_hooks for part in model.modules())


# ---------------------------------------------------------------- nemotron_h_omni

needs_nemotron = pytest.mark.skipif(not HAS_NEMOTRON, reason="this release of transformers has no nemotron_h_omni")
OMNI = ("utrc:layers=(1,2)", "utrc:layers=(1,3,5),keep=0.4", "fastv:layer=3", "divprune", "divprune:keep=0.7+utrc")


@needs_nemotron
@product(spec=OMNI, name=["ragged", "several_images", "text_row"], each="value")
def test_rows_of_the_hybrid_equal_their_own_run(spec: str, name: str) -> None:
    family = NemotronOmni()
    model = family.build()
    options = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True}
    rows = scenario(family, name)
    inputs = family.inputs(model, rows)
    with torch.no_grad(), vtc.patched(model, spec):
        logits = model(**inputs).logits
        trace = vtc.trace(model)
        generated = model.generate(**inputs, **options)
        assert logits.shape[:2] == inputs["input_ids"].shape
        assert trace.original_tokens.tolist() == [sum(counts) for counts in family.visual_tokens(rows)]
        assert [(g.h, g.w) for i in trace.images for g in i.source.grids] == [
            (tall // 2, wide // 2) for row in rows for tall, wide in row.images
        ]
        for layer, stored in enumerate(generated.past_key_values.layers):
            if family.blocks[layer] == "full_attention":  # longest row, and the three tokens that were fed
                longest = (trace.tokens_per_layer[layer] + trace.text_tokens).max()
                assert stored.keys.shape[-2] == longest + 3
        for index, row in enumerate(rows):
            alone = family.inputs(model, [row])
            assert_close(logits[index, -1], model(**alone).logits[0, -1], atol=1e-5, rtol=1e-5)
            again = model.generate(**alone, **options).sequences
            assert torch.equal(generated.sequences[index, -4:], again[0, -4:])


@needs_nemotron
def test_a_decode_step_of_the_hybrid_is_the_longer_prompt() -> None:
    family = NemotronOmni()
    model = family.build()
    for row in scenario(family, "ragged"):
        inputs = family.inputs(model, [row])
        for spec in ("utrc:layers=(1,3)", "utrc:layers=(4,),rule=score,keep=0.3"):
            with torch.no_grad(), vtc.patched(model, spec):
                tokens = model.generate(**inputs, max_new_tokens=3, do_sample=False)
                longer = {**inputs, "input_ids": tokens[:, :-1], "attention_mask": torch.ones_like(tokens[:, :-1])}
                assert int(model(**longer).logits[0, -1, 16:].argmax()) + 16 == int(tokens[0, -1])


@needs_nemotron
def test_the_hybrid_keeping_all_is_bit_exact() -> None:
    family = NemotronOmni()
    model = family.build()
    inputs = family.inputs(model, scenario(family, "ragged"))
    with torch.no_grad():
        untouched = model(**inputs).logits
        with vtc.patched(model, "utrc:keep=1.0,layers=(1,3)"):
            assert torch.equal(model(**inputs).logits, untouched)
        with vtc.patched(model, "utrc:layers=(1,3)"):
            assert not torch.equal(model(**inputs).logits, untouched)
        assert torch.equal(model(**inputs).logits, untouched)


@needs_nemotron
def test_recurrent_layers_of_the_hybrid_have_no_attention_to_read() -> None:
    model = NemotronOmni().build()
    with pytest.raises(ValueError, match="has no attention; of this model"):
        vtc.patch(model, "fastv:layer=2")
    with pytest.raises(ValueError, match="vision tower"):
        vtc.patch(model, "visionzip")


@needs_nemotron
def test_placeholders_are_told_apart_by_their_id() -> None:
    """Of frames as far as transformers 5.23 goes, whose own forward fails on any video."""
    family = NemotronOmni()
    model = family.build()
    inputs = family.inputs(model, scenario(family, "ragged")[:1])
    ids, image = inputs["input_ids"], model.config.image_token_id
    embeds, sound = model.get_input_embeddings()(ids), int(ids[0, -1])
    with vtc.patched(model, "none"):
        seam: Any = vars(model)["_vtc_seam"]
        seen = seam.observer.prompt
        for token in (image, sound):
            model.get_placeholder_mask(ids, embeds, embeds[ids == token], token)
        seen.features["video"] = Features("video", sizes=[int((ids == image).sum())])
        model.get_placeholder_mask(ids, embeds, embeds[ids == image], image)
        assert [kind for kind, _ in seen.placeholders] == ["image", "video"]  # sound is left alone, like text
        assert all(torch.equal(mask, ids == image) for _, mask in seen.placeholders)
        with pytest.raises(ValueError, match="video_pruning_rate"):
            seam.composition.adapter.layout(seen, (1, ids.shape[1] - 2))
