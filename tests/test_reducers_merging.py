"""The mathematics of the reducers that merge: tome, diffrate and token_transforming, by hand and against loops."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from odd_values import rows_of
from reducer_driver import KINDS, parts_of, patches_of, random_blocks, run_tower
from torch import Tensor
from torch.testing import assert_close

from vtc import DiffRate, TokenTransforming, ToMe, ops
from vtc.ops.similarity import nearest, unit_rows
from vtc.reducers.diffrate import grown_sizes, match_unimportant, prune_and_merge
from vtc.reducers.diffrate_rates import published_shares
from vtc.reducers.stages import geometric
from vtc.reducers.token_transforming import spread, transform
from vtc.reducers.tome import bipartite_merge, mean_by_size, merge_schedule, units_left

quick = settings(max_examples=40, deadline=None)


def test_nearest_takes_the_lowest_index_and_survives_any_length() -> None:
    rows = unit_rows(torch.tensor([[[3e30, 0.0], [0.0, 2e-30], [0.0, 0.0], [float("nan"), 0.0]]]))
    assert_close(rows, torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [0.0, 0.0]]]))
    x = unit_rows(rows_of("random", 2, 2500, 4, 0))
    best, index = nearest(x, x[:, :70])
    full = x @ x[:, :70].transpose(1, 2)
    assert_close(best, full.amax(dim=-1))
    assert torch.equal(index, full.argmax(dim=-1))
    assert nearest(rows[:, 2:3], rows[:, [1, 0, 1]])[1].tolist() == [[0]]


# ---------------------------------------------------------------- ToMe


def naive_bipartite(metric: Tensor, r: int, protected: int) -> tuple[list[int], list[tuple[int, int]]]:
    """Order of the rows that stay, and the pairs merged, of one sequence, loop by loop."""
    unit = torch.nn.functional.normalize(metric, dim=-1)
    evens = [i for i in range(0, len(metric), 2) if not (protected and i == 0)]
    odds = [i for i in range(1, len(metric), 2) if not (protected == 2 and i == 1)]
    pairs = []
    for i in evens:
        best = max(odds, key=lambda j: (float(unit[i] @ unit[j]), -j))
        pairs.append((float(unit[i] @ unit[best]), i, best))
    pairs.sort(key=lambda pair: -pair[0])
    gone = {i for _, i, _ in pairs[:r]}
    stay = [i for _, i, _ in pairs if i not in gone]
    if not protected:
        return stay + odds, [(i, j) for _, i, j in pairs[:r]]
    stay = sorted(stay)
    head = [0, 1] if protected == 2 else [0]
    return head + stay + odds, [(i, j) for _, i, j in pairs[:r]]


@quick
@given(length=st.integers(5, 20), r=st.integers(1, 10), protected=st.integers(0, 2), seed=st.integers(0, 99))
def test_bipartite_matching_equals_the_naive_one(length: int, r: int, protected: int, seed: int) -> None:
    metric = rows_of("random", 1, length, 5, seed)
    r = min(r, (length - protected) // 2)
    kept, pairs = naive_bipartite(metric[0], r, protected)
    matching = bipartite_merge(metric, r, protected)
    assert matching.kept[0].tolist() == kept
    assert list(zip(matching.source[0].tolist(), matching.target[0].tolist())) == pairs


def test_bipartite_matching_by_hand() -> None:
    # Rows 0, 2, 4 pick among 1, 3. Row 4 is row 3, row 0 nearly row 1, row 2 lies between.
    metric = torch.tensor([[[1.0, 0.1], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.0, 2.0]]])
    matching = bipartite_merge(metric, 2)
    assert matching.source.tolist() == [[4, 0]] and matching.target.tolist() == [[3, 1]]
    assert matching.kept.tolist() == [[2, 1, 3]]
    assert matching.group().tolist() == [[1, 1, 0, 2, 2]]
    sizes = torch.tensor([[3.0, 1.0, 1.0, 1.0, 1.0]])
    merged = ops.merge(metric, mean_by_size(matching.group(), sizes, 3), 3)
    assert_close(merged, torch.tensor([[[1.0, 1.0], [1.0, 0.075], [0.0, 1.5]]]))
    assert bipartite_merge(metric, 9).source.shape[1] == 2  # half of them at most
    assert bipartite_merge(metric[:, :2], 1, 1).kept.tolist() == [[0, 1]]
    with pytest.raises(ValueError, match="protected=3"):
        bipartite_merge(metric, 1, 3)


def test_a_row_without_direction_is_merged_last() -> None:
    metric = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [1.0, 0.5], [0.0, 1.0]]])
    assert bipartite_merge(metric, 1).source.tolist() == [[2]]
    metric[0, 0] = float("nan")
    assert bipartite_merge(metric, 1).source.tolist() == [[2]]


def test_cls_counts_in_what_is_even() -> None:
    with_cls, without = patches_of(8, images=1, target=6), patches_of(8, images=1, prefix=0, target=6)
    assert set(range(0, 8, 2)) <= set(ToMe().reduce(with_cls).kept[0].tolist())  # odd places of [CLS, 0, 1, …]
    assert set(range(1, 8, 2)) <= set(ToMe().reduce(without).kept[0].tolist())


@quick
@given(
    start=st.integers(1, 700),
    share=st.floats(0, 1),
    stages=st.integers(1, 26),
    inflection=st.sampled_from([-1, -0.3, 0, 1]),
)
def test_merges_are_spread_and_end_exactly(start: int, share: float, stages: int, inflection: float) -> None:
    target = 1 + round(share * (start - 1))
    present, removed = start, []
    if start > target << stages:
        least = -(-start >> stages)
        with pytest.raises(ValueError, match=f"leaves {least} of them or more"):
            units_left(0, stages, start, target, start, inflection)
        target = least
    for stage in range(stages):
        left = units_left(stage, stages, start, target, present, inflection)
        assert target <= left <= present and present - left <= present // 2
        removed.append(present - left)
        present = left
    assert present == target
    if inflection == 0 and (start - target) * 2 < target * stages:
        assert max(removed) - min(removed) <= 1


def test_a_budget_that_divides_is_the_published_schedule() -> None:
    for start, blocks, r in ((576, 23, 16), (196, 12, 13), (196, 12, 8)):
        target, present = start - blocks * r, start
        for stage in range(blocks):
            left = units_left(stage, blocks, start, target, present)
            assert present - left == merge_schedule(blocks, r)[stage]
            present = left
    assert merge_schedule(1, 5, 1.0) == [0]
    assert merge_schedule(3, [4]) == [4, 0, 0]


def test_sizes_of_merged_patches_weigh() -> None:
    run = run_tower(random_blocks(4, 12, 3), rows_of("random", 2, 17, 12, 1), ToMe(), 5)
    for bias, (before, sizes) in zip(run.bias[1:], zip(run.sizes, run.sizes)):
        assert bias is not None and before is sizes
        assert_close(bias[:, 1:], sizes.log())
        assert (bias[:, 0] == 0).all()
    counted = (run.source[-1] > 0).sum(dim=2).float()
    assert_close(run.sizes[-1], counted)
    assert_close(run.source[-1], (run.source[-1] > 0) / counted[:, :, None])  # a mean over all original patches
    plain = run_tower(random_blocks(4, 12, 3), rows_of("random", 2, 17, 12, 1), ToMe(proportional=False), 5)
    assert plain.bias == [None] * 4


# ---------------------------------------------------------------- DiffRate


def test_published_curves_fall_from_one_to_the_budget() -> None:
    for blocks in (1, 2, 5, 11, 12, 23, 24, 40):
        prune, merge = published_shares(blocks)
        assert len(prune) == len(merge) == blocks and merge[-1] == 0
        for curve in (prune, merge):
            assert list(curve) == sorted(curve, reverse=True) and curve[0] <= 1
    prune, merge = published_shares(11)  # DeiT-S itself: of 141 patches that go, 20 have gone after block 2
    assert_close(merge[2], (176 - 56) / (197 - 56))
    assert_close(prune[2], (190 - 56) / (197 - 56))
    method = DiffRate()
    assert [method.counts(stage, 11, 196, 55) for stage in (0, 3, 10)] == [(196, 196), (167, 155), (57, 55)]


def test_diffrate_without_cls_merges_only_and_adds_up() -> None:
    run = run_tower(random_blocks(6, 12, 3), rows_of("random", 2, 20, 12, 2), DiffRate(), 7, prefix=0)
    assert_close(run.sizes[-1].sum(dim=1), torch.full((2,), 20.0))
    assert_close((run.source[-1] > 0).sum(dim=(1, 2)), torch.full((2,), 20))
    patches = patches_of(9, prefix=0)
    reduction = prune_and_merge(patches, 5, 3)
    assert torch.equal(reduction.kept, patches.received().argsort(dim=1, descending=True)[:, :3])


def test_diffrate_prunes_then_merges_by_importance() -> None:
    patches = patches_of(9)
    reduction = prune_and_merge(patches, 6, 4)
    order = patches.cls_attention().argsort(dim=1, descending=True)
    assert torch.equal(reduction.kept, order[:, :4])
    assert torch.equal(reduction.mixing.source, order[:, :6])
    for image in range(2):
        hidden = torch.nn.functional.normalize(patches.hidden[image, :, 0], dim=-1)
        for i in (4, 5):
            best = int((hidden[order[image, :4]] @ hidden[order[image, i]]).argmax())
            assert int(reduction.mixing.target[image, i]) == best
    assert prune_and_merge(patches, 6, 6).mixing is None
    assert prune_and_merge(patches, 9, 12) is None


def test_unlike_patches_never_make_a_size_zero() -> None:
    x = torch.tensor([[[1.0, 0.0], [-1.0, 0.0], [-1.0, 0.1]]])
    similarity, target = match_unimportant(x[:, [0, 1]], 1)
    assert grown_sizes(torch.tensor([[1.0, 5.0]]), similarity, target).tolist() == [[1.0]]
    with pytest.raises(ValueError, match="keep 2 or more"):
        match_unimportant(x, 1, cls=True)


def test_given_rates_count_from_the_start() -> None:
    method = DiffRate(prune=(1.0, 0.9), merge=(0.8, 0.1))
    assert method.blocks(parts_of(6)) == (0, 1)
    assert [method.counts(stage, 2, 100, 30) for stage in (0, 1)] == [(100, 80), (90, 30)]
    assert DiffRate(prune=(0.5, 0.4)).counts(0, 2, 100, 10) == (50, 50)
    assert DiffRate(merge=(0.5, 0.4)).counts(0, 2, 100, 10) == (100, 50)


# ---------------------------------------------------------------- Token Transforming


def dense(mixing: Any, rows: int, tokens: int) -> Tensor:
    return ops.merge(torch.eye(tokens).expand(len(mixing.source), -1, -1), mixing, rows)


@quick
@given(
    tokens=st.integers(1, 12), share=st.floats(0, 1), per_token=st.integers(1, 6), kind=st.sampled_from(KINDS),
    tau=st.sampled_from([1e-5, 0.1, 10.0]), seed=st.integers(0, 99),
)  # fmt: skip
def test_rows_of_the_transformation_sum_to_one_and_mass_is_conserved(
    tokens: int, share: float, per_token: int, kind: str, tau: float, seed: int
) -> None:
    rows = 1 + round(share * (tokens - 1))
    anchors = torch.randperm(tokens, generator=torch.Generator().manual_seed(seed))[:rows].sort().values[None]
    sizes = torch.arange(1.0, tokens + 1)[None]
    target, shares = spread(rows_of(kind, 1, tokens, 4, seed), anchors, tau, per_token)
    assert_close(shares.sum(dim=-1), torch.ones(1, tokens))
    mixing, new = transform(target, shares, sizes, rows)
    assert_close(dense(mixing, rows, tokens).sum(dim=-1), torch.ones(1, rows))
    assert_close(new.sum(), sizes.sum())
    constant = torch.full((1, tokens, 3), 2.5)
    assert_close(ops.merge(constant, mixing, rows), constant[:, :rows])


@pytest.mark.parametrize("tau", [1e-4, 0.1, 10.0])
def test_all_anchors_change_nothing(tau: float) -> None:
    keys = rows_of("random", 2, 7, 4, 0)
    everything = torch.arange(7).expand(2, -1)
    mixing, sizes = transform(*spread(keys, everything, tau, 4), torch.ones(2, 7), 7)
    assert_close(dense(mixing, 7, 7), torch.eye(7).expand(2, -1, -1))
    assert_close(sizes, torch.ones(2, 7))


def test_one_anchor_each_is_merging_into_the_nearest() -> None:
    keys, anchors = rows_of("random", 1, 9, 4, 0), torch.tensor([[1, 4, 6]])
    target, share = spread(keys, anchors, 0.1, 1)
    unit = torch.nn.functional.normalize(keys[0], dim=-1)
    assert target[0, :, 0].tolist() == (unit @ unit[anchors[0]].T).argmax(dim=1).tolist()
    assert (share == 1).all()
    many, soft = spread(keys, anchors, 1e-4, 3)  # so does a temperature near zero
    assert_close(torch.zeros(1, 9, 3).scatter_(2, many, soft).argmax(dim=2), target[:, :, 0])


def test_an_anchor_without_direction_stays_with_itself() -> None:
    keys = rows_of("random", 1, 5, 4, 0)
    keys[0, 2] = 0
    target, share = spread(keys, torch.tensor([[0, 2, 4]]), 1e-3, 3)
    assert target[0, 2, 0] == 1 and share[0, 2].tolist() == [1.0, 0.0, 0.0]


def test_pruning_is_the_case_of_anchors_alone() -> None:
    x, anchors = rows_of("random", 1, 6, 4, 0), torch.tensor([[0, 3]])
    share = torch.zeros(1, 6, 1).scatter_(1, anchors[:, :, None], 1.0)
    target = torch.tensor([[0, 0, 0, 1, 0, 0]])[:, :, None]
    mixing, sizes = transform(target, share, torch.ones(1, 6), 2)
    assert torch.equal(ops.merge(x, mixing, 2), x[:, [0, 3]])
    assert sizes.tolist() == [[1.0, 1.0]]


def test_tome_is_the_case_of_its_matching() -> None:
    x, sizes = rows_of("random", 2, 10, 4, 0), 1.0 + torch.arange(10).expand(2, -1) % 4
    matching = bipartite_merge(x, 4)
    mixing, new = transform(matching.group()[:, :, None], torch.ones(2, 10, 1), sizes, 6)
    expected = mean_by_size(matching.group(), sizes, 6)
    assert_close(dense(mixing, 6, 10), dense(expected, 6, 10))
    assert_close(new, torch.zeros(2, 6).scatter_add_(1, matching.group(), sizes))


def test_each_of_several_stages_leaves_about_the_same_share() -> None:
    assert [geometric(stage, 3, 512, 64, 512) for stage in range(3)] == [256, 128, 64]
    for start in (*range(1, 200), 4096, 16383):
        for target in (*range(1, min(start, 40) + 1), start):
            for stages in (1, 2, 3, 7):
                left = [geometric(stage, stages, start, target, start) for stage in range(stages)]
                assert left == sorted(left, reverse=True) and left[-1] == target


def test_token_transforming_acts_at_three_blocks_around_the_attended_patches() -> None:
    method = TokenTransforming()
    assert method.blocks(parts_of(24, -2)) == (5, 11, 17)
    assert [method.blocks(parts_of(n)) for n in (1, 2, 3, 4)] == [(0,), (0, 1), (0, 1, 2), (1, 2, 3)]
    patches = patches_of(9, target=4)
    kept = method.reduce(patches).kept
    assert torch.equal(kept, patches.cls_attention().argsort(dim=1, descending=True)[:, :4].sort(dim=1).values)
