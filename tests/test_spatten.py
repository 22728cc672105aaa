"""What holds for spatten: column sums, schedule, heads, and whole runs against a slow reference."""

import math
from typing import Any

import pytest
import torch
from contract import ATTENTIONS, EVERY, check_each_alone, greedy, model_of
from covering import product
from decoder_reference import Decoder, Prompt, Result, best, masked_run, prompt, run, tiny_decoder
from families import scenario
from golden_stub import Stub
from test_lazyllm import check_changes_nothing
from torch import Tensor
from torch.testing import assert_close

import vtc
from vtc.attention.scores import Attention
from vtc.method.prune import Rows
from vtc.prunes.attention.spatten import SpAtten, head_importance, num_queries, token_importance, top_heads

CLOSE = {"rtol": 0, "atol": 2e-4}


def random_attention(seed: int = 0, heads: int = 4, groups: int = 2, queries: int = 19, old: int = 0, **more: Any):
    gen = torch.Generator().manual_seed(seed)
    query = torch.randn(2, heads, queries, 8, generator=gen)
    return Attention(query, torch.randn(2, groups, old + queries, 8, generator=gen), scaling=0.8, **more)


def dense(attention: Attention, seen: Tensor) -> Tensor:
    """Softmax over all keys [B, H, Q, S], keys repeated; seen: broadcast to it."""
    key = attention.key.repeat_interleave(attention.query.shape[1] // attention.key.shape[1], dim=1)
    logits = attention.query @ key.transpose(2, 3) * attention.scaling
    return logits.masked_fill(~seen, float("-inf")).softmax(-1).nan_to_num(0.0)


def masks(queries: int, keys: int) -> dict[str, tuple[dict[str, Any], Tensor]]:
    """Ways to say who sees whom: fields of Attention, and the same as a BoolTensor [.., Q, S]."""
    causal = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
    window = causal & torch.ones_like(causal).triu(keys - queries - 4)
    padded = causal & (torch.arange(keys) >= torch.tensor([[0], [3]]))[:, None, None]
    added = torch.zeros(padded.shape).masked_fill(~padded, torch.finfo(torch.float32).min)
    return {
        "causal": ({}, causal),
        "window": ({"window": 5}, window),
        "bool mask": ({"mask": padded}, padded),
        "float mask": ({"mask": added}, padded),
        "both ways": ({"causal": False}, torch.ones_like(causal)),
    }


@pytest.mark.parametrize("old", [0, 7])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("kind", masks(1, 1))
def test_sums_are_the_columns_of_the_dense_map(kind: str, groups: int, old: int) -> None:
    more, seen = masks(19, 19 + old)[kind]
    attention = random_attention(groups=groups, old=old, **more)
    asking = torch.rand(2, 19, generator=torch.Generator().manual_seed(1)) < 0.7
    asking[1, :3] = False  # padding where there is some
    weighted = dense(attention, seen) * asking[:, None, :, None]
    sums = token_importance(attention, asking)
    assert_close(sums, weighted.sum(dim=(1, 2))[:, old:], rtol=0, atol=1e-5)
    everyone = seen.expand(2, 1, 19, 19 + old)[:, 0] & asking[:, :, None]
    assert torch.equal(num_queries(attention, asking), everyone.sum(dim=1)[:, old:].float())
    if not old:
        assert_close(sums.sum(dim=1), 4.0 * asking.sum(dim=1), rtol=1e-5, atol=0)


def test_heads_are_ranked_within_their_group_and_the_first_of_equal_ones_stays() -> None:
    scores = torch.tensor([[1.0, 1, 1, 1, 1, 1], [1, 2, 3, 9, 8, 7]])
    assert top_heads(scores, 6, 1 / 2).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert top_heads(scores, 2, 2 / 3).tolist() == [[0, 1, 3, 4], [1, 2, 3, 4]]
    assert top_heads(scores, 1, 1 / 2).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert top_heads(scores, 2, 0.1).tolist() == [[0, 3], [2, 3]]  # one of each group at least
    output = torch.tensor([[[[1.0, -2]], [[float("nan"), 4]], [[-8, 0]]]])
    assert head_importance(output, torch.tensor([[False, True, True]])).tolist() == [[12.0]]


@pytest.mark.parametrize("depth", [2, 3, 4, 5, 7, 20, 28, 32, 80])
def test_the_schedule_falls_in_even_steps_after_the_warm_up(depth: int) -> None:
    for keep, left in ((0.25, 144), (0.1, 58), (64, 64), (1, 1), (10_000, 576), (1.0, 576)):
        method = SpAtten(keep=keep)
        layers = method.schedule(depth)
        first = min(max(3, math.ceil(depth * 15 / 100)), depth - 1)
        assert layers == tuple(range(first, depth))
        counts = [576, *(method.count_at(stage, 576) for stage in range(len(layers)))]
        even = [576 - (576 - left) * stage / len(layers) for stage in range(len(layers) + 1)]
        assert counts[-1] == left == method.count(576) and counts == sorted(counts, reverse=True)
        assert all(abs(ours - wanted) <= 1 for ours, wanted in zip(counts, even))
    assert SpAtten(warm_up=0.5).schedule(32) == tuple(range(16, 32))
    assert [SpAtten(keep=keep).count(5) for keep in (0.5, 0.1, 0.3)] == [2, 0, 2]  # half to even


def test_one_method_can_be_in_models_of_several_depths() -> None:
    method, given, results = SpAtten(keep=0.5), prompt(steps=1), {}
    stubs = {layers: Stub(tiny_decoder(layers=layers)) for layers in (4, 7)}
    for layers, stub in stubs.items():
        vtc.patch(stub, method)
        results[layers] = vtc.trace(stub) if run(stub, given) else None
    for layers, stub in stubs.items():  # again, after the other
        run(stub, given)
        fewer = vtc.trace(stub).tokens_per_layer[:, 0].tolist()
        assert fewer == results[layers].tokens_per_layer[:, 0].tolist()
    assert fewer == [20, 20, 20, 18, 15, 12, 10]  # 17.5 rounds to even, as 12.5


def choices(method: SpAtten, decoder: Decoder, given: Prompt) -> Any:
    """What the method computes in each layer, written as the page of the paper has it."""
    depth, heads, size = decoder.depth, decoder.heads, decoder.heads // decoder.groups
    first, first_head = max(3, math.ceil(0.15 * depth)), max(1, math.ceil(0.3 * depth))

    def scores(attention: list[Tensor]) -> Tensor:
        total = torch.zeros(len(given.embeds)).double()
        for rows in attention if method.accumulate else attention[-1:]:
            asked = given.text if method.query_rows == "text" else range(len(given.embeds))
            column = rows[:, asked].sum(dim=(0, 1))
            present = rows.sum(dim=(0, 2)) > 0  # queries that the layer had
            after = [sum(bool(present[i]) for i in asked if i >= j) for j in range(len(column))]
            total += column / torch.tensor(after).clamp_min(1) if method.normalise == "num_queries" else column
        return total

    def choose(layer: int, alive: list[int], attention: list[Tensor], outputs: list[Tensor]) -> Any:
        kept, working = alive, list(range(heads))
        if layer >= first:
            count = round(20 * (1 - (1 - method.keep) * (layer - first + 1) / (depth - first)))
            there = [place for place in alive if given.visual[place]]
            kept = sorted({*given.text, *best(scores(attention)[there].tolist(), there, count)})
        if layer >= first_head and method.keep_heads < 1:
            share = 1 - (1 - method.keep_heads) * (layer - first_head + 1) / (depth - first_head)
            magnitude = sum(output.abs().sum(dim=(1, 2)) for output in outputs)
            groups = [list(range(heads))] if size == 1 else torch.arange(heads).view(-1, size).tolist()
            working = []
            for group in groups:
                left = max(math.floor(len(group) * share + 1e-9), 1)
                working += sorted(best(magnitude[group].tolist(), group, left))
        return kept, working

    return choose


VARIANTS = {
    "default": SpAtten(),
    "more": SpAtten(keep=0.6),
    "one layer": SpAtten(accumulate=False),
    "normalised": SpAtten(normalise="num_queries"),
    "text": SpAtten(query_rows="text"),
    "normalised text": SpAtten(query_rows="text", normalise="num_queries", accumulate=False),
    "heads": SpAtten(keep_heads=0.5),
    "heads alone": SpAtten(keep=1.0, keep_heads=0.3),
}


def reference_of(method: SpAtten, model: Any, given: Prompt) -> Result:
    decoder = Decoder(model)
    return masked_run(decoder, given.embeds, given.steps, choices(method, decoder, given))


@pytest.mark.parametrize("kind", [("llama", 4), ("llama", 2), ("qwen2", 1)], ids=str)
@pytest.mark.parametrize("name", VARIANTS)
def test_a_run_is_that_of_the_reference(name: str, kind: tuple[str, int]) -> None:
    method, given = VARIANTS[name], prompt(seed=3)
    model = tiny_decoder(kind[0], groups=kind[1])
    reference = reference_of(method, model, given)
    stub = Stub(model)
    with vtc.patched(stub, method):
        hidden, lengths = run(stub, given)
        trace = vtc.trace(stub)
    (image,) = trace.images
    for layer, computed in enumerate(reference.computed[0]):
        kept = set(image.source.positions[image.kept(layer)].tolist())
        assert kept == computed - set(given.text), f"layer {layer}"
        assert lengths[layer] == len(computed) + len(given.steps)
        assert layer == 0 or computed <= reference.computed[0][layer - 1]  # cascade
    for ours, wanted in zip(hidden, reference.hidden, strict=True):
        assert_close(ours.double(), wanted, **CLOSE)


def test_the_variants_choose_differently() -> None:
    """Else the comparison above would hold for a method that ignores its fields."""
    given, model = prompt(seed=3), tiny_decoder()
    runs = {name: reference_of(method, model, given) for name, method in VARIANTS.items()}
    same_budget = ("default", "one layer", "normalised", "text", "heads")
    sets = [[sorted(computed) for computed in runs[name].computed[0]] for name in same_budget]
    assert len({str(one) for one in sets}) == len(same_budget)
    assert [len(heads) for heads in runs["heads"].heads] == [
        4,
        4,
        4,
        2,
        2,
        2,
        2,
    ]  # of each two: 1.8, 1.6, … rounded down


def watched(method: SpAtten, attentions: list[Attention]) -> Tensor:
    """What the method's score is after layers with these attentions, of five visual tokens and one of text."""
    visual = torch.tensor([[True] * 5 + [False]])
    memory: dict[str, Tensor] = {}
    rows = Rows(0, torch.zeros(1, 6, 4), visual, torch.ones_like(visual), ~visual)
    for attention in attentions:
        method.on_attention(rows, attention, memory)
    return method.score(rows, memory)[0]


def test_scores_add_up_or_not_on_two_layers_made_by_hand() -> None:
    def pointing(strengths: dict[int, float]) -> Attention:
        key = torch.zeros(1, 1, 6, 1)
        for place, strength in strengths.items():
            key[0, 0, place] = strength
        return Attention(torch.ones(1, 1, 6, 1), key, scaling=1.0, causal=False)

    layers = [pointing({1: 9.0}), pointing({3: 0.1})]
    together, last = (watched(SpAtten(accumulate=accumulate), layers) for accumulate in (True, False))
    assert together[:5].argmax() == 1 and last[:5].argmax() == 3
    assert_close(together.sum(), torch.tensor(12.0))  # two layers, one head, six queries
    equal = vtc.method.prune.top_visual(last[None].round(), torch.tensor([[True] * 5 + [False]]), [2])
    assert equal.tolist() == [[True, True, False, False, False, False]]  # ties: the lowest index


def test_keeping_everything_changes_nothing() -> None:
    check_changes_nothing(SpAtten(keep=1.0), SpAtten(keep=1000), SpAtten(keep=1.0, accumulate=False))


@product(
    family=["llava", "llava_onevision", "qwen2_vl", "gemma3"],
    attention=ATTENTIONS,
    method=["default", "normalised text", "heads"],
    where=lambda cell: cell["family"] == "llava" or cell["attention"] == "sdpa",
    each="value",
)
def test_rows_of_a_batch_are_their_own_runs(family: str, attention: str, method: str) -> None:
    model, this = model_of(family, attention), EVERY[family]
    for name in ("ragged", "several_images", *(["text_row"] if method != "heads" else [])):
        rows = scenario(this, name)
        inputs = this.inputs(model, rows)
        with torch.no_grad(), vtc.patched(model, VARIANTS[method]):
            together = model(**inputs).logits[:, -1]
            check_each_alone(this, model, rows, together, greedy(model, inputs, new=3)[:, -3:])


def test_bad_fields_are_refused() -> None:
    for field, value in (("warm_up", 1.5), ("keep_heads", 0.0), ("keep_heads", 1.5), ("keep", 0.0)):
        with pytest.raises(ValueError, match=rf"{field}={value!r}"):
            SpAtten(**{field: value})
    for field in ("normalise", "query_rows"):
        with pytest.raises(ValueError, match=f"{field}='mean' is not one of"):
            SpAtten(**{field: "mean"})
    with pytest.raises(TypeError, match="accumulate=1 is a int"):
        SpAtten(accumulate=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="call schedule"):
        SpAtten().count_at(0, 8)
