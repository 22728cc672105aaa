"""PruMerge: how many are kept, which neighbours each adds, and the order in which the tokens come."""

import math
from dataclasses import replace
from typing import Any

import numpy
import pytest
import torch
from contract import EVERY, model_of
from families import scenario
from hypothesis import given
from hypothesis import strategies as st
from test_methods import dense
from test_selectors import LAYOUTS, decoder_input, quick, shown_to, visual_tokens
from torch import Tensor
from torch.testing import assert_close

from vtc import PruMerge, VisualTokens
from vtc.method.visual_tokens import Projection
from vtc.model.layout import Grid
from vtc.model.parts import Parts
from vtc.selectors.crops import crop_tokens
from vtc.selectors.merging import cls_full_width, complement
from vtc.selectors.outliers import above_quartiles
from vtc.selectors.saliency.prumerge import merge_neighbours, released_count, spatial_samples


def image(score: Tensor, keys: Tensor | None = None, width: int = 6) -> VisualTokens:
    """Images of these CLS attentions [G, n], with a projector that doubles."""
    images, tokens = score.shape
    generator = torch.Generator().manual_seed(tokens)
    rows = torch.randn(images, tokens, width, generator=generator)
    keys = torch.randn(images, tokens, 2, 4, generator=generator) if keys is None else keys
    return VisualTokens(
        features=2 * rows,
        grids=(Grid(0, 1, 1, tokens),),
        separators=torch.zeros(tokens, dtype=torch.bool),
        observed={"cls": score},
        keys={3: keys},
        projection=Projection(rows, None, lambda x: 2 * x),
    )


