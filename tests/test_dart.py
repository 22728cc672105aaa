"""DART: pivots, exact counts and choices, against the rule written out in float64."""

import math

import pytest
import torch
from contract import EVERY, model_of
from families import scenario
from torch import Tensor

import vtc
from vtc.method.prune import Rows
from vtc.prunes import dart
from vtc.prunes.dart import DART, key_norms, largest, least_similar, retained


def by_hand(hidden: Tensor, norms: Tensor, visual: Tensor, text: Tensor, count: int, image: int, words: int) -> list:
    """The exact rule for one row, a pivot at a time."""
    hidden, norms = hidden.double(), norms.tolist()
    places = [p for p in range(len(norms)) if visual[p]]
    pivots = sorted(places, key=lambda p: (-norms[p], p))[: min(image, count)]
    steering = sorted((p for p in range(len(norms)) if text[p]), key=lambda p: (-norms[p], p))[:words]
    kept = list(pivots)
    each = math.ceil((count - len(pivots)) / max(len(pivots) + len(steering), 1))
    for pivot in pivots + steering:
        rest = [p for p in places if p not in kept]
        cosine = torch.cosine_similarity(hidden[pivot], hidden[rest], dim=-1).tolist() if rest else []
        nearest = sorted(zip(cosine, rest))[: min(each, count - len(kept))]
        kept += [place for _, place in nearest]
    return sorted(kept)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("image", "words"), [(4, 4), (1, 0), (3, 5), (10, 2)])
def test_rows_of_a_batch_are_the_rule_one_by_one(seed: int, image: int, words: int) -> None:
    torch.manual_seed(seed)
    length, counts = 60, [1, 7, 20, 0]
    hidden, norms = torch.randn(4, length, 12), torch.rand(4, length)
    kind = torch.randint(0, 3, (4, length))  # 0 padding or text in front, 1 visual, 2 text behind
    visual, text = kind == 1, kind == 2
    visual[3] = False
    counts[2] = int(visual[2].sum())
    kept = retained(hidden, norms, visual, text, torch.tensor(counts), image, words)
    for row, count in enumerate(counts):
        expected = by_hand(hidden[row], norms[row], visual[row], text[row], count, image, words)
        assert kept[row].nonzero()[:, 0].tolist() == expected and len(expected) == count


def test_norms_are_of_all_heads_of_a_token() -> None:
    key = torch.tensor([[[[1.0, -2.0], [0.0, 3.0]], [[-4.0, 0.0], [0.5, 0.5]]]])  # two heads, two tokens
    assert key_norms(key).tolist() == [[7.0, 4.0]]


def test_equal_norms_and_cosines_go_by_place_and_nan_counts_least() -> None:
    norms = torch.tensor([[1.0, 2.0, float("nan"), 2.0, 5.0]])
    among = torch.tensor([[True, True, True, True, False]])
    places, there = largest(norms, among, 9)
    assert places[0, :4].tolist() == [1, 3, 0, 2] and there[0].tolist() == [True] * 4 + [False]
    candidates = torch.tensor([[False, True, True, True, True]])
    chosen = least_similar(
        torch.ones(1, 5, 3), candidates, torch.tensor([[0]]), torch.tensor([[True]]), *torch.tensor([[2], [9]])
    )
    assert chosen[0].nonzero()[:, 0].tolist() == [1, 2]


@pytest.mark.parametrize("fill", [0.0, float("nan"), float("inf")])
def test_odd_states_still_give_the_count(fill: float) -> None:
    visual = torch.arange(30)[None] < 20
    kept = retained(torch.full((1, 30, 4), fill), torch.full((1, 30), fill), visual, ~visual, torch.tensor([9]), 4, 4)
    assert kept.sum() == 9 and not (kept & ~visual).any()


def test_counts_are_exact() -> None:
    assert DART().count_at(0, 576) == 128
    assert [DART(keep=0.25).count_at(0, n) for n in (0, 1, 2, 10, 14)] == [0, 1, 1, 2, 4]
    assert DART(keep=3).count_at(0, 2) == 2


def test_text_after_the_picture_or_all_of_it() -> None:
    hidden, norms = torch.randn(1, 30, 6), torch.rand(1, 30)
    visual = (torch.arange(30) >= 8)[None] & (torch.arange(30) < 24)
    after = torch.arange(30)[None] >= 24
    rows = Rows(2, hidden, visual, torch.ones_like(visual), after)
    for text, among in (("after", after), ("all", ~visual)):
        alive = DART(keep=9, text=text).decide(rows, [9], {"norms": norms}).alive
        assert alive[0].nonzero()[:, 0].tolist() == by_hand(hidden[0], norms[0], visual[0], among[0], 9, 4, 4)


@pytest.mark.parametrize("name", ["ragged", "several_images"])
def test_in_a_model_the_keys_of_the_layer_before_and_its_own_input_are_read(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, model, seen = EVERY["llava"], model_of("llava"), []
    inputs = family.inputs(model, scenario(family, name))

    def noted(*args):
        seen.append((*args, retained(*args)))
        return seen[-1][-1]

    monkeypatch.setattr(dart, "retained", noted)
    with torch.no_grad():
        plain = model(**inputs, use_cache=True, output_hidden_states=True)
        with vtc.patched(model, "dart:layer=2,keep=0.4"):
            model(**inputs)
            trace = vtc.trace(model)
    ((hidden, norms, visual, text, count, _, _, kept),) = seen
    valid = inputs["attention_mask"].bool()
    keys = plain.past_key_values.layers[1].keys
    torch.testing.assert_close(norms[valid], keys.abs().sum(dim=(1, 3))[valid])
    torch.testing.assert_close(hidden[valid], plain.hidden_states[2][valid])
    assert not (text & visual).any() and text.any(dim=1).all()
    assert kept.sum(dim=1).tolist() == count.tolist() == trace.tokens_per_layer[-1].tolist()
    for row in range(len(kept)):
        expected = by_hand(hidden[row], norms[row], visual[row], text[row], int(count[row]), 4, 4)
        assert kept[row].nonzero()[:, 0].tolist() == expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layer": 0}, "layer=0 is below 1; DART reads the keys of the layer before"),
        ({"image_pivots": 0}, "image_pivots=0 is below 1"),
        ({"text_pivots": -1}, "text_pivots=-1 is below 0"),
        ({"text": "before"}, "text='before' is not one of 'after', 'all'"),
        ({"keep": 0}, "keep=0 keeps no token"),
    ],
)
def test_bad_fields_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DART(**fields)
