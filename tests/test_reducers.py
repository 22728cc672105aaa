"""What holds for every encoder reducer, and for the pure functions that are its mathematics."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from odd_values import rows_of
from reducer_driver import KINDS, Run, parts_of, patches_of, random_blocks, run_tower, windows
from torch.testing import assert_close

import vtc
from vtc import DiffRate, FlowCut, Reduction, TokenTransforming, ToMe, ZeroTPrune, ops
from vtc.method.patches import Patches

quick = settings(max_examples=40, deadline=None)

REDUCERS: list[Any] = [
    ToMe(), ToMe(inflection=-1.0, proportional=False), ToMe(inflection=1.0),
    DiffRate(), DiffRate(merge=(0.9, 0.2)), DiffRate(prune=(1.0, 0.5, 0.6)),
    FlowCut(), FlowCut(coupled=True),
    ZeroTPrune(), ZeroTPrune(layers=(0, 2), uniform=True, similar=0.5), ZeroTPrune(similar=1.0),
    TokenTransforming(), TokenTransforming(layers=(1,), anchors_per_token=1), TokenTransforming(tau=1e-4),
]  # fmt: skip
CONSERVING = (ToMe, TokenTransforming)
#: Reducers with tests of their own: they see no rows but pixels.
OWN_TESTS = {"pixelprune"}


def check_decision(reduction: Reduction | None, patches: Patches, conserving: bool) -> None:
    if reduction is None:
        return
    kept, units = reduction.kept, patches.units
    assert kept.dtype == torch.long and len(kept) == len(patches.hidden) and kept.shape[1] < units
    assert all(len(set(row)) == len(row) and min(row) >= 0 and max(row) < units for row in kept.tolist())
    sizes = reduction.sizes
    if sizes is not None:
        assert sizes.shape == kept.shape and (sizes > 0).all() and sizes.isfinite().all()
    if conserving:
        assert reduction.mixing is not None
    if (mixing := reduction.mixing) is not None:
        k = kept.shape[1]
        assert mixing.source.shape == mixing.target.shape == mixing.weight.shape
        assert ((mixing.source >= 0) & (mixing.source < units)).all()
        assert ((mixing.target >= 0) & (mixing.target < k)).all()
        assert (mixing.weight >= 0).all()
        ones = ops.merge(torch.ones(len(kept), units, 1), mixing, k)
        assert_close(ones, torch.ones_like(ones))
        into = torch.zeros(len(kept), k, units)
        image = torch.arange(len(kept))[:, None]
        into[image, mixing.target, mixing.source] = mixing.weight
        assert (into.gather(2, kept[:, :, None]) > 0).all()  # each survivor has a part in what stands at its place


# ---------------------------------------------------------------- every reducer


@pytest.mark.parametrize("method", REDUCERS, ids=repr)
@quick
@given(
    start=st.integers(1, 14),
    share=st.floats(0, 1),
    depth=st.integers(3, 6),
    feature_layer=st.integers(-3, -1),
    prefix=st.integers(0, 1),
    cell=st.sampled_from([1, 4]),
    images=st.integers(1, 2),
    windowed=st.booleans(),
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 99),
)
def test_exactly_the_target_is_left_behind_the_feature_layer(
    method: Any, start: int, share: float, depth: int, feature_layer: int, prefix: int, cell: int, images: int,
    windowed: bool, kind: str, seed: int,
) -> None:  # fmt: skip
    target = 1 + round(share * (start - 1))
    feature = depth + feature_layer
    try:
        method.blocks(parts_of(depth, feature_layer, prefix > 0))
    except ValueError:  # it acts at given blocks, which lie behind that layer
        feature_layer, feature = -1, depth - 1
    if method.together == "sequence":
        images = 1
    hidden = rows_of(kind, images, prefix + start * cell, 12, seed)
    segments = windows(images, prefix, start, cell) if windowed else None
    blocks = random_blocks(depth, 12, 3, seed)

    def run() -> Run:
        return run_tower(
            blocks, hidden, method, target, feature_layer=feature_layer, prefix=prefix, cell=cell, segments=segments
        )

    if isinstance(method, ToMe) and start > target << (feature + 1):
        with pytest.raises(ValueError, match="give a keep that leaves"):
            run()
        return
    done = run()
    assert done.units[feature] == target and done.units[-1] == target
    assert all(later <= earlier for earlier, later in zip([start, *done.units], done.units))
    for patches, reduction in done.calls:
        assert patches.block <= feature
        check_decision(reduction, patches, isinstance(method, CONSERVING))
    if isinstance(method, CONSERVING):
        assert_close(done.sizes[-1].sum(dim=1), torch.full((images,), float(start)))
    again = run()
    assert torch.equal(done.ids[-1], again.ids[-1]) and torch.equal(done.source[-1], again.source[-1])


@pytest.mark.parametrize(
    "method", [m for m in REDUCERS if m.together != "sequence" and m != FlowCut(coupled=True)], ids=repr
)
@pytest.mark.parametrize("prefix", [0, 1])
def test_a_group_gets_what_each_gets_alone(method: Any, prefix: int) -> None:
    hidden = rows_of("random", 3, prefix + 12, 12, 7)
    blocks = random_blocks(5, 12, 3)
    together = run_tower(blocks, hidden, method, 5, prefix=prefix)
    for index in range(3):
        alone = run_tower(blocks, hidden[index : index + 1], method, 5, prefix=prefix)
        assert torch.equal(alone.ids[-1][0], together.ids[-1][index])
        assert_close(alone.outputs[-1][0], together.outputs[-1][index])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", REDUCERS, ids=repr)
def test_half_precision_decides_in_float32(method: Any, dtype: torch.dtype) -> None:
    images = 1 if method.together == "sequence" else 2
    whole = patches_of(13, images=images, target=7)
    half = {name: getattr(whole, name).to(dtype) for name in ("hidden", "query", "key", "value")}
    exact = replace(whole, memory={}, **{name: value.float() for name, value in half.items()})
    low, high = method.reduce(replace(whole, memory={}, **half)), method.reduce(exact)
    assert torch.equal(low.kept, high.kept)
    if high.mixing is not None:
        assert torch.equal(low.mixing.source, high.mixing.source) and torch.equal(low.mixing.weight, high.mixing.weight)


@pytest.mark.parametrize("method", REDUCERS, ids=repr)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("units", [2, 3, 9])
def test_queries_keys_and_values_may_be_anything(method: Any, kind: str, units: int) -> None:
    for prefix, cell in ((1, 1), (0, 4)):
        images = 1 if method.together == "sequence" else 2
        patches = patches_of(units, images=images, prefix=prefix, cell=cell, kind=kind, target=(units + 1) // 2)
        reduction = method.reduce(patches)
        assert reduction.kept.shape == (images, (units + 1) // 2)
        check_decision(reduction, patches, isinstance(method, CONSERVING))


@pytest.mark.parametrize("method", [ToMe(), DiffRate(), FlowCut(), ZeroTPrune(), TokenTransforming()], ids=repr)
def test_blocks_end_at_the_feature_layer(method: Any) -> None:
    for depth in (1, 2, 3, 12, 24):
        for feature in range(depth):
            for has_cls in (False, True):
                blocks = method.blocks(parts_of(depth, feature - depth, has_cls))
                assert list(blocks) == sorted(set(blocks)) and blocks[0] >= 0 and blocks[-1] <= feature
    with pytest.raises(ValueError, match=method.name):
        method.blocks(parts_of(0))


def test_ties_go_to_the_lowest_index() -> None:
    flat = patches_of(6, images=1, kind="identical", target=3)
    assert ZeroTPrune().reduce(flat).kept.tolist() == [[0, 1, 2]]
    assert FlowCut().reduce(replace(flat, memory={})).kept.tolist() == [[0, 1, 2]]
    assert DiffRate().reduce(flat).kept.tolist() == [[0, 1, 2]]
    assert TokenTransforming().reduce(flat).kept.tolist() == [[0, 1, 2]]
    # With CLS at 0, units 1, 3, 5 stand at even places and pick unit 0, the first at an odd one.
    assert ToMe().reduce(flat).kept.tolist() == [[0, 2, 4]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ToMe(inflection=1.5), r"inflection=1.5 is not in \[-1, 1\]"),
        (lambda: ToMe(inflection=True), "inflection=True is not a number"),
        (lambda: ToMe(proportional=1), "proportional=1"),
        (lambda: ToMe(keep=0), "keep=0"),
        (lambda: DiffRate(prune=(0.5,), merge=(0.5, 0.2)), "differ in length"),
        (lambda: DiffRate(merge=(1.5,)), r"merge\[0\]=1.5"),
        (lambda: DiffRate(merge=()), "merge=\\(\\) is empty"),
        (lambda: FlowCut(stages="decoder"), "stages='decoder' is not one of"),
        (lambda: FlowCut(coupled=1), "coupled=1"),
        (lambda: ZeroTPrune(similar=2.0), "similar=2.0"),
        (lambda: ZeroTPrune(layers=(3, 1)), "not ascending"),
        (lambda: ZeroTPrune(layers=4), "layers=4 is a int"),
        (lambda: TokenTransforming(tau=0.0), "tau=0.0 is not above 0"),
        (lambda: TokenTransforming(anchors_per_token=0), "anchors_per_token=0 is below 1"),
        (lambda: TokenTransforming(layers=(-1,)), r"layers\[0\]=-1 is below 0"),
        (lambda: ZeroTPrune(layers=(3,)).blocks(parts_of(4, -2)), "behind tower block 2"),
        (lambda: DiffRate(merge=(0.5,) * 4).blocks(parts_of(4, -2)), "give 3 at most"),
    ],
)
def test_bad_fields_are_named(make: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_every_reducer_of_this_release_is_in_these_lists() -> None:
    assert {method.name for method in REDUCERS} | OWN_TESTS == set(vtc.list_methods("reducer"))
