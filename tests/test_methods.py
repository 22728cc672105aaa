"""What holds for every method, and for the pure function that is its mathematics."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from contract import ON_VIDEOS
from hypothesis import given, settings
from hypothesis import strategies as st
from odd_values import KINDS, rows_of
from torch import Tensor, nn
from torch.testing import assert_close

import vtc
from vtc import (
    MMR,
    CDPruner,
    DivPrune,
    FastV,
    FrameStride,
    HiPrune,
    KCenter,
    Mixing,
    NoCompression,
    Pool,
    Random,
    Scope,
    Stride,
    TransPrune,
    VisPruner,
    VisualTokens,
    ops,
)
from vtc.attention.scores import Attention
from vtc.method.budget import share_out
from vtc.method.prune import Rows
from vtc.method.reduction import Reduction
from vtc.method.registry import method_class, shipped
from vtc.model.layout import Grid
from vtc.model.parts import Parts
from vtc.ops import reference
from vtc.prunes.attention.fastv import last_query_attention
from vtc.prunes.transprune import instruction_attention, share_of_visual, transition
from vtc.selectors.baselines import pool_mixing, random_positions, stride_positions
from vtc.selectors.kcenter import mean_pivot
from vtc.selectors.places import candidates, partition
from vtc.selectors.saliency.hiprune import hiprune

quick = settings(max_examples=20, deadline=None)

SELECTORS = [
    Random(), Stride(), FrameStride(), Pool(), DivPrune(), HiPrune(), HiPrune(alpha=1.0), KCenter(),
    KCenter(rule="max-sum"), KCenter(pivot="mean"), DivPrune(centering=True), KCenter(centering=True),
    CDPruner(centering=True), Scope(combine="sum"), VisPruner(important=0), VisPruner(important=1), MMR(penalty=5.0),
]  # fmt: skip
PRUNES = [FastV(), TransPrune()]
#: Selectors with tests of their own: they merge, choose how many, or look at frames or at more of the tower.
OWN_TESTS = {
    "visionzip",
    "tokencorr",
    "recoverable",
    "holitom",
    "prunevid",
    "todre",
    "prumerge",
    "trim",
    "vscan",
} | ON_VIDEOS
#: Those that choose among places of the picture first.
PLACED = [method for method in SELECTORS if not isinstance(method, Random | DivPrune)]
KNOWN = {method.name for method in SELECTORS} | OWN_TESTS | {"none"}
SELECTORS += [method_class(name)() for name in shipped() if name not in KNOWN and method_class(name).kind == "selector"]

LAYOUTS = {
    "square": (Grid(0, 1, 5, 5),),
    "newlines": (Grid(0, 1, 4, 6, row_end=1),),
    "tiles": (Grid(0, 1, 3, 3, kind="thumbnail"), Grid(9, 1, 5, 4, row_end=1, kind="tiles")),
    "trailing newline": (Grid(0, 1, 4, 4, end=1),),
    "video": (Grid(0, 3, 3, 4),),
    "video, newline": (Grid(0, 4, 3, 3, end=1),),
    "video, CLS": (Grid(0, 3, 2, 3, front=1),),
    "one row": (Grid(0, 1, 1, 11),),
}


def visual_tokens(layout: str, images: int = 1, kind: str = "random", seed: int = 0) -> VisualTokens:
    grids = LAYOUTS[layout]
    tokens = sum(map(len, grids))
    separators = torch.ones(tokens, dtype=torch.bool)
    for grid in grids:
        separators[grid.tokens().flatten()] = False
    odd = kind in ("zero rows", "nan and inf", "nan, inf and a row of it", "all zero", "all nan")
    scores = [rows_of(kind if odd else "random", images, tokens, 4, seed + i).abs().mean(-1) for i in range(3)]
    middle, deep, cls = (score.masked_fill(separators, float("nan")) for score in scores)
    return VisualTokens(
        rows_of(kind, images, tokens, 16, seed),
        grids,
        separators,
        received={1: middle, 3: deep},
        cls={3: cls},
        hidden={3: rows_of(kind, images, tokens, 12, seed + 3).masked_fill(separators[:, None], float("nan"))},
    )


def one(visual: VisualTokens, index: int) -> VisualTokens:
    """Image `index` of the group, by itself."""
    alone = slice(index, index + 1)
    return replace(
        visual,
        features=visual.features[alone],
        received={block: score[alone] for block, score in visual.received.items()},
        cls={block: score[alone] for block, score in visual.cls.items()},
        hidden={block: rows[alone] for block, rows in visual.hidden.items()},
    )


def check_decision(reduction: Reduction, images: int, tokens: int, k: int) -> None:
    kept = reduction.kept
    assert kept.shape == (images, k) and kept.dtype == torch.long
    assert (kept >= 0).all() and (kept < tokens).all()
    assert (kept.diff(dim=1) > 0).all()


# ---------------------------------------------------------------- every selector


@pytest.mark.parametrize("method", SELECTORS, ids=repr)
@quick
@given(
    layout=st.sampled_from(list(LAYOUTS)),
    kind=st.sampled_from(KINDS),
    images=st.integers(1, 3),
    share=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_a_selector_keeps_exactly_k_ascending_without_duplicates(
    method: Any, layout: str, kind: str, images: int, share: float, seed: int
) -> None:
    visual = visual_tokens(layout, images, kind, seed)
    tokens = visual.features.shape[1]
    k = min(1 + int(share * (tokens - 1)), tokens - 1)
    check_decision(method.select(visual, k), images, tokens, k)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("method", SELECTORS, ids=repr)
def test_a_group_of_images_gets_what_each_gets_alone(method: Any, layout: str) -> None:
    visual = visual_tokens(layout, images=3)
    together = method.select(visual, 7)
    for index in range(3):
        alone = method.select(one(visual, index), 7)
        assert torch.equal(alone.kept[0], together.kept[index])


@pytest.mark.parametrize("method", PLACED, ids=repr)
@pytest.mark.parametrize("layout", ["newlines", "tiles", "trailing newline"])
def test_separators_are_kept_only_when_nothing_else_is_left(method: Any, layout: str) -> None:
    visual = visual_tokens(layout)
    cells = int((~visual.separators).sum())
    for k in (1, 5, cells - 1, cells):
        assert not visual.separators[method.select(visual, k).kept[0]].any()
    if cells + 1 < len(visual.separators):
        kept = method.select(visual, cells + 1).kept[0]
        assert visual.separators[kept].sum() == 1


@pytest.mark.parametrize("method", [*SELECTORS, *PRUNES, NoCompression()], ids=repr)
def test_keeping_all_means_all(method: Any) -> None:
    for keep in (1.0, 10_000):
        whole = method if isinstance(method, NoCompression) else replace(method, keep=keep)
        for present in (1, 2, 77, 576):
            assert whole.count(present) == present
            if isinstance(whole, vtc.Prune):
                assert all(whole.count_at(stage, present) == present for stage in range(len(whole.schedule(32))))


@pytest.mark.parametrize("method", SELECTORS, ids=repr)
def test_a_selector_leaves_one_token_at_least(method: Any) -> None:
    assert replace(method, keep=0.01).count(3) == 1
    assert replace(method, keep=0.098).count(576) == 56
    assert replace(method, keep=0.5).count(77) == 38  # half to even
    assert replace(method, keep=64).count(576) == 64


# ---------------------------------------------------------------- max-min


def naive_greedy(x: Tensor, k: int, seed: int | None, rule: str) -> list[int]:
    x = torch.nn.functional.normalize(x.double(), dim=-1)
    distance = 1 - x @ x.T
    if seed is None:
        seed = int((distance + 9 * torch.eye(len(x))).amin(dim=1).argmax())
    picks = [seed]
    while len(picks) < k:
        far = distance[picks].amin(dim=0) if rule == "max-min" else distance[picks].sum(dim=0)
        far[picks] = -torch.inf
        picks.append(int(far.argmax()))
    return picks


@pytest.mark.parametrize("rule", ["max-min", "max-sum"])
@pytest.mark.parametrize("seeded", [False, True])
@pytest.mark.parametrize("entries", [2**26, 5000, 0], ids=["matrix", "one by one", "rows"])
def test_max_min_is_the_greedy_algorithm(monkeypatch: Any, rule: str, seeded: bool, entries: int) -> None:
    monkeypatch.setattr(reference, "MATRIX_ENTRIES", entries)
    monkeypatch.setattr(reference, "_CHUNK", 16)
    x = rows_of("random", 3, 50, 16, seed=1)
    seed = torch.tensor([7, 0, 49]) if seeded else None
    for k in (1, 9, 50):
        picks = ops.max_min(x, k, seed, rule)
        for image in range(3):
            assert picks[image].tolist() == naive_greedy(x[image], k, int(seed[image]) if seeded else None, rule)


@pytest.mark.parametrize("rule", ["max-min", "max-sum"])
@quick
@given(kind=st.sampled_from(KINDS), tokens=st.integers(1, 40), seed=st.integers(0, 99), seeded=st.booleans())
def test_fewer_picks_are_a_prefix_and_all_picks_a_permutation(
    rule: str, kind: str, tokens: int, seed: int, seeded: bool
) -> None:
    x = rows_of(kind, 2, tokens, 16, seed)
    first = torch.tensor([0, tokens - 1]) if seeded else None
    order = ops.max_min(x, tokens, first, rule)
    assert torch.equal(order.sort(dim=1).values, torch.arange(tokens).expand(2, -1))
    for k in {1, (tokens + 1) // 2, tokens // 4 or 1}:
        if 3 * k >= tokens or not seeded:
            assert torch.equal(ops.max_min(x, k, first, rule), order[:, :k])


def test_duplicates_come_after_every_distinct_token() -> None:
    x = rows_of("random", 1, 12, 16, seed=3).repeat(1, 3, 1)
    order = ops.max_min(x, 36)[0]
    assert len(set((order[:12] % 12).tolist())) == 12


@pytest.mark.parametrize("kind", ["zero rows", "nan and inf"])
def test_rows_without_direction_are_picked_last(kind: str) -> None:
    x = rows_of(kind, 1, 30, 16, seed=4)
    lost = ~x[0].isfinite().all(dim=1) | (x[0] == 0).all(dim=1)
    order = ops.max_min(x, 30)[0]
    assert not lost[order[: int((~lost).sum())]].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    x = rows_of("random", 2, 60, 16, seed=5).mul(300).to(dtype)
    assert torch.equal(ops.max_min(x, 20), ops.max_min(x.float(), 20))


def test_equal_distances_go_to_the_lowest_index() -> None:
    assert ops.max_min(torch.eye(6)[None], 6)[0].tolist() == [0, 1, 2, 3, 4, 5]
    assert ops.max_min(torch.zeros(1, 4, 2), 4)[0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("k", [0, 6, -1])
def test_max_min_refuses_a_count_out_of_range(k: int) -> None:
    with pytest.raises(ValueError, match=f"k={k}"):
        ops.max_min(torch.randn(1, 5, 3), k)
    with pytest.raises(ValueError, match="rule='min-max'"):
        ops.max_min(torch.randn(1, 5, 3), 2, rule="min-max")


# ---------------------------------------------------------------- merging and pooling


def dense(mixing: Mixing, k: int, tokens: int) -> Tensor:
    """W [G, k, N]."""
    w = torch.zeros(len(mixing.source), k, tokens)
    image = torch.arange(len(w))[:, None]
    return w.index_put_((image, mixing.target, mixing.source), mixing.weight, accumulate=True)


def test_merge_is_a_product_with_w_and_carries_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    source, target = (torch.randint(n, (2, 30), generator=generator) for n in (9, 4))
    mixing = Mixing(source, target, torch.randn(2, 30, generator=generator))
    x = rows_of("random", 2, 9, 16, seed=6).requires_grad_()
    merged = ops.merge(x, mixing, 4)
    assert_close(merged, dense(mixing, 4, 9) @ x)
    merged.sum().backward()
    assert_close(x.grad, dense(mixing, 4, 9).sum(dim=1)[..., None].expand_as(x))
    assert ops.merge(x.half(), mixing, 4).dtype == torch.float16


@quick
@given(t=st.integers(1, 4), h=st.integers(1, 9), w=st.integers(1, 9), share=st.floats(0, 1))
def test_a_grid_is_cut_into_exactly_k_boxes_each_with_its_centre(t: int, h: int, w: int, share: float) -> None:
    k = 1 + round(share * (t * h * w - 1))
    box_of, centres = partition(t, h, w, k)
    assert box_of.unique().tolist() == list(range(k))
    assert box_of[centres].tolist() == list(range(k))
    assert (centres.diff() > 0).all()
    for box in range(k):
        cells = (box_of.view(t, h, w) == box).nonzero()
        extent = cells.amax(dim=0) - cells.amin(dim=0) + 1
        assert extent.prod() == len(cells)  # a box, without holes


@quick
@given(layout=st.sampled_from(list(LAYOUTS)), share=st.floats(0, 1))
def test_pooling_averages_each_box(layout: str, share: float) -> None:
    visual = visual_tokens(layout, images=2)
    cells = int((~visual.separators).sum())
    k = min(max(1, round(share * cells)), cells, visual.features.shape[1] - 1)
    reduction = Pool().select(visual, k)
    check_decision(reduction, 2, len(visual.separators), k)
    if reduction.mixing is not None:
        w = dense(reduction.mixing, k, len(visual.separators))
        assert_close(w.sum(dim=2), torch.ones(2, k))
        assert not w[:, :, visual.separators].any()
        assert (w > 0).sum(dim=1).max() == 1  # no token goes into two boxes
        assert (w.gather(2, reduction.kept[..., None]) > 0).all()  # the centre is in its own box


def test_a_band_never_holds_more_boxes_than_columns() -> None:
    assert partition(1, 2, 10, 11)[0].unique().tolist() == list(range(11))


def test_pooling_a_divisible_grid_is_average_pooling() -> None:
    x = rows_of("random", 1, 144, 16, seed=7)
    kept, mixing = pool_mixing((Grid(0, 1, 12, 12),), 16)
    pooled = torch.nn.functional.avg_pool2d(x[0].T.view(-1, 12, 12), 3).flatten(1).T
    assert_close(ops.merge(x, mixing, 16)[0], pooled)
    rows = torch.arange(1, 12, 3)
    assert kept.tolist() == (rows[:, None] * 12 + rows).flatten().tolist()
    assert stride_positions((Grid(0, 1, 12, 12),), 16).tolist() == kept.tolist()


def test_shares_add_up_and_stay_within_their_size() -> None:
    assert share_out(320, [576, 2304]) == [64, 256]
    for k in range(0, 38):
        shares = share_out(k, [9, 20, 8])
        assert sum(shares) == k and all(s <= n for s, n in zip(shares, [9, 20, 8], strict=True))


def test_candidates_are_grid_tokens_then_separators() -> None:
    visual = visual_tokens("newlines")
    assert candidates(visual, 3).tolist() == (~visual.separators).nonzero()[:, 0].tolist()
    assert candidates(visual, 25).tolist() == [i for i in range(28) if i not in (13, 20, 27)]


# ---------------------------------------------------------------- random


def test_random_depends_on_seed_and_size_alone() -> None:
    state = torch.random.get_rng_state()
    picks = random_positions(100, 20, 0)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(123)
    assert torch.equal(random_positions(100, 20, 0), picks)
    assert torch.equal(random_positions(100, 10, 0), picks[:10])
    for other in (random_positions(100, 20, 1), random_positions(101, 20, 0)):
        assert not torch.equal(other, picks)
    first, second = visual_tokens("square", 2, seed=1), visual_tokens("square", seed=2)
    assert torch.equal(Random().select(first, 9).kept, Random().select(second, 9).kept.expand(2, -1))


# ---------------------------------------------------------------- hiprune, k-center: what they ask of a model


@dataclass
class Tower:
    depth: int = 24
    cls: bool = True
    feature_layer: int = -2

    def parts(self) -> Parts:
        module = nn.Identity()
        return Parts("toy_vl", module, module, (module,), (module,) * self.depth, self.cls, self.feature_layer)


def test_hiprune_reads_the_published_blocks() -> None:
    assert HiPrune().needs(Tower().parts()).received == (8, 22)
    assert HiPrune().needs(Tower(32, cls=False, feature_layer=-1).parts()).received == (15, 31)
    assert HiPrune(object_layer=2, deep_layer=-1).needs(Tower().parts()).received == (2, 23)
    assert HiPrune().needs(Tower(depth=1, feature_layer=-1).parts()).received == (0, 0)


def test_kcenter_reads_the_last_block_or_nothing() -> None:
    assert KCenter().needs(Tower().parts()).cls == (23,)
    assert KCenter(pivot="mean").needs(Tower(cls=False).parts()) == vtc.Needs()
    assert KCenter(pivot="mean").needs(Tower(depth=0).parts()) == vtc.Needs()


@pytest.mark.parametrize(
    ("method", "tower", "parts_of_message"),
    [
        (KCenter(), Tower(cls=False), ["kcenter", "pivot='cls'", "toy_vl", "pivot='mean'"]),
        (KCenter(layer=24), Tower(), ["kcenter", "24", "24 blocks"]),
        (HiPrune(object_layer=40), Tower(), ["hiprune", "40", "24 blocks"]),
        (HiPrune(deep_layer=-25), Tower(), ["hiprune", "-25", "24 blocks"]),
        (HiPrune(), Tower(depth=0), ["hiprune", "toy_vl"]),
        (HiPrune(object_layer=20, deep_layer=3), Tower(), ["object_layer", "20", "deep_layer", "3"]),
        (HiPrune(compat=True), Tower(), ["compat=True", "compat=False"]),
    ],
    ids=repr,
)
def test_what_a_model_lacks_is_said(method: Any, tower: Tower, parts_of_message: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        method.needs(tower.parts())
    assert all(part in str(error.value) for part in parts_of_message), str(error.value)


def test_hiprune_takes_anchors_their_cross_and_then_the_deep_layer() -> None:
    middle, deep = torch.zeros(1, 25), torch.arange(25.0)[None]
    middle[0, 12] = 1
    kept = hiprune(middle, deep, 7, (5, 5), alpha=0.7)[0].nonzero()[:, 0]
    assert kept.tolist() == [7, 11, 12, 13, 17, 23, 24]
    assert hiprune(middle, deep, 7, (5, 5), alpha=0.0)[0].nonzero()[:, 0].tolist() == list(range(18, 25))


def test_hiprune_buffers_stay_in_their_frame_and_grid() -> None:
    middle, deep = torch.zeros(1, 18), torch.zeros(1, 18)
    middle[0, 9] = 1  # first token of the second frame
    assert hiprune(middle, deep, 3, (3, 3), alpha=5 / 3)[0].nonzero()[:, 0].tolist() == [9, 10, 12]


def test_hiprune_with_too_small_a_budget_keeps_anchors_first() -> None:
    middle = torch.zeros(1, 25)
    middle[0, 12], middle[0, 17] = 1.0, 0.5
    assert hiprune(middle, torch.ones(1, 25), 2, (5, 5), alpha=2.5)[0].nonzero()[:, 0].tolist() == [12, 17]


def test_hiprune_compat_refuses_a_group_that_would_be_ragged() -> None:
    visual = visual_tokens("square", images=2)
    sinks = torch.ones(2, 25)
    sinks[0, 12] = 100.0
    visual = replace(visual, received={1: sinks, 3: sinks})
    with pytest.raises(ValueError, match="compat=True"):
        HiPrune(alpha=0.5, compat=True).select(visual, 10)
    assert HiPrune(alpha=0.5, compat=True).select(one(visual, 0), 10).kept.shape == (1, 9)
    assert HiPrune(alpha=0.5).select(visual, 10).kept.shape == (2, 10)


def test_the_pivot_is_in_the_thumbnail_where_there_is_one() -> None:
    visual = visual_tokens("tiles")
    attention = torch.linspace(0, 1, len(visual.separators))[None].masked_fill(visual.separators, float("nan"))
    assert KCenter().select(replace(visual, cls={3: attention}), 1).kept.tolist() == [[8]]
    square = visual_tokens("square")
    assert KCenter().select(replace(square, cls={3: torch.linspace(0, 1, 25)[None]}), 1).kept.tolist() == [[24]]


def test_the_mean_pivot_is_the_token_nearest_to_the_mean() -> None:
    x = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 0.9], [0.0, 0.0]]])
    assert mean_pivot(x).tolist() == [2]


# ---------------------------------------------------------------- fastv, transprune


def padded_attention() -> tuple[Attention, Tensor]:
    """Two rows of 6 tokens, the second with 2 of padding; 4 heads on 2 of keys. And the dense probabilities."""
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(2, heads, 6, 8, generator=generator) for heads in (4, 2))
    valid = torch.ones(2, 6, dtype=torch.bool)
    valid[1, :2] = False
    logits = query @ key.repeat_interleave(2, dim=1).transpose(-1, -2) * 0.3
    seen = torch.ones(6, 6, dtype=torch.bool).tril() & valid[:, None, None]
    probabilities = logits.masked_fill(~seen, float("-inf")).softmax(dim=-1).nan_to_num(0.0)
    return Attention(query, key, 0.3, mask=valid), probabilities


def test_fastv_scores_by_the_last_query() -> None:
    attention, probabilities = padded_attention()
    assert_close(last_query_attention(attention), probabilities[:, :, -1].mean(dim=1))
    memory: dict[str, Tensor] = {}
    method = FastV(layer=3)
    assert method.schedule(32) == (3,) and method.watch(32).attention == (2,) and method.positions == "original"
    rows: Any = None
    method.on_attention(rows, attention, memory)
    assert_close(method.score(rows, memory), probabilities[:, :, -1].mean(dim=1))


def test_fastv_may_leave_nothing() -> None:
    assert FastV(keep=0.5).count_at(0, 1) == 0
    assert FastV(keep=0.5).count_at(0, 77) == 38
    assert FastV(keep=10).count_at(0, 4) == 4


def test_instruction_attention_is_the_mean_over_the_instruction_of_each_row() -> None:
    attention, probabilities = padded_attention()
    instruction = torch.zeros(2, 6, dtype=torch.bool)
    instruction[0, 3:], instruction[1, 5:] = True, True
    expected = torch.stack([probabilities[0, :, 3:].mean(dim=(0, 1)), probabilities[1, :, 5:].mean(dim=(0, 1))])
    assert_close(instruction_attention(attention, instruction), expected)
    assert_close(instruction_attention(attention, torch.zeros_like(instruction)), torch.zeros(2, 6))


@pytest.mark.parametrize("direction", ["code", "paper"])
def test_transition_of_a_row_does_not_depend_on_its_batch(direction: str) -> None:
    before, after = rows_of("random", 2, 10, 16, seed=8), rows_of("random", 2, 10, 16, seed=9)
    valid = torch.ones(2, 10, dtype=torch.bool)
    valid[1, :4] = False
    together = transition(before, after, valid, direction)
    assert_close(together[:1], transition(before[:1], after[:1], None, direction))
    assert_close(together[1:, 4:], transition(before[1:, 4:], after[1:, 4:], None, direction))
    assert not together[1, :4].any()


def test_a_token_turned_round_weighs_most_in_the_code_and_least_in_the_paper() -> None:
    before = torch.eye(3)[None]
    after = torch.stack([-before[0, 0], before[0, 2], before[0, 2] + before[0, 1]])[None]
    assert transition(before, after, direction="code")[0].argmax() == 0
    assert transition(before, after, direction="paper")[0].argmin() == 0


@pytest.mark.parametrize("kind", ["zero rows", "nan and inf", "all zero", "all nan", "huge"])
def test_the_transition_score_is_finite_whatever_comes(kind: str) -> None:
    x = rows_of(kind, 2, 12, 16, seed=10)
    method, memory = TransPrune(), {}
    valid = torch.ones(2, 12, dtype=torch.bool)
    for module in ("attention", "mlp"):
        method.on_modules(Rows(6, x, valid, valid, ~valid), module, x, x.flip(1), memory)
    share = share_of_visual(memory["transition"], valid)
    assert share.isfinite().all() and (share >= 0).all() and (share.sum(dim=1) <= 1 + 1e-5).all()


def test_transprune_keeps_the_published_counts() -> None:
    def counts(method: TransPrune, tokens: int) -> list[int]:
        return [method.count_at(stage, tokens) for stage in range(len(method.schedule(32)))]

    assert counts(TransPrune(), 576) == [504, 360, 72]
    assert counts(TransPrune(), 3) == [2, 1, 0]
    assert counts(TransPrune(keep=72), 576) == [504, 360, 72]
    assert counts(TransPrune(keep=9), 7) == [7, 7, 7]
    assert counts(TransPrune(keeps=(0.75, 0.5, 0.25)), 77) == [57, 38, 19]
    assert counts(TransPrune(keeps=(0.5, 10, 4)), 16) == [8, 8, 4]
    assert counts(TransPrune(layers=(2, 5), keeps=(0.5, 0.2)), 100) == [50, 20]
    assert TransPrune().count(576) == 72
    assert TransPrune().positions == "packed"


def test_transprune_acts_where_published_and_scales_with_depth() -> None:
    assert TransPrune().schedule(32) == (7, 9, 12)
    assert TransPrune().watch(32).modules == (6, 7, 8, 9, 10, 11)
    assert TransPrune(layers=(2, 5), keeps=(0.5, 0.2)).watch(9).modules == (1, 2, 3, 4)
    for depth in range(4, 80):
        schedule = TransPrune().schedule(depth)
        assert 1 <= schedule[0] < schedule[1] < schedule[2] < depth


# ---------------------------------------------------------------- bad fields

BAD_KEEPS = [0, -3, 0.0, -0.5, 1.5, float("nan"), float("inf"), True, False, "0.5", None, (0.5,)]


@pytest.mark.parametrize("keep", BAD_KEEPS, ids=repr)
@pytest.mark.parametrize("method", [Random, Stride, Pool, DivPrune, HiPrune, KCenter, FastV, TransPrune])
def test_a_bad_keep_is_named_with_the_way_out(method: Any, keep: Any) -> None:
    with pytest.raises((ValueError, TypeError)) as error:
        method(keep=keep)
    assert f"keep={keep!r}" in str(error.value) and "(0, 1]" in str(error.value)


@pytest.mark.parametrize(
    ("method", "field", "value", "way_out"),
    [
        (Random, "seed", 0.5, "int"),
        (Random, "seed", True, "int"),
        (HiPrune, "alpha", -0.1, "[0, 1]"),
        (HiPrune, "alpha", 2, "[0, 1]"),
        (HiPrune, "alpha", float("nan"), "[0, 1]"),
        (HiPrune, "alpha", "much", "0.1"),
        (HiPrune, "object_layer", 1.5, "None"),
        (HiPrune, "deep_layer", "last", "None"),
        (HiPrune, "compat", 1, "True or False"),
        (KCenter, "rule", "min-max", "'max-min', 'max-sum'"),
        (KCenter, "pivot", "random", "'cls', 'mean'"),
        (KCenter, "layer", None, "-1"),
        (FastV, "layer", 0, "1 or more"),
        (FastV, "layer", -1, "1 or more"),
        (FastV, "layer", 2.0, "int"),
        (FastV, "layer", True, "int"),
        (TransPrune, "direction", "abs", "'code', 'paper'"),
        (TransPrune, "layers", (3, 3, 5), "ascending"),
        (TransPrune, "layers", (5, 3, 9), "ascending"),
        (TransPrune, "layers", 7, "(7, 9, 12)"),
        (TransPrune, "layers", "789", "(7, 9, 12)"),
        (TransPrune, "layers", (), "(7, 9, 12)"),
        (TransPrune, "keeps", (0.5, 0.7, 0.1), "rises"),
        (TransPrune, "keeps", 0.5, "(0.875, 0.625, 0.125)"),
        (TransPrune, "keeps", (0.5, 0.25), "3 entries"),
    ],
    ids=lambda value: getattr(value, "__name__", repr(value)),
)
def test_a_bad_field_is_named_with_its_value_and_the_way_out(method: Any, field: str, value: Any, way_out: str) -> None:
    with pytest.raises((ValueError, TypeError)) as error:
        method(**{field: value})
    message = str(error.value)
    assert f"{field}={value!r}" in message and way_out in message, message


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"keeps": (1.5, 0.5, 0.1)}, "keeps[0]=1.5"),
        ({"keeps": (0.5, True, 0.1)}, "keeps[1]=True"),
        ({"layers": (0, 3, 5)}, "layers[0]=0"),
        ({"layers": (1, 2.5, 3)}, "layers[1]=2.5"),
        ({"layers": (3, 5)}, "layers=(3, 5); give keeps with 2 entries"),
    ],
    ids=repr,
)
def test_a_bad_entry_is_named_by_its_place(fields: dict[str, Any], named: str) -> None:
    with pytest.raises((ValueError, TypeError)) as error:
        TransPrune(**fields)
    assert named in str(error.value)


def test_lists_become_tuples() -> None:
    method = TransPrune(layers=[2, 5], keeps=[0.5, 0.2])
    assert method == TransPrune(layers=(2, 5), keeps=(0.5, 0.2))
