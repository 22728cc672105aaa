"""The mathematics of the reducers that prune: flowcut and zero_tprune, by hand and against loops."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reducer_driver import parts_of, patches_of, random_blocks, rows_of, run_tower, windows
from torch import Tensor
from torch.testing import assert_close

from vtc import FlowCut, ZeroTPrune
from vtc.attention.scores import Attention
from vtc.method.patches import Patches
from vtc.method.prune import Rows
from vtc.reducers.flowcut import FlowCutPrune, flow_score, prune_number
from vtc.reducers.zero_tprune import importance, near_duplicates, page_rank

quick = settings(max_examples=40, deadline=None)


# ---------------------------------------------------------------- FlowCut


def test_flow_score_by_hand() -> None:
    attention, semantic = torch.tensor([[0.1, 0.3]]), torch.tensor([[0.5, 0.0]])
    strength = torch.tensor([[2.0, 4.0]])
    assert_close(flow_score(attention, strength, semantic), torch.tensor([[(0.25 + 1.0) * 2, 0.75 * 4]]))
    assert flow_score(attention * 0, strength).tolist() == [[0.0, 0.0]]
    assert flow_score(torch.tensor([[float("nan"), 1.0]]), strength).tolist() == [[0.0, 4.0]]


def test_prune_number_by_hand() -> None:
    uniform, peaked = torch.full((1, 8), 0.05), torch.tensor([[1.0, *[0.0] * 7]])
    assert prune_number(uniform, 2, 4) == 0  # entropy ratio 1
    assert prune_number(peaked, 2, 4) == 3  # 0 · log 0 = 0: entropy 0, 6 / sqrt(4)
    assert prune_number(uniform, 2, 0) == prune_number(peaked, 2, 0) == 6
    half = torch.tensor([[0.5, 0.5, 0.0, 0.0]])  # entropy ln 2 / ln 4 = 1/2: 2 / sqrt(1) · 3/4 = 1.5, half to even
    assert prune_number(half, 2, 1) == 2
    assert prune_number(half.repeat(1, 2), 2, 9) == round(6 / 3 * (1 - (2 / 3) ** 2))
    assert prune_number(torch.cat([uniform, peaked]), 2, 4) == 3  # the larger of the two


def test_flowcut_prunes_at_every_second_block_up_to_the_one_before_the_feature_layer() -> None:
    method = FlowCut()
    assert method.blocks(parts_of(24, -2)) == tuple(range(22))
    assert method.blocks(parts_of(32, -1, has_cls=False)) == tuple(range(32))
    assert method.blocks(parts_of(1)) == (0,)
    run = run_tower(random_blocks(8, 12, 3), 3 * rows_of("random", 1, 41, 12, 0), method, 6, feature_layer=-2)
    acted = [patches.block for patches, reduction in run.calls if reduction is not None]
    assert acted[-1] == 5 and len(acted) >= 2 and all(block % 2 for block in acted)
    assert run.units[4] > 6 == run.units[5]


def test_flow_goes_half_by_history() -> None:
    first = patches_of(6, images=1, stage=0, stages=2)
    FlowCut().reduce(first)
    plain = first.memory["flow"]
    second = patches_of(6, images=1, stage=1, stages=2, seed=9, memory={"flow": plain + 8})
    fresh = patches_of(6, images=1, stage=0, stages=2, seed=9)
    FlowCut().reduce(second)
    FlowCut().reduce(fresh)
    assert_close(second.memory["flow"], (plain + 8 + fresh.memory["flow"]) / 2)


def test_coupled_crops_drop_equally_many_others_do_not() -> None:
    assert (FlowCut().together, FlowCut(coupled=True).together) == ("sequence", "image")
    blocks = random_blocks(6, 12, 3)
    hidden = rows_of("random", 2, 41, 12, 3) * torch.tensor([0.02, 3.0])[:, None, None] + 1
    coupled = run_tower(blocks, hidden, FlowCut(coupled=True), 8)
    alone = [run_tower(blocks, one, FlowCut(), 8).units for one in hidden.split(1)]
    assert alone[0] != alone[1]
    first = next(i for i in range(6) if alone[0][i] != alone[1][i])
    assert coupled.units[first] == min(alone[0][first], alone[1][first])


@given(keep=st.one_of(st.floats(0.01, 1.0), st.integers(1, 800)), present=st.integers(1, 700))
@settings(max_examples=300, deadline=None)
def test_both_stages_together_leave_exactly_keep(keep: float | int, present: int) -> None:
    method = FlowCut(keep=keep, stages="both")
    tower, prune = method.split()
    assert (tower.kind, prune.kind, tower.name, prune.name) == ("reducer", "prune", "flowcut", "flowcut")
    k = method.count(present)
    seen = tower.count(present)
    assert seen == min(2 * k, present)
    assert prune.count(seen) == prune.count_at(0, seen) == k
    assert tower.split() == (tower,)


def test_several_images_share_the_second_stage() -> None:
    tower, prune = FlowCut(keep=64, stages="both").split()
    assert prune.count(3 * tower.count(576)) == 3 * 64
    assert FlowCut(keep=0.25).split() == (FlowCut(keep=0.25),)
    (alone,) = FlowCut(keep=0.25, stages="llm").split()
    assert alone == FlowCutPrune(keep=0.25) and alone.count(576) == 144 and alone.count(0) == 0
    assert alone.schedule(32) == (2,) and alone.watch(32).attention == (1,)


def test_the_language_models_stage_equals_the_naive_one() -> None:
    generator = torch.Generator().manual_seed(0)
    batch, heads, groups, length, dim = 2, 4, 2, 11, 6
    query = torch.randn(batch, heads, length, dim, generator=generator)
    key, value = (torch.randn(batch, groups, length, dim, generator=generator) for _ in range(2))
    visual = torch.zeros(batch, length, dtype=torch.bool)
    visual[0, 2:7] = visual[1, [1, 4, 5]] = True
    method, memory = FlowCutPrune(keep=2), {}
    rows: Any = Rows(2, query[:, 0], visual, torch.ones_like(visual), ~visual, None)
    method.on_attention(rows, Attention(query, key, 0.3, value=value), memory)
    score = method.score(rows, memory)
    keys, values = key.repeat_interleave(2, dim=1), value.repeat_interleave(2, dim=1)
    for row in range(batch):
        places = visual[row].nonzero()[:, 0]
        r = torch.stack([(0.3 * keys[row, h, places] @ query[row, h, -1]).softmax(0) for h in range(heads)]).mean(0)
        m = torch.stack(
            [(values[row, h, places] @ values[row, h, -1] / dim**0.5).softmax(0) for h in range(heads)]
        ).mean(0)
        strength = values[row, :, places].mean(0).abs().sum(-1)
        assert_close(score[row, places], (r + m) * strength)
        assert (score[row, ~visual[row]] == 0).all()
    rows.visual[1] = False
    assert method.score(rows, memory)[1].tolist() == [0.0] * length
    with pytest.raises(ValueError, match="values of the watched layer are missing"):
        method.on_attention(rows, Attention(query, key, 0.3), {})


# ---------------------------------------------------------------- Zero-TPrune


def matrix(patches: Patches) -> Tensor:
    """The attention matrix [G, H, P, P] itself."""
    return patches.attend(patches.query, patches.segments)


@pytest.mark.parametrize("windowed", [False, True])
@pytest.mark.parametrize("prefix", [0, 1])
def test_page_rank_equals_powers_of_the_matrix(prefix: int, windowed: bool) -> None:
    segments = windows(2, prefix, 9, 1) if windowed else None
    patches = patches_of(9, prefix=prefix, segments=segments)
    rows = prefix + 9
    for iterations in (1, 4):
        power = torch.linalg.matrix_power(matrix(patches), iterations).transpose(2, 3)
        for uniform in (True, False):
            start = torch.ones(rows)
            if prefix and not uniform:
                start[0] = rows**0.5
            expected = power @ (start / start.mean())
            assert_close(page_rank(patches, iterations, uniform), expected)


def test_importance_by_hand() -> None:
    flat, good, peaked = torch.ones(4), torch.tensor([0.5, 1.5, 1.2, 0.8]), torch.tensor([4.0, 0.0, 0.0, 0.0])
    assert_close(importance(torch.stack([flat, good, peaked])[None]), good[None])
    both = torch.stack([good, good.flip(0), peaked])[None]
    assert_close(importance(both)[0], ((good.square() + good.flip(0).square()) / 2).sqrt())
    none = torch.stack([flat, peaked])[None]  # no head is left: all count
    assert_close(importance(none)[0], ((flat + peaked.square()) / 2).sqrt())


def test_signals_that_sum_to_one_would_lose_every_head() -> None:
    signal = torch.rand(1, 4, 577, generator=torch.Generator().manual_seed(0))
    assert (importance(signal / signal.mean(2, keepdim=True)).isfinite()).all()
    raw = signal / signal.sum(2, keepdim=True)
    assert (raw.var(dim=2, correction=0) < 0.01).all()


@quick
@given(tokens=st.integers(2, 12), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_near_duplicates_equal_the_naive_ones(tokens: int, share: float, seed: int) -> None:
    keys, rank = rows_of("random", 1, tokens, 3, seed), rows_of("random", 1, tokens, 1, seed + 1)[..., 0]
    remove = round(share * (tokens // 2))
    order = sorted(range(tokens), key=lambda i: -float(rank[0, i]))
    half = tokens - tokens // 2
    unit = torch.nn.functional.normalize(keys[0], dim=-1)
    twin = {i: max(float(unit[i] @ unit[j]) for j in order[:half]) for i in order[half:]}
    gone = sorted(twin, key=lambda i: -twin[i])[:remove]
    assert near_duplicates(keys, rank, remove)[0].tolist() == [i for i in range(tokens) if i not in gone]


def test_zero_tprune_ranks_the_rest_on_attention_normalised_anew() -> None:
    patches = patches_of(10, images=1, start=10, target=4)
    kept = ZeroTPrune(similar=0.5).reduce(patches).kept
    first = patches.of_units(importance(page_rank(patches, 1)))
    alive = near_duplicates(patches.keys.flatten(2), first, 3)
    rows = torch.cat([torch.zeros(1, dtype=torch.long), alive[0] + 1])
    among = matrix(patches)[:, :, rows][:, :, :, rows]
    among = among / among.sum(dim=-1, keepdim=True)
    start = torch.ones(8)
    start[0] = 8**0.5
    signal = among.transpose(2, 3) @ (start / start.mean())
    best = importance(signal)[:, 1:].argsort(dim=1, descending=True)[:, :4].sort(dim=1).values
    assert torch.equal(kept, alive.gather(1, best))


def test_of_two_alike_the_less_important_goes() -> None:
    keys = torch.eye(6)[None].clone()
    keys[0, 1] = 3 * keys[0, 4]
    assert near_duplicates(keys, torch.tensor([[5.0, 1.0, 4.0, 3.0, 6.0, 2.0]]), 1).tolist() == [[0, 2, 3, 4, 5]]
    assert near_duplicates(keys, torch.tensor([[5.0, 6.0, 4.0, 3.0, 1.0, 2.0]]), 1).tolist() == [[0, 1, 2, 3, 5]]


def test_at_most_the_less_important_half_goes_as_duplicates() -> None:
    patches = patches_of(8, target=1)
    kept = ZeroTPrune(similar=1.0).reduce(patches).kept
    rank = patches.of_units(importance(page_rank(patches, 1)))
    alive = rank.argsort(dim=1, descending=True)[:, :4].sort(dim=1).values
    among = patches.only(alive)
    best = among.of_units(importance(page_rank(among, 1))).argmax(dim=1, keepdim=True)
    assert torch.equal(kept, alive.gather(1, best))