def attention(tokens: int, seed: int = 0, images: int = 1, peaks: int = 0) -> Tensor:
    """Probabilities that sum to less than 1, as CLS has a part of its own; `peaks` of them stand out."""
    score = torch.rand(images, tokens, generator=torch.Generator().manual_seed(seed)) / 10
    if peaks:
        score[:, torch.arange(peaks) * (tokens // peaks)] += 1 + torch.arange(peaks) / 9
    return score / score.sum(dim=1, keepdim=True) * 0.9


def by_hand(score: Tensor, keys: Tensor, x: Tensor, kept: list[int]) -> Tensor:
    """What comes out of one image, in float64: `score` [n], `keys` [n, C], `x` [n, D]."""
    score, keys, x = (t.double() for t in (score, keys, x))
    out = []
    for c in kept:
        others = [i for i in range(len(score)) if i != c]
        cosine = [float(keys[c] @ keys[i] / max(keys[c].norm() * keys[i].norm(), 1e-12)) for i in others]
        near = sorted(range(len(others)), key=lambda j: -cosine[j])[:32]
        out.append(x[c] + sum(score[others[j]] * x[others[j]] for j in near))
    rest = [i for i in range(len(score)) if i not in kept]
    return torch.stack([*out, sum(score[i] * x[i] for i in rest)]).float()  # type: ignore[misc]


@quick
@given(tokens=st.integers(3, 70), seed=st.integers(0, 99), images=st.integers(1, 3), data=st.data())
def test_tokens_are_the_algorithm_step_by_step(tokens: int, seed: int, images: int, data: Any) -> None:
    visual = image(attention(tokens, seed, images))
    k = data.draw(st.integers(2, tokens - 1))
    reduction = PruMerge(keep=k).select(visual, k)
    assert reduction.features is not None
    for index in range(images):
        score, keys, x = visual.observed["cls"][index], visual.keys[3][index].flatten(1), visual.features[index]
        kept = sorted(range(tokens), key=lambda i: -score[i])[: k - 1]
        assert_close(reduction.features[index], by_hand(score, keys, x, kept))
        left = sorted((i for i in range(tokens) if i not in kept), key=lambda i: -score[i])
        assert reduction.kept[index].tolist() == sorted([*kept, left[0]])


def test_equal_keys_and_scores_go_to_the_lowest_place() -> None:
    flat, keys = torch.full((1, 50), 0.01), torch.ones(1, 50, 2, 4)
    reduction = PruMerge(keep=4).select(image(flat, keys), 4)
    assert reduction.kept.tolist() == [[0, 1, 2, 3]] and reduction.mixing is not None
    into = dense(reduction.mixing, 4, 50)[0]
    assert into[0].nonzero()[:, 0].tolist() == list(range(33)) and into[0, 0] == 1
    assert into[2].nonzero()[:, 0].tolist() == list(range(33))  # itself among them: the others are 0…32 without it
    assert into[3].nonzero()[:, 0].tolist() == list(range(3, 50))


def test_a_zero_key_is_like_no_other() -> None:
    keys = torch.randn(1, 60, 1, 4, generator=torch.Generator().manual_seed(0))
    keys[0, 5] = 0
    score = attention(60, 1)
    score[0, 5] = 0.5
    merged = merge_neighbours(score, keys.flatten(2), torch.tensor([[5]]), complement(60, torch.tensor([[5]])))
    assert merged.source[0, 1:33].tolist() == [i for i in range(34) if i != 5][:32]  # cosine 0 to all: the first
    features = PruMerge(keep=7).select(image(score, keys), 7).features
    assert features is not None and features.isfinite().all()


@pytest.mark.parametrize("tokens", [2, 3, 20, 33])
def test_fewer_tokens_than_neighbours(tokens: int) -> None:
    reduction = PruMerge().select(image(torch.full((1, tokens), 1 / 40)), tokens)
    assert reduction.kept.tolist() == [[0, 1]] and reduction.mixing is not None
    into = dense(reduction.mixing, 2, tokens)[0]
    assert_close(into[0], torch.tensor([1.0] + [1 / 40] * (tokens - 1)))
    assert_close(into[1], torch.tensor([0.0] + [1 / 40] * (tokens - 1)))


# ---------------------------------------------------------------- how many


@quick
@given(tokens=st.integers(1, 80), seed=st.integers(0, 99), kind=st.sampled_from(["normal", "softmax", "ties", "flat"]))
def test_outliers_by_quartiles_are_those_of_numpy(tokens: int, seed: int, kind: str) -> None:
    x = torch.randn(2, tokens, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    x = {"normal": x, "softmax": (3 * x).softmax(dim=1), "ties": x.round(), "flat": torch.ones_like(x)}[kind]
    expected = []
    for row in x.numpy():
        q1, q3 = numpy.percentile(row, [25, 75])
        expected.append(int((row > q3 + 1.5 * (q3 - q1)).sum()))
    assert above_quartiles(x).tolist() == expected


def test_the_picture_decides_by_its_outliers() -> None:
    visual = image(attention(144, 3, peaks=9))
    reduction = PruMerge().select(visual, 144)
    assert reduction.kept.shape == (1, 10)
    assert set((torch.arange(9) * 16).tolist()) <= set(reduction.kept[0].tolist())
    assert PruMerge().select(image(attention(144, 3)), 144).kept.shape == (1, 2)  # none stands out: one, and the last


def test_the_released_count_loses_one_for_some() -> None:
    assert [released_count(729, n) for n in (1, 2, 4)] == [0, 1, 3] and released_count(576, 50) == 50
    visual = image(attention(729, 0, peaks=4))
    assert [PruMerge(compat=c).select(visual, 729).kept.shape[1] for c in (False, True)] == [5, 4]
    visual = image(attention(729, 0, peaks=1))
    assert [PruMerge(compat=c).select(visual, 729).kept.shape[1] for c in (False, True)] == [2, 2]  # not none


@quick
@given(tokens=st.integers(3, 120), seed=st.integers(0, 99), data=st.data())
def test_plus_keeps_a_quarter_by_attention_and_the_rest_evenly(tokens: int, seed: int, data: Any) -> None:
    k = data.draw(st.integers(2, tokens - 1))
    score = attention(tokens, seed)
    reduction = PruMerge(keep=k, plus=True).select(image(score), k)
    assert reduction.kept.shape == (1, k) and reduction.mixing is not None
    into = dense(reduction.mixing, k, tokens)[0]
    order = [int((row == 1).nonzero()[0, 0]) for row in into[: k - 1]]
    ranked = score[0].argsort(descending=True, stable=True).tolist()
    best = max(round((k - 1) / 4), 1)
    assert order[:best] == ranked[:best]
    others = [i for i in range(tokens) if i not in order[:best]]
    count = k - 1 - best
    assert order[best:] == [others[math.floor(i * len(others) / count)] for i in range(count)]


def test_plus_samples_three_times_as_many_as_there_are_outliers() -> None:
    assert spatial_samples(576, 46).tolist() == list(range(0, 575, 4))
    assert spatial_samples(4, 1).tolist() == [0, 1, 2]
    visual = image(attention(144, 3, peaks=9))
    reduction = PruMerge(plus=True).select(visual, 144)  # a step of 16, so samples at 0, 5, 10, …
    places = {*range(0, 144, 16), *range(0, 143, 5)}
    assert reduction.kept.shape[1] == len(places) + 1 and places < set(reduction.kept[0].tolist())
    x, score, keys = visual.features[0], visual.observed["cls"][0], visual.keys[3][0].flatten(1)
    peaks = sorted(range(0, 144, 16), key=lambda i: -score[i])
    assert reduction.features is not None
    order = [*peaks, *(i for i in range(0, 143, 5) if i not in peaks)]
    assert_close(reduction.features[0], by_hand(score, keys, x, order))


# ---------------------------------------------------------------- crops, towers without CLS


@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("tower", ["rows", "joined"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_crop_is_treated_by_itself(layout: str, tower: str, plus: bool) -> None:
    visual = shown_to(PruMerge(), visual_tokens(layout, tower))
    whole = PruMerge(plus=plus).select(visual, visual.features.shape[1])
    kept, rows = [], []
    for tokens in crop_tokens(visual):
        projection = visual.projection
        if projection is not None:
            projection = replace(projection, rows=projection.rows[:, tokens])
        alone = replace(
            visual, features=visual.features[:, tokens], grids=(Grid(0, 1, 1, len(tokens)),), crops=None,
            separators=visual.separators[tokens], keys={3: visual.keys[3][:, tokens]}, projection=projection,
            received={3: visual.received[3][:, tokens]},
        )  # fmt: skip
        part = PruMerge(plus=plus).select(alone, len(tokens))
        kept += tokens[part.kept[0]].tolist()
        rows.append(part.features)
    assert whole.kept[0].tolist() == sorted(kept)
    if tower == "rows":
        assert_close(whole.features, torch.cat([x for x in rows if x is not None], dim=1))


def test_attention_received_counts_as_a_share() -> None:
    """In a packed tower it is smaller the more images there are; what is merged must not be."""
    visual = shown_to(PruMerge(), visual_tokens("square", "joined"))
    many = replace(visual, received={3: visual.received[3] * 0.2})
    one, other = (PruMerge(keep=9).select(v, 9) for v in (visual, many))
    assert torch.equal(one.kept, other.kept) and one.mixing is not None and other.mixing is not None
    assert_close(one.mixing.weight, other.mixing.weight)


def test_what_is_read_and_what_is_refused() -> None:
    layers = torch.nn.ModuleList(torch.nn.Identity() for _ in range(4))
    parts = Parts("llava", layers, layers, (), tuple(layers), True, -2)
    needs = PruMerge().needs(parts)
    assert needs.keys == (3,) and needs.observe == {"cls": (3, cls_full_width)} and not needs.received
    assert PruMerge().needs(replace(parts, has_cls=False)).received == (3,)
    for fields, says in (({"plus": 1}, "plus=1 is a int"), ({"compat": "yes"}, "compat='yes' is a str")):
        with pytest.raises(TypeError, match=says):
            PruMerge(**fields)
    with pytest.raises(ValueError, match="keep=0 keeps no token"):
        PruMerge(keep=0)


def test_a_llava_model_gets_the_tokens_of_the_released_code() -> None:
    family, model = EVERY["llava"], model_of("llava", "eager")
    inputs = family.inputs(model, scenario(family, "single"))
    tower, block = model.model.vision_tower, model.config.vision_feature_layer
    blocks = next(m for m in tower.modules() if isinstance(m, torch.nn.ModuleList))
    seen: dict[str, Tensor] = {}
    handles = [
        getattr(blocks[-1].self_attn, name).register_forward_hook(
            lambda _, __, out, name=name: seen.update({name: out})
        )
        for name in ("q_proj", "k_proj")
    ]
    with torch.no_grad():
        hidden = tower(inputs["pixel_values"], output_hidden_states=True).hidden_states[block][0, 1:]
    for handle in handles:
        handle.remove()
    query, key = seen["q_proj"][0].detach(), seen["k_proj"][0].detach()
    score = torch.softmax(key @ query[0] / math.sqrt(key.shape[1]), dim=0)[1:]
    rows = by_hand(score, key[1:], hidden, score.argsort(descending=True)[:5].tolist())
    expected = model.model.multi_modal_projector(rows[None]).detach()[0]
    got = decoder_input(model, inputs, "prumerge:keep=6")[0]
    start = int((inputs["input_ids"][0] == model.config.image_token_id).nonzero()[0])
    assert_close(got[start : start + 6], expected, rtol=0, atol=1e-5)
