"""What holds for scope, vispruner, mmr, cdpruner, mmtok and centring, against recomputations in float64."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from contract import EVERY, model_of
from families import scenario
from hypothesis import given, settings
from hypothesis import strategies as st
from test_recoverable import towers  # noqa: F401 (a fixture)
from test_selectors import tiled
from torch import Tensor
from torch.nn.functional import normalize

import vtc
from vtc import MMR, CDPruner, DivPrune, KCenter, MMTok, Reduction, Scope, VisPruner, VisualTokens, ops
from vtc.eval import embedded
from vtc.method.budget import share_out
from vtc.method.visual_tokens import Crops
from vtc.model.layout import Grid
from vtc.model.parts import Parts
from vtc.prunes.dart import retained
from vtc.selectors.centering import centred, distinctiveness
from vtc.selectors.crops import crop_tokens, pick_in_crops
from vtc.selectors.question.cdpruner import conditional_order, relevance, scaled
from vtc.selectors.question.mmtok import choose, demands, padded_patches
from vtc.selectors.question.reading import Reader, keywords
from vtc.selectors.saliency.mmr import marginal_relevance_order
from vtc.selectors.saliency.vispruner import vispruner
from vtc.selectors.scope import scope_order
from vtc.spec import parse

quick = settings(max_examples=25, deadline=None)
WEIGHTS = Path(embedded.__file__).parent / "weights"


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def cosines(rows: Tensor) -> Tensor:
    unit = normalize(rows.double(), dim=-1)
    return unit @ unit.T


def best(scores: dict[int, float]) -> int | None:
    """The token with the highest score; None where rounding in float32 may have it another."""
    first, *others = sorted(scores, key=lambda token: -scores[token])
    return None if others and scores[first] - scores[others[0]] < 1e-5 else first


# ---------------------------------------------------------------- the functions


@quick
@given(
    tokens=st.integers(2, 40), dim=st.sampled_from([3, 8, 30]), alpha=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    combine=st.sampled_from(["product", "sum"]), seed=st.integers(0, 999),
)  # fmt: skip
def test_scope_is_greedy_saliency_weighted_coverage(tokens, dim, alpha, combine, seed) -> None:
    features, saliency = drawn(seed, 1, tokens, dim), drawn(seed + 1, 1, tokens).abs()
    k = 1 + seed % tokens
    similarity, covered, picks = cosines(features[0]), [0.0] * tokens, []
    for _ in range(k):
        gains = {
            v: sum(max(0.0, float(similarity[u, v]) - covered[u]) for u in range(tokens))
            for v in range(tokens) if v not in picks
        }  # fmt: skip
        weight = {v: float(saliency[0, v].double()) ** alpha for v in gains}
        if max(gains.values()) < 1e-4:  # all is covered: what decides then has a test of its own
            break
        pick = best({v: gain + weight[v] if combine == "sum" else gain * weight[v] for v, gain in gains.items()})
        if pick is None:
            break
        picks.append(pick)
        covered = [max(covered[u], float(similarity[u, picks[-1]])) for u in range(tokens)]
    assert scope_order(features, saliency, k, alpha, combine)[0, : len(picks)].tolist() == picks


def test_scope_goes_on_by_coverage_and_saliency_where_the_product_tells_nothing() -> None:
    one, other = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    features = torch.stack([one, one, other, one, torch.zeros(2)])[None]
    saliency = torch.tensor([[0.1, 0.3, 0.0, 0.2, 0.9]])
    # the one that covers three; the only thing uncovered, saliency 0; then saliency alone, the lost row first
    assert scope_order(features, saliency, 5)[0].tolist() == [1, 2, 4, 3, 0]
    assert scope_order(features, torch.zeros(1, 5), 5)[0].tolist() == [0, 2, 1, 3, 4]
    assert scope_order(features, torch.full((1, 5), torch.nan), 2)[0].tolist() == [0, 2]


@quick
@given(tokens=st.integers(1, 60), important=st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), seed=st.integers(0, 999))
def test_vispruner_is_its_list_of_rounds(tokens, important, seed) -> None:
    features, saliency = drawn(seed, 1, tokens, 16), drawn(seed + 1, 1, tokens)
    k = 1 + seed % tokens
    similarity = cosines(features[0])
    order = sorted(range(tokens), key=lambda token: -float(saliency[0, token]))
    first = int(k * important)
    left, wanted = order[first:], k - first
    while len(left) > max(wanted, 1):
        even, odd = left[::2], left[1::2]
        fewer = min(8, len(left) - wanted, len(even))
        even.sort(key=lambda token: -max(float(similarity[token, other]) for other in odd))
        left = even[fewer:] + odd
    expected = sorted(order[:first] + left[:wanted])
    assert vispruner(features, saliency, k, important)[0].sort().values.tolist() == expected


def test_vispruner_computes_the_same_from_a_part_of_the_similarities(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = (700, 24), (64, 64)
    drawings = [(drawn(0, 2, *shape), drawn(1, 2, shape[0])) for shape in shapes]
    whole = [vispruner(*drawing, 20, 0.5) for drawing in drawings]
    monkeypatch.setattr("vtc.selectors.saliency.vispruner._ENTRIES", 0)
    for drawing, found in zip(drawings, whole, strict=True):
        assert torch.equal(vispruner(*drawing, 20, 0.5), found)


def test_scope_minds_small_saliency_at_large_powers() -> None:
    features, saliency = drawn(0, 1, 40, 6), drawn(1, 1, 40).abs()
    for alpha in (1.0, 12.0, 25.0):
        small = scope_order(features, saliency * 1e-6, 9, alpha)
        assert torch.equal(small, scope_order(features, saliency, 9, alpha))
    assert scope_order(features, saliency * 1e-6, 1, 25.0)[0, 0] == saliency.argmax()


@pytest.mark.parametrize("spec", ["mmtok:keep=0.5", "visionzip:keep=0.5", "dart:keep=0.5", "prumerge:keep=0.5"])
def test_methods_decide_without_autocast_and_the_projector_runs_with_it(spec: str, monkeypatch) -> None:
    model, method = model_of("llava"), parse(spec)[0]
    seen: dict[str, bool] = {}

    def noting(name, function):
        def call(*args, **kwargs):
            seen[name] = torch.is_autocast_enabled("cpu")
            return function(*args, **kwargs)

        return call

    if method.kind == "selector":
        monkeypatch.setattr(type(method), "select", noting("decides", type(method).select))
    else:
        monkeypatch.setattr("vtc.prunes.dart.retained", noting("decides", retained))
    projector = model.model.multi_modal_projector
    handle = projector.register_forward_pre_hook(noting("projects", lambda module, args: None))
    try:
        inputs = EVERY["llava"].inputs(model, scenario(EVERY["llava"], "ragged"))
        with torch.no_grad(), vtc.patched(model, method), torch.autocast("cpu", torch.bfloat16):
            assert model(**inputs).logits.isfinite().all()
    finally:
        handle.remove()
    assert seen == {"decides": False, "projects": True}


def test_centring_leaves_cdpruner_a_whole_video() -> None:
    grids = (Grid(0, 4, 2, 2),)
    crops = Crops(torch.arange(16) // 4, torch.arange(16) % 4, 4, (2, 2))
    hidden = torch.ones(1, 16, 6)
    hidden[:, :4] = drawn(0, 1, 4, 6)
    visual = VisualTokens(drawn(1, 1, 16, 8), grids, torch.zeros(16, dtype=torch.bool), kind="video", crops=crops)
    kept = CDPruner(centering=True).select(replace(visual, hidden={3: hidden}), 4).kept[0].tolist()
    assert len(set(kept) & {0, 1, 2, 3}) >= 3  # the only frame in which anything differs


@quick
@given(tokens=st.integers(1, 40), penalty=st.sampled_from([0.1, 1.0, 4.0]), seed=st.integers(0, 999))
def test_mmr_is_importance_minus_penalty_times_greatest_similarity(tokens, penalty, seed) -> None:
    features, raw = drawn(seed, 1, tokens, 8), drawn(seed + 1, 1, tokens)
    similarity = cosines(features[0])
    spread = float(raw.max() - raw.min()) or 1.0
    importance = [(float(value) - float(raw.min())) / spread for value in raw[0]]
    picks = [importance.index(max(importance))]
    for _ in range(seed % tokens):
        pick = best({
            token: importance[token] - penalty * max(float(similarity[token, pick]) for pick in picks)
            for token in range(tokens) if token not in picks
        })  # fmt: skip
        if pick is None:
            break
        picks.append(pick)
    assert marginal_relevance_order(features, raw, len(picks), penalty)[0].tolist() == picks


@quick
@given(tokens=st.integers(1, 24), dim=st.sampled_from([2, 6, 30]), seed=st.integers(0, 999))
def test_cdpruner_is_the_greedy_largest_determinant(tokens, dim, seed) -> None:
    features, quality = drawn(seed, 1, tokens, dim), scaled(drawn(seed + 1, 1, tokens))
    rows = normalize(features[0].double(), dim=-1) * quality[0, :, None].double()
    kernel, picks, whole = rows @ rows.T, [], 1.0
    for _ in range(1 + seed % tokens):
        left = [token for token in range(tokens) if token not in picks]
        found = {t: float(torch.linalg.det(kernel[[*picks, t]][:, [*picks, t]])) / whole for t in left}
        if max(found.values()) < 1e-4:  # of the largest quality, 1: nothing is left but rounding
            break
        if (pick := best(found)) is None:
            break
        picks.append(pick)
        whole *= found[pick]
    assert conditional_order(features, quality, 1 + seed % tokens)[0, : len(picks)].tolist() == picks


def test_cdpruner_goes_on_by_relevance_where_no_token_adds_anything() -> None:
    features = torch.zeros(1, 6, 4)
    features[0, :3, 0], features[0, 3:, 1] = 2.0, torch.tensor([1.0, 3.0, 0.0])
    quality = torch.tensor([[0.3, 0.9, 0.5, 0.2, 0.1, 1.0]])
    assert conditional_order(features, quality, 6)[0].tolist() == [
        1,
        3,
        5,
        2,
        0,
        4,
    ]  # the lost row is the most relevant


def test_relevance_is_scaled_as_published() -> None:
    image, text = (
        torch.tensor([[1.0, 0.0], [3.0, 3.0], [0.0, -2.0], [0.0, 0.0]]),
        torch.tensor([[0.0, 5.0], [1.0, 0.0]]),
    )
    mean = relevance(image, text)
    torch.testing.assert_close(mean, torch.tensor([0.5, 0.5**0.5, -0.5, 0.0]))
    low, high = -0.5, 0.5**0.5
    torch.testing.assert_close(scaled(mean), torch.tensor([(v - low + 1e-6) / (high - low) for v in mean.tolist()]))
    torch.testing.assert_close(scaled(mean, 0.5), (0.5 * (scaled(mean) - scaled(mean).max())).exp())
    for weight in (0.99, 0.999, 0.99999):  # exponents that leave the range
        assert scaled(mean, weight).isfinite().all() and scaled(mean, weight).argmax() == mean.argmax()
    assert torch.equal(scaled(mean, 0.0), torch.ones(4)) and torch.equal(scaled(torch.full((4,), 0.3)), torch.ones(4))


@quick
@given(
    tokens=st.integers(2, 24), words=st.integers(0, 4), alpha=st.sampled_from([0.0, 0.5, 2.0]), seed=st.integers(0, 999)
)
def test_mmtok_covers_words_and_tokens(tokens, words, alpha, seed) -> None:
    text, features, tower = drawn(seed, words, 6), drawn(seed + 1, tokens, 6), drawn(seed + 2, tokens, 5)
    k = 1 + seed % tokens
    values = demands(text[None], features[None], tower[None], 0.1, 0.3, alpha)
    unit = [normalize(rows.double(), dim=-1) for rows in (text, features, tower)]
    of_words = (unit[0] @ unit[1].T / 0.1).softmax(dim=-1) / max(words, 1)
    of_tokens = (unit[2] @ unit[2].T / 0.3).softmax(dim=-1) / tokens * alpha
    rows = torch.cat([of_words, of_tokens])
    torch.testing.assert_close(values[0], rows.float())
    covered, picks = torch.zeros(len(rows), dtype=torch.float64), []
    for _ in range(k):
        gain = (rows - covered[:, None]).clamp_min(0).sum(dim=0)
        left = {token: float(gain[token]) for token in range(tokens) if token not in picks}
        if max(left.values()) < 1e-6:
            break
        if (pick := best(left)) is None:
            break
        picks.append(pick)
        covered = torch.maximum(covered, rows[:, pick])
    assert choose(values, k)[0, : len(picks)].tolist() == picks


def test_rows_that_are_no_word_change_nothing() -> None:
    text, features, tower = drawn(0, 1, 3, 6), drawn(1, 1, 20, 6), drawn(2, 1, 20, 5)
    longer = torch.cat([text, torch.full((1, 4, 6), torch.nan)], dim=1)
    assert torch.equal(choose(demands(longer, features, tower), 20), choose(demands(text, features, tower), 20))


def test_padding_is_kept_last() -> None:
    values = demands(drawn(0, 1, 3, 6), drawn(1, 1, 9, 6), drawn(2, 1, 9, 5))
    padding = padded_patches(300, 100, 3)
    assert padding.view(3, 3).all(dim=1).tolist() == [True, False, True]
    assert (
        torch.equal(padded_patches(100, 300, 3).view(3, 3), padding.view(3, 3).T) and not padded_patches(9, 9, 3).any()
    )
    assert choose(values, 9, padding)[0, 3:].tolist() == [0, 1, 2, 6, 7, 8]
    assert set(choose(values, 2, padding)[0].tolist()) <= {3, 4, 5}


# ---------------------------------------------------------------- centring


@quick
@given(tokens=st.integers(1, 40), of_all=st.sampled_from([0.0, 3.0, 100.0]), seed=st.integers(0, 999))
def test_centred_tokens_are_the_formulas(tokens, of_all, seed) -> None:
    features = drawn(seed, 1, tokens, 7) + of_all
    found, exact = centred(features), features[0].double()
    similarity = cosines(features[0])
    told = -(similarity.sum(dim=1) - similarity.diagonal()) / max(tokens - 1, 1)
    torch.testing.assert_close(distinctiveness(features)[0].double(), told, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.rows[0].double(), exact - exact.mean(dim=0), atol=1e-4, rtol=0)
    if told.max() - told.min() > 1e-2:
        weight = (told - told.min()) / (told.max() - told.min())
        torch.testing.assert_close(found.weight[0].double(), weight, atol=1e-3, rtol=0)


def test_centring_finds_what_a_large_common_part_hides() -> None:
    """Three directions around one common one that is a hundred times longer, with many copies of the first."""
    common = torch.zeros(8)
    common[0] = 100.0
    around = torch.eye(8)[1:4]
    features = (torch.stack([around[0]] * 10 + [around[1], around[2]]) + common)[None].bfloat16()
    visual = VisualTokens(features, (Grid(0, 1, 3, 4),), torch.zeros(12, dtype=torch.bool))
    kept = DivPrune(centering=True).select(visual, 3).kept[0].tolist()
    assert {10, 11} < set(kept)


@pytest.mark.parametrize(
    "method", [DivPrune(centering=True), KCenter(centering=True, pivot="mean"), CDPruner(centering=True)]
)
def test_qwen_is_centred_in_front_of_the_merger_and_others_behind(method) -> None:
    parts = [method.needs(Parts(family, *[torch.nn.Identity()] * 2, (torch.nn.Identity(),), (torch.nn.Identity(),) * 4,
                                False, -1)) for family in ("qwen2_5_vl", "internvl")]  # fmt: skip
    assert [needs.hidden for needs in parts] == [(3,), ()]
    features, hidden = drawn(0, 1, 30, 8), drawn(1, 1, 30, 12) + 2
    visual = VisualTokens(features, (Grid(0, 1, 5, 6),), torch.zeros(30, dtype=torch.bool))
    plain = method.select(visual, 6).kept
    inside = method.select(replace(visual, hidden={3: hidden}), 6).kept
    assert torch.equal(
        inside, method.select(replace(visual, hidden={3: 7 * hidden + 3}), 6).kept
    )  # up to scale and mean
    assert not torch.equal(plain, inside)


def test_centring_needs_the_rule_that_it_is_defined_for() -> None:
    with pytest.raises(ValueError, match="centering=True is not defined for rule='max-sum'; use rule='max-min'"):
        KCenter(rule="max-sum", centering=True)
    with pytest.raises(TypeError, match="centering=1 is a int"):
        DivPrune(centering=1)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "internvl"])
@pytest.mark.parametrize(
    "spec", ["divprune:centering=True", "kcenter:pivot=mean,centering=True", "cdpruner:centering=True"]
)
def test_centring_works_in_models_and_chooses_otherwise(family, spec) -> None:
    model = model_of(family)
    inputs = EVERY[family].inputs(model, scenario(EVERY[family], "ragged"))
    kept = []
    for more in (",keep=0.3", ",keep=0.3,centering=False"):
        given = spec + more if "False" not in more else spec.replace("centering=True", "centering=False") + ",keep=0.3"
        with torch.no_grad(), vtc.patched(model, given):
            model(**inputs)
            kept.append([image.kept(0).tolist() for image in vtc.trace(model).images])
    assert [len(image) for image in kept[0]] == [len(image) for image in kept[1]] and kept[0] != kept[1]


# ---------------------------------------------------------------- the methods


def crops_of(visual: VisualTokens, reduction: Reduction) -> list[list[int]]:
    """What is kept of each crop."""
    return [sorted(set(reduction.kept[0].tolist()) & set(inside.tolist())) for inside in crop_tokens(visual)]


@pytest.mark.parametrize("method", [Scope(), VisPruner(), MMR(), MMTok()], ids=lambda method: method.name)
def test_each_crop_is_chosen_in_alone_with_its_part(method) -> None:
    grids, crops = tiled()
    tokens = len(crops.index)
    separators = crops.index < 0
    values = {"cls": {3: drawn(0, 1, tokens).abs()}, "hidden": {3: drawn(1, 1, tokens, 6)}}
    values = {name: {3: v[3].masked_fill(separators.view(1, -1, *[1] * (v[3].dim() - 2)), torch.nan)}
              for name, v in values.items()}  # fmt: skip
    visual = VisualTokens(drawn(2, 1, tokens, 8), grids, separators, crops=crops, text=(drawn(3, 4, 8),), **values)
    sizes = [len(inside) for inside in crop_tokens(visual)]
    for k in range(1, sum(sizes)):
        found = crops_of(visual, method.select(visual, k))
        assert [len(kept) for kept in found] == share_out(k, sizes)
    other = drawn(4, 1, tokens, 8)
    first = crop_tokens(visual)[0]
    changed = visual.features.clone()
    changed[:, first] = other[:, first]
    moved = replace(
        visual, features=changed, hidden={3: visual.hidden[3].index_add(1, first, drawn(5, 1, len(first), 6))}
    )
    assert crops_of(moved, method.select(moved, 9))[1:] == crops_of(visual, method.select(visual, 9))[1:]


def test_crops_that_are_alike_are_picked_in_at_once_and_the_rest_fills_up() -> None:
    index = torch.tensor([0] * 4 + [1] * 4 + [2] * 2 + [-1] * 2)
    crops = Crops(index, torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 0, 1, -1, -1]), 3, (2, 2))
    visual = VisualTokens(drawn(0, 2, 12, 3), (Grid(0, 1, 2, 5, end=2),), index < 0, crops=crops)
    seen = []

    def last(of, part):
        seen.append((tuple(of(visual.features).shape), part))
        return torch.arange(part).flip(0).expand(len(of(visual.features)), -1)

    assert pick_in_crops(visual, 5, last).kept.tolist() == [[0, 1, 4, 5, 8]] * 2
    assert seen == [((4, 4, 3), 2), ((2, 2, 3), 1)]
    assert pick_in_crops(visual, 11, last).kept.tolist() == [list(range(11))] * 2


def test_what_is_no_number_or_out_of_range_is_told() -> None:
    for make, message in [
        (lambda: Scope(alpha="1"), "alpha='1' is a str"),
        (lambda: Scope(alpha=-1.0), "alpha=-1.0 is not a number from 0 on"),
        (lambda: Scope(combine="max"), "combine='max' is not one of 'product', 'sum'"),
        (lambda: VisPruner(important=1.5), r"important=1.5 is not in \[0, 1\]"),
        (lambda: MMR(penalty=0.0), "penalty=0.0 is not above 0"),
        (lambda: MMR(penalty=None), "penalty=None is a NoneType"),
        (lambda: CDPruner(relevance_weight=2), r"relevance_weight=2 is not in \[0, 1\]"),
        (lambda: CDPruner(clip="x"), "clip='x' and tokenizer=None"),
        (lambda: MMTok(text_temperature=0.0), "text_temperature=0.0 is not above 0"),
        (lambda: MMTok(alpha=-0.5), "alpha=-0.5 is not 0 or more"),
        (lambda: MMTok(tokenizer=3), "tokenizer=3 is a int"),
        (lambda: MMTok(picture=(3,)), "picture=.* is not of two numbers"),
        (lambda: MMTok(picture=(0, 5)), r"picture\[0\]=0 is below 1"),
    ]:
        with pytest.raises((TypeError, ValueError), match=message):
            make()


def test_without_text_mmtok_covers_the_picture_and_cdpruner_is_diverse_alone() -> None:
    features, hidden = drawn(0, 2, 20, 8), drawn(1, 2, 20, 6)
    visual = VisualTokens(features, (Grid(0, 1, 4, 5),), torch.zeros(20, dtype=torch.bool), hidden={3: hidden})
    empty = replace(visual, text=(torch.zeros(0, 8),) * 2, question=(torch.zeros(0, dtype=torch.long),) * 2)
    alone = choose(demands(torch.zeros(2, 0, 8), features, hidden), 5).sort(dim=1).values
    diverse = ops.dpp_map(features, 5).sort(dim=1).values
    for shown in (visual, empty):
        assert torch.equal(MMTok().select(shown, 5).kept, alone)
        assert torch.equal(CDPruner().select(replace(shown, hidden={}), 5).kept, diverse)


def test_each_image_has_its_own_question() -> None:
    features, hidden = drawn(0, 2, 30, 8), drawn(1, 2, 30, 6)
    text = (drawn(2, 3, 8), drawn(3, 7, 8))
    visual = VisualTokens(
        features, (Grid(0, 1, 5, 6),), torch.zeros(30, dtype=torch.bool), hidden={3: hidden}, text=text
    )
    for method in (MMTok(), CDPruner()):
        both = method.select(visual if method.name == "mmtok" else replace(visual, hidden={}), 8).kept
        for image in range(2):
            one = replace(
                visual, features=features[image : image + 1], text=text[image : image + 1],
                hidden={} if method.name == "cdpruner" else {3: hidden[image : image + 1]},
            )  # fmt: skip
            assert torch.equal(method.select(one, 8).kept[0], both[image])


# ---------------------------------------------------------------- the question


@pytest.fixture(scope="module")
def reader() -> Reader:
    return Reader(str(WEIGHTS))


def ids_of(reader: Reader, text: str) -> Tensor:
    return torch.tensor(reader._tokenizer(text, add_special_tokens=False)["input_ids"])


def test_the_question_ends_where_the_template_ends_the_users_turn(reader: Reader) -> None:
    chat = [{"role": "user", "content": "how many red squares are there?"}]
    said = reader._tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    behind = said[said.index("how") :]
    text, spans = reader.question(ids_of(reader, behind + "Two.\n" + behind))
    assert text.strip() == "how many red squares are there?"
    assert spans[-1] == (len(text), len(text)) and spans[0][0] == 0


def test_the_words_are_those_of_the_tokens(reader: Reader) -> None:
    question = "What colour is the circle in the corner?"
    ids = ids_of(reader, question)
    kept = reader._tokenizer.decode(ids[reader.tokens_of(ids)].tolist())
    for word in ("colour", "circle", "corner"):
        assert word in kept
    assert "what" not in kept.lower() and "the" not in kept.split() and "?" not in kept


def test_a_question_of_stop_words_is_taken_whole() -> None:
    text = "What is it?"
    assert [text[start:end] for start, end in keywords(text)] == ["What", "is", "it?"]
    stock = "Is it? Answer the question using a single word or phrase."
    assert [stock[start:end] for start, end in keywords(stock)] == ["Is", "it?"]


def test_mmtok_reads_words_by_the_tokenizer_and_tells_what_it_can_t_load(tmp_path: Path) -> None:
    model, processor = embedded.load()
    sample = embedded.benchmark(1)[0]
    inputs = processor(images=sample.image, text=embedded.prompt(processor, sample.question), return_tensors="pt")
    kept = []
    for spec in ("mmtok:keep=16", vtc.MMTok(keep=16, tokenizer=str(WEIGHTS))):
        with torch.no_grad(), vtc.patched(model, spec):
            model(**inputs)
            kept.append(vtc.trace(model).images[0].kept(0).tolist())
    assert len(kept[0]) == len(kept[1]) == 16
    with pytest.raises(ValueError, match=r"tokenizer='.*' can't be loaded .*; give the folder or hub id"):
        vtc.patch(model, vtc.MMTok(tokenizer=str(tmp_path)))


def test_cdpruner_with_clip_is_relevance_of_the_published_sign_in_every_window(towers) -> None:  # noqa: F811
    from transformers import AutoTokenizer, CLIPModel

    model, writer = CLIPModel.from_pretrained(towers[0]).eval(), AutoTokenizer.from_pretrained(towers[0])
    reader = AutoTokenizer.from_pretrained(towers[1])
    grids, crops = tiled()
    tokens, separators = len(crops.index), crops.index < 0
    hidden = drawn(0, 1, tokens, 12).masked_fill(separators[:, None], torch.nan)
    method = CDPruner(clip=str(towers[0]), tokenizer=str(towers[1]))
    for question in ("what is on the table", " ".join(["what red thing"] * 4)):  # 5 + 2 and 12 + 2 ids, of 8
        visual = VisualTokens(
            drawn(1, 1, tokens, 16), grids, separators, crops=crops, hidden={2: hidden},
            question=(reader(question, return_tensors="pt")["input_ids"][0],),
        )  # fmt: skip
        ids = writer(question)["input_ids"]
        windows = [ids[start : start + 8] for start in range(0, len(ids), 8)]
        with torch.no_grad():
            text = []
            for window in windows:
                filled = (
                    torch.tensor([window + [0] * (8 - len(window))]) if len(windows) > 1 else torch.tensor([window])
                )
                mask = torch.tensor([[1] * len(window) + [0] * (filled.shape[1] - len(window))])
                out = model.get_text_features(input_ids=filled, attention_mask=mask)
                text.append(getattr(out, "pooler_output", out)[0])
            rows = model.visual_projection(model.vision_model.post_layernorm(hidden[0, ~separators]))
        mean = torch.stack([torch.cosine_similarity(rows, one, dim=-1) for one in text]).mean(dim=0)
        told = torch.zeros(1, tokens)
        told[0, ~separators] = (mean.max() - mean + 1e-6) / (mean.max() - mean.min())
        sizes = [len(inside) for inside in crop_tokens(visual)]
        expected = [
            inside[conditional_order(visual.features[:, inside], told[:, inside], part)[0]]
            for inside, part in zip(crop_tokens(visual), share_out(8, sizes))
        ]
        assert method.select(visual, 8).kept[0].tolist() == sorted(torch.cat(expected).tolist())
    parts = [torch.nn.Identity()] * 2, (), (torch.nn.Identity(),) * 6
    assert method.needs(Parts("llava", *parts[0], *parts[1:], True, -2)).hidden == (4,)
    with pytest.raises(ValueError, match="is for towers that come from CLIP, and that of qwen2_5_vl does not"):
        replace(method, centering=True).needs(Parts("qwen2_5_vl", *parts[0], *parts[1:], False, -1))


def test_towers_are_read_where_they_can_be() -> None:
    def needs(method, has_cls):
        return method.needs(Parts("toy_vl", *[torch.nn.Identity()] * 2, (), (torch.nn.Identity(),) * 6, has_cls, -2))

    for method in (Scope(), VisPruner(), MMR()):
        with_cls, without = needs(method, True), needs(method, False)
        assert (with_cls.cls, with_cls.hidden, with_cls.received) == ((4,), (4,), ())
        assert (without.cls, without.hidden, without.received) == ((), (), (5,))
    assert (needs(MMTok(), True).hidden, needs(MMTok(), False).hidden) == ((4,), (5,)) and needs(MMTok(), True).text
