"""`vtc.ops.greedy.farthest`: what is found from a part of the similarities is what all of them give."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_references import check_greedy, greedy

from vtc import ops
from vtc.ops import reference
from vtc.ops.greedy.farthest import BLOCK, farthest_first


def tokens_of(kind: str, tokens: int, dim: int = 32) -> torch.Tensor:
    torch.manual_seed(tokens)
    noise = torch.randn(tokens, dim)
    if kind == "random":
        return noise
    if kind == "few directions":
        return torch.randn(tokens, 4) @ torch.randn(4, dim) + 0.05 * noise
    return torch.randn(7, dim)[torch.arange(tokens) % 7] + 0.1 * noise  # seven groups


def farthest(features: torch.Tensor, k: int, seed: int | None = None) -> torch.Tensor:
    unit, lost = reference.unit_rows(features[None])
    near = torch.full_like(lost, -torch.inf, dtype=unit.dtype).masked_fill(lost, 1e30)
    return farthest_first(unit[0], near[0], k, seed)


@pytest.mark.parametrize("kind", ["random", "few directions", "groups"])
@pytest.mark.parametrize("seed", [None, 5])
@pytest.mark.parametrize("tokens", [6, BLOCK, BLOCK + 1, 500])
def test_each_pick_is_the_farthest(kind: str, seed: int | None, tokens: int) -> None:
    features = tokens_of(kind, tokens)
    order = farthest(features, tokens, seed)
    assert sorted(order.tolist()) == list(range(tokens))
    check_greedy(features, order, seed, "max-min")
    if kind == "random":  # no two are equally far
        assert order.tolist() == greedy(features, tokens, seed, "max-min")[0]
    for k in (1, 3, tokens // 2):
        assert torch.equal(farthest(features, k, seed), order[:k])


def test_of_equally_far_tokens_the_first_is_picked() -> None:
    axes = torch.eye(40).repeat(9, 1)[torch.randperm(360, generator=torch.Generator().manual_seed(0))]
    order, axis = farthest(axes, 360, 0), axes.argmax(dim=1)
    assert order[1:40].tolist() == sorted(int((axis == a).nonzero()[0]) for a in range(40) if a != axis[0])
    assert order[40:].tolist() == sorted({*range(360)} - {*order[:40].tolist()})


def test_tokens_without_a_direction_come_last() -> None:
    features = tokens_of("random", 200)
    features[[3, 77, 150]] = torch.tensor([0.0, torch.nan, torch.inf])[:, None]
    assert farthest(features, 200)[-3:].tolist() == [3, 77, 150]
    assert farthest(torch.zeros(100, 4), 100).tolist() == list(range(100))


@pytest.mark.parametrize("seeded", [False, True])
def test_max_min_takes_it_for_many_tokens(monkeypatch: pytest.MonkeyPatch, seeded: bool) -> None:
    torch.manual_seed(0)
    x, counts = torch.randn(3, 300, 16), torch.tensor([300, 40, 200])
    seed = torch.tensor([9, 30, 199], dtype=torch.int32) if seeded else None
    whole = ops.max_min(x, 60, seed, counts=counts)
    monkeypatch.setattr(reference, "MANY", 256)
    monkeypatch.delattr(reference, "_gram")  # the matrix of all similarities
    made = ops.max_min(x, 60, seed, counts=counts)
    assert torch.equal(made, whole)
    assert (made >= 0).sum(dim=1).tolist() == [60, 40, 60]


# ---------------------------------------------------------------- tokens that are worth more or less


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(1, 40),
    share=st.floats(0, 1),
    weighted=st.booleans(),
    with_bonus=st.booleans(),
    entries=st.sampled_from([0, 2**26]),
    seed=st.integers(0, 999),
)
def test_weighted_picks_are_worth_most_at_each_step(tokens, share, weighted, with_bonus, entries, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(2, tokens, 6, generator=generator)
    features[:, ::7] = 0.0  # like nothing
    weight = torch.rand(2, tokens, generator=generator) if weighted else None
    bonus = torch.randn(2, tokens, generator=generator) if with_bonus else None
    first, k = torch.randint(0, tokens, (2,), generator=generator), max(1, round(share * tokens))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "MATRIX_ENTRIES", entries)
        picks = ops.weighted_max_min(features, k, first, weight, bonus)
    for image in range(2):
        unit = torch.nn.functional.normalize(features[image].double(), dim=-1)
        chosen = [int(first[image])]
        for pick in picks[image, 1:].tolist():
            near = (unit @ unit[chosen].T).amax(dim=1)
            worth = (1 - near) * (1 if weight is None else weight[image]) + (0 if bonus is None else bonus[image])
            worth[chosen] = -torch.inf
            assert pick not in chosen and worth[pick] >= worth.max() - 1e-5
            chosen.append(pick)
        assert picks[image, 0] == first[image] and len(set(chosen)) == k


def test_weighted_picks_go_to_the_lowest_index_and_nest() -> None:
    features = torch.eye(4).repeat(2, 1)[None]
    first = torch.tensor([5])
    assert ops.weighted_max_min(features, 8, first)[0].tolist() == [5, 0, 2, 3, 1, 4, 6, 7]
    bonus = torch.zeros(1, 8)
    bonus[0, 7] = 0.5
    assert ops.weighted_max_min(features, 3, first, bonus=bonus)[0].tolist() == [5, 7, 0]
    assert ops.weighted_max_min(features, 3, first, weight=torch.zeros(1, 8))[0].tolist() == [5, 0, 1]
    for make, message in [
        (lambda: ops.weighted_max_min(features, 9, first), r"k=9 is not in 1…8"),
        (lambda: ops.weighted_max_min(features, 2, first, bonus=bonus[:, :4]), r"bonus of shape \(1, 4\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            make()
    torch.library.opcheck(torch.ops.vtc.weighted_max_min.default, (features, 3, first, bonus, None))
