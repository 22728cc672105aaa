"""What holds for the selectors that read more of the tower than a score, crop by crop: visionzip, tokencorr,
recoverable, prumerge, trim, vscan, hiprune with per_crop."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from contract import EVERY, model_of
from families import scenario
from golden_cases import Case, read
from hypothesis import given, settings
from hypothesis import strategies as st
from odd_values import KINDS, rows_of
from test_methods import check_decision, dense
from torch import Tensor
from torch.testing import assert_close

import vtc
from vtc import HiPrune, Reduction, VisualTokens, ops
from vtc.method.budget import share_out
from vtc.method.visual_tokens import Crops, Needs, Projection
from vtc.model.layout import Grid
from vtc.model.parts import Parts
from vtc.selectors.crops import crop_tokens, share_by
from vtc.selectors.merging import cls_full_width
from vtc.selectors.question.recoverable import Recoverable
from vtc.selectors.question.trim import Trim
from vtc.selectors.saliency.hiprune import hiprune
from vtc.selectors.saliency.prumerge import PruMerge
from vtc.selectors.saliency.tokencorr import (
    TokenCorr,
    exponential_noise,
    informative_order,
    local_count,
    neighbour_count,
)
from vtc.selectors.saliency.visionzip import VisionZip, merge_weights, visionzip
from vtc.selectors.saliency.vscan import VScan

quick = settings(max_examples=25, deadline=None)

METHODS = [
    VisionZip(), VisionZip(dominant=0.0), VisionZip(dominant=1.0), VisionZip(dominant=0.5, average=True),
    TokenCorr(keep=0.5), TokenCorr(keep=0.5, alpha=0.0, beta=0.3, sample=True), Recoverable(keep=0.5),
    HiPrune(per_crop=True), HiPrune(per_crop=True, alpha=1.0), PruMerge(keep=0.5), PruMerge(keep=0.5, plus=True),
    Trim(keep=0.5), VScan(), VScan(shallow=0),
]  # fmt: skip
ADAPTIVE = [TokenCorr(), TokenCorr(sample=True, alpha=0.1), Recoverable(), Recoverable(floor=5), PruMerge(), Trim()]
#: What stands between tower and language model: a projector of rows with CLS, without, or one that joins patches.
TOWERS = ("cls", "rows", "joined")


def tiled() -> tuple[tuple[Grid, ...], Crops]:
    """A thumbnail of 3 × 3 and two tiles of 3 × 3 side by side, whose first row of tokens was cut off as padding."""
    grids = (Grid(0, 1, 3, 3, kind="thumbnail"), Grid(9, 1, 2, 6, row_end=1, kind="tiles"))
    index, place = [0] * 9, list(range(9))
    for row in (1, 2):
        for column in range(6):
            index.append(1 + column // 3)
            place.append(row * 3 + column % 3)
        index.append(-1)
        place.append(-1)
    return grids, Crops(torch.tensor(index), torch.tensor(place), 3, (3, 3))


def layout_of(name: str) -> tuple[tuple[Grid, ...], Crops | None]:
    match name:
        case "tiles":
            return tiled()
        case "video":
            frame = torch.arange(18) // 6
            return (Grid(0, 3, 2, 3),), Crops(frame, torch.arange(18) % 6, 3, (2, 3))
        case "one crop":
            return (Grid(0, 1, 4, 4, end=1),), Crops(torch.tensor([0] * 16 + [-1]), torch.arange(17), 1, (4, 4))
        case _:
            return (Grid(0, 1, 5, 5),), None


LAYOUTS = ("tiles", "video", "one crop", "square")


def visual_tokens(
    layout: str = "tiles", tower: str = "cls", images: int = 1, kind: str = "random", seed: int = 0
) -> VisualTokens:
    """Random tokens, and all that the methods ask for; NaN at separators, as the tower's values are."""
    grids, crops = layout_of(layout)
    tokens = sum(map(len, grids))
    separators = torch.ones(tokens, dtype=torch.bool)
    for grid in grids:
        separators[grid.tokens().flatten()] = False

    def values(width: int, salt: int) -> Tensor:
        x = rows_of(kind, images, tokens, width, 1000 * seed + salt)
        return x.masked_fill(separators[:, None], float("nan"))

    rows, keys, score = values(6, 1), values(8, 2), [values(4, 3 + i).abs().mean(-1) for i in range(2)]
    cls_rows = rows_of("random", images, 3, 6, seed)[:, : crops.count if crops else 1].to(rows.dtype)
    weight = torch.randn(6, 5, generator=torch.Generator().manual_seed(seed)).to(rows.dtype)
    visual = VisualTokens(
        features=rows_of(kind, images, tokens, 5, 1000 * seed),
        grids=grids,
        separators=separators,
        received={1: score[0], 3: score[1]},
        keys={3: keys.unflatten(2, (2, 4))},
        crops=crops,
        text=tuple(rows_of("random", images, 4, 5, seed)),
    )
    if tower == "joined":
        return visual
    projection = Projection(rows, cls_rows if tower == "cls" else None, lambda x: x @ weight)
    if tower == "rows":
        return replace(visual, projection=projection)
    return replace(visual, projection=projection, cls=visual.received, received={}, observed={"cls": score[1]})


def shown_to(method: Any, visual: VisualTokens) -> VisualTokens:
    """What of `visual` the method asks for."""
    if isinstance(method, HiPrune):
        return replace(visual, received=visual.cls or visual.received, projection=None)
    if isinstance(method, Recoverable | PruMerge):
        return replace(visual, cls={}, received={} if visual.observed else {3: visual.received[3]})
    visual = replace(visual, observed={})
    if isinstance(method, Trim):
        return replace(visual, cls={}, received={})
    if isinstance(method, VisionZip):
        return replace(visual, **{k: {3: v[3]} for k in ("cls", "received") if (v := getattr(visual, k))})
    return replace(visual, projection=None)


def one(visual: VisualTokens, index: int) -> VisualTokens:
    """Image `index` of the group, by itself."""
    alone = slice(index, index + 1)

    def cut(values: Any) -> Any:
        return {name: value[alone] for name, value in values.items()}

    projection = visual.projection
    if projection is not None:
        cls = None if projection.cls is None else projection.cls[alone]
        projection = Projection(projection.rows[alone], cls, projection.apply)
    return replace(
        visual, features=visual.features[alone], received=cut(visual.received),
        cls=cut(visual.cls), keys=cut(visual.keys), observed=cut(visual.observed), projection=projection,
        text=visual.text[alone],
    )  # fmt: skip


def check_reduction(reduction: Reduction, visual: VisualTokens, k: int) -> None:
    images, tokens, width = visual.features.shape
    check_decision(reduction, images, tokens, k)
    if reduction.mixing is not None:
        source, target, weight = (getattr(reduction.mixing, name) for name in ("source", "target", "weight"))
        assert source.shape == target.shape == weight.shape and len(source) == images
        assert ((source >= 0) & (source < tokens)).all() and not visual.separators[source].any()
        assert ((target >= 0) & (target < k)).all() and weight.isfinite().all()
    if reduction.features is not None:
        assert reduction.features.shape == (images, k, width)
    assert (reduction.features is None) == (visual.projection is None or reduction.mixing is None)


def same(ours: Reduction, other: Reduction, image: int, tokens: int) -> None:
    """`ours`, of one image, is what `other` says of `image`."""
    k = ours.kept.shape[1]
    assert torch.equal(ours.kept[0], other.kept[image])
    assert (ours.mixing is None) == (other.mixing is None)
    if ours.mixing is not None and other.mixing is not None:
        assert_close(dense(ours.mixing, k, tokens)[0], dense(other.mixing, k, tokens)[image])
    if ours.features is not None and other.features is not None:
        assert_close(ours.features[0], other.features[image], equal_nan=True)


# ---------------------------------------------------------------- every one of them


@pytest.mark.parametrize("method", METHODS, ids=repr)
@quick
@given(
    layout=st.sampled_from(LAYOUTS),
    tower=st.sampled_from(TOWERS),
    kind=st.sampled_from(KINDS),
    images=st.integers(1, 3),
    share=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_exactly_k_tokens_stay_whatever_the_values(
    method: Any, layout: str, tower: str, kind: str, images: int, share: float, seed: int
) -> None:
    visual = shown_to(method, visual_tokens(layout, tower, images, kind, seed))
    tokens = visual.features.shape[1]
    k = min(1 + int(share * (tokens - 1)), tokens - 1)
    check_reduction(method.select(visual, k), visual, k)


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_every_budget_from_one_to_all_but_one(method: Any, layout: str, tower: str) -> None:
    visual = shown_to(method, visual_tokens(layout, tower, images=2))
    cells = int((~visual.separators).sum())
    for k in range(1, visual.features.shape[1]):
        reduction = method.select(visual, k)
        check_reduction(reduction, visual, k)
        separators = visual.separators[reduction.kept].sum(dim=1)
        assert (separators == max(k - cells, 0)).all()


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_a_group_of_images_gets_what_each_gets_alone(method: Any, layout: str, tower: str) -> None:
    visual = shown_to(method, visual_tokens(layout, tower, images=3))
    together = method.select(visual, 11)
    for index in range(3):
        same(method.select(one(visual, index), 11), together, index, len(visual.separators))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_other_precisions_decide_as_float32_does(method: Any, dtype: torch.dtype) -> None:
    visual = shown_to(method, visual_tokens("tiles", "joined", images=2, seed=4))

    def at(dtype: torch.dtype, values: VisualTokens) -> VisualTokens:
        maps = {
            name: {key: value.to(dtype) for key, value in getattr(values, name).items()}
            for name in ("received", "keys", "observed")
        }
        text = tuple(value.to(dtype) for value in values.text)
        return replace(values, features=values.features.to(dtype), text=text, **maps)

    rough = at(dtype, visual)  # both from the same rounded numbers
    ours, exact = method.select(rough, 8), method.select(at(torch.float32, rough), 8)
    assert torch.equal(ours.kept, exact.kept)
    if ours.mixing is not None and exact.mixing is not None:
        for w, v in zip(vars(ours.mixing).values(), vars(exact.mixing).values(), strict=True):
            assert_close(w, v, check_dtype=False)


@pytest.mark.parametrize("method", ADAPTIVE, ids=repr)
@quick
@given(
    layout=st.sampled_from(LAYOUTS),
    tower=st.sampled_from(TOWERS),
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 99),
)
def test_where_the_picture_decides_some_token_stays_whatever_the_values(
    method: Any, layout: str, tower: str, kind: str, seed: int
) -> None:
    visual = shown_to(method, visual_tokens(layout, tower, 1, kind, seed))
    cells = int((~visual.separators).sum())
    reduction = method.select(visual, visual.features.shape[1])
    k = reduction.kept.shape[1]
    assert (method.floor if isinstance(method, Recoverable) else len(crop_tokens(visual))) <= k <= cells
    check_reduction(reduction, visual, k)
    one_crop = len(crop_tokens(visual)) == 1 or isinstance(method, Recoverable)  # crops share a budget by density alone
    if kind == "random" and k < cells and one_crop:  # the count that comes out, asked for, gives the same
        same(replace(method, keep=k).select(visual, k), reduction, 0, len(visual.separators))


@pytest.mark.parametrize("method", ADAPTIVE, ids=repr)
def test_the_adaptive_count_is_not_asked_for(method: Any) -> None:
    assert method.adaptive and method.count(77) == 77
    assert not replace(method, keep=0.5).adaptive and replace(method, keep=0.5).count(77) == 38


# ---------------------------------------------------------------- crops


def test_tokens_of_crops_leave_out_separators_and_keep_their_order() -> None:
    found = crop_tokens(visual_tokens("tiles"))
    assert [tokens.tolist() for tokens in found] == [list(range(9)), [9, 10, 11, 16, 17, 18], [12, 13, 14, 19, 20, 21]]
    (alone,) = crop_tokens(replace(visual_tokens("one crop"), crops=None))
    assert alone.tolist() == list(range(16))


@settings(max_examples=200, deadline=None)
@given(parts=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 12)), min_size=1, max_size=6), share=st.floats(0, 1))
def test_shares_by_weight_are_exact_and_fit(parts: list[tuple[int, int]], share: float) -> None:
    weights, sizes = [w for w, _ in parts], [s for _, s in parts]
    k = round(share * sum(sizes))
    shares = share_by(k, weights, sizes)
    assert sum(shares) == k
    assert all(0 <= part <= size for part, size in zip(shares, sizes, strict=True))
    if sum(weights) and all(k * w <= s * sum(weights) for w, s in parts if s) and all(s or not w for w, s in parts):
        assert shares == share_out(k, weights)  # nothing is full
    for (weight, size), mine in zip(parts, shares, strict=True):  # who isn't full has no less than a lighter one
        if mine < size and weight:
            assert all(mine >= other - 1 for (w, _), other in zip(parts, shares, strict=True) if w <= weight)


# ---------------------------------------------------------------- visionzip


def zip_input(images: int, tokens: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(images, tokens, generator=generator), torch.randn(images, tokens, 6, generator=generator)


@quick
@given(tokens=st.integers(1, 30), seed=st.integers(0, 99), data=st.data())
def test_zip_is_the_algorithm_step_by_step(tokens: int, seed: int, data: Any) -> None:
    score, keys = zip_input(2, tokens, seed)
    dominant = data.draw(st.integers(0, tokens))
    contextual = data.draw(st.integers(0, tokens - dominant))
    zipped = visionzip(score, keys, dominant, contextual)
    for image in range(2):
        best = sorted(sorted(range(tokens), key=lambda i: -score[image, i])[:dominant])
        rest = [i for i in range(tokens) if i not in best]
        targets = [rest[j * max(1, len(rest) // contextual)] for j in range(contextual)]
        others = [i for i in rest if i not in targets] if targets else []
        assert zipped.dominant[image].tolist() == best
        assert zipped.target[image].tolist() == targets
        assert zipped.others[image].tolist() == others
        for token, target in zip(others, zipped.assigned[image].tolist(), strict=True):
            near = torch.cosine_similarity(keys[image, token], keys[image, targets], dim=-1)
            assert near[target] >= near.max() - 1e-6


def test_ties_go_to_the_lowest_index() -> None:
    zipped = visionzip(torch.ones(1, 10), torch.ones(1, 10, 3), 4, 2)
    assert zipped.dominant.tolist() == [[0, 1, 2, 3]]
    assert zipped.target.tolist() == [[4, 7]]
    assert zipped.others.tolist() == [[5, 6, 8, 9]] and zipped.assigned.tolist() == [[0, 0, 0, 0]]


def test_permuted_tokens_have_the_same_dominant_ones() -> None:
    score, keys = zip_input(1, 20, 3)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    before = visionzip(score, keys, 7, 3).dominant[0].tolist()
    after = visionzip(score[:, order], keys[:, order], 7, 3).dominant[0]
    assert sorted(order[after].tolist()) == before


def test_a_contextual_token_is_target_plus_mean_or_the_mean_of_all() -> None:
    zipped = visionzip(*zip_input(3, 25, 5), 6, 7)
    filled = torch.zeros(3, 7).scatter_add_(1, zipped.assigned, torch.ones(zipped.assigned.shape)) > 0
    assert not filled.all()  # the case has targets that nothing goes to
    for average in (False, True):
        by_target, by_other = merge_weights(zipped, average)
        total = by_target.scatter_add(1, zipped.assigned, by_other)
        assert_close(total, torch.ones(3, 7) + (filled & (not average)))
        assert average or (by_target == 1).all()


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("average", [False, True])
def test_mixing_rows_sum_to_what_the_docstring_says(tower: str, average: bool) -> None:
    method = VisionZip(dominant=0.5, average=average)
    visual = shown_to(method, visual_tokens("tiles", tower, images=2))
    reduction = method.select(visual, 10)
    assert reduction.mixing is not None
    w = dense(reduction.mixing, 10, len(visual.separators))
    sums = w.sum(dim=2)
    assert ((sums - 1).abs().lt(1e-6) | (sums - 2).abs().lt(1e-6) & (not average) | (sums == 0)).all()
    assert ((sums == 0).sum(dim=1) == (3 if tower == "cls" else 0)).all()  # rows of CLS tokens mix nothing
    assert ((w > 0).sum(dim=1)[:, ~visual.separators] == 1).all()  # every token goes into one


def test_the_sequence_is_that_of_the_released_code() -> None:
    """Thumbnail block, then the tiles' dominant tokens in raster order, their CLS, their contextual ones."""
    method, budget = VisionZip(dominant=0.6, average=True), 14
    visual = shown_to(method, visual_tokens("tiles", "cls"))
    token = torch.arange(len(visual.separators)).float()[None, :, None]  # a row says which token it is
    marks = torch.tensor([[[100.0], [200.0], [300.0]]])
    visual = replace(visual, projection=Projection(token, marks, lambda rows: rows))
    blocks = []
    for tokens, part in zip(crop_tokens(visual), share_out(budget, [9, 6, 6]), strict=True):
        dominant = round(0.6 * part)
        score, keys = visual.cls[3][:, tokens], visual.keys[3][:, tokens].mean(dim=2)
        zipped = visionzip(score, keys, dominant - 1, part - dominant)
        groups = [[t, *zipped.others[0][zipped.assigned[0] == j]] for j, t in enumerate(zipped.target[0])]
        merged = [float(tokens[torch.stack(group)].float().mean()) for group in groups]
        blocks.append((tokens[zipped.dominant[0]].tolist(), merged))
    (dominant_0, merged_0), (dominant_1, merged_1), (dominant_2, merged_2) = blocks
    assert all(map(len, (dominant_1, dominant_2, merged_0, merged_1, merged_2)))
    tiles = sorted(dominant_1 + dominant_2)
    expected = [100.0, *dominant_0, *merged_0, *tiles, 200.0, 300.0, *merged_1, *merged_2]
    features = method.select(visual, budget).features
    assert features is not None
    assert_close(features[0, :, 0], torch.tensor(expected))


def test_a_crop_of_one_token_keeps_cls_alone_and_one_of_none_nothing() -> None:
    visual = shown_to(VisionZip(), visual_tokens("tiles", "cls"))
    assert visual.projection is not None and visual.projection.cls is not None
    visual = replace(visual, projection=replace(visual.projection, apply=lambda rows: rows))
    for k, crops in ((1, [0]), (2, [0, 1]), (3, [0, 1, 2])):
        features = VisionZip().select(visual, k).features
        assert features is not None
        assert torch.equal(features, visual.projection.cls[:, crops])


def test_the_blocks_that_are_read() -> None:
    layers = torch.nn.ModuleList(torch.nn.Identity() for _ in range(24))
    parts = Parts("llava", layers, layers, (), tuple(layers), True, -2)
    assert VisionZip().needs(parts) == Needs(cls=(22,), keys=(22,), projection=True)
    assert TokenCorr().needs(parts) == Needs(cls=(7, 23), keys=(23,))
    asked = Recoverable().needs(parts)
    assert asked.observe["cls"] == (23, cls_full_width) and asked.keys == (23,) and asked.text and not asked.hidden
    parts = replace(parts, has_cls=False, feature_layer=-1)
    assert VisionZip(layer=3).needs(parts) == Needs(received=(3,), keys=(3,), projection=True)
    assert TokenCorr(deep=5, shallow=5).needs(parts) == Needs(received=(5, 5), keys=(5,))
    assert Recoverable().needs(parts).received == (23,)
    with pytest.raises(ValueError, match="shallow is block 9, behind deep, block 4"):
        TokenCorr(deep=4, shallow=9).needs(parts)
    with pytest.raises(ValueError, match="visionzip: tower layer 24 is out of range"):
        VisionZip(layer=24).needs(parts)


# ---------------------------------------------------------------- tokencorr


def crops_of(kinds: list[str], size: int = 40) -> VisualTokens:
    """An image of several crops: "blank" (all keys alike), "dense" (none alike), "half" (half of them alike)."""
    keys, total = [], size * len(kinds)
    for index, kind in enumerate(kinds):
        distinct = torch.eye(size)[torch.randperm(size, generator=torch.Generator().manual_seed(index))]
        alike = {"blank": size, "half": size // 2, "dense": 0}[kind]
        distinct[:alike] = 1.0
        keys.append(distinct)
    generator = torch.Generator().manual_seed(1)
    scores = [torch.rand(1, total, generator=generator) + 1 for _ in range(2)]  # no outliers
    place = torch.arange(total)
    return VisualTokens(
        features=torch.randn(1, total, 4, generator=generator),
        grids=(Grid(0, len(kinds), 1, size),),
        separators=torch.zeros(total, dtype=torch.bool),
        cls={1: scores[0], 3: scores[1]},
        keys={3: torch.cat(keys)[None, :, None]},
        crops=Crops(place // size, place % size, len(kinds), (1, size)),
    )


def counts_in(visual: VisualTokens, reduction: Reduction) -> list[int]:
    assert visual.crops is not None
    return visual.crops.index[reduction.kept[0]].bincount(minlength=visual.crops.count).tolist()


def test_a_crop_that_repeats_gets_few_tokens_and_one_that_does_not_all() -> None:
    visual = crops_of(["blank", "dense", "half"])
    assert counts_in(visual, TokenCorr().select(visual, 120)) == [1, 40, 20]


def test_a_budget_keeps_the_ratio_between_crops() -> None:
    visual = crops_of(["dense", "half", "dense"])
    assert counts_in(visual, TokenCorr(keep=50).select(visual, 50)) == [20, 10, 20]
    assert counts_in(visual, TokenCorr(keep=115).select(visual, 115)) == [40, 35, 40]  # full crops pass on what is left
    blank = crops_of(["dense", "blank", "blank", "dense"])
    assert counts_in(blank, TokenCorr(keep=20).select(blank, 20)) == [9, 1, 1, 9]
    assert counts_in(blank, TokenCorr(keep=3).select(blank, 3)) == [2, 0, 0, 1]


@pytest.mark.parametrize("keep", [None, 2, 13, 0.4])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_token_is_folded_into_one_of_its_crop(layout: str, keep: Any) -> None:
    method = TokenCorr(keep=keep, alpha=0.0, beta=0.2)
    visual = shown_to(method, visual_tokens(layout, "cls", images=1 if keep is None else 3))
    tokens = len(visual.separators)
    reduction = method.select(visual, method.count(tokens))
    assert reduction.mixing is not None
    k = reduction.kept.shape[1]
    w = dense(reduction.mixing, k, tokens)
    assert_close(w.sum(dim=2), torch.ones(len(w), k))
    assert ((w > 0).sum(dim=1)[:, ~visual.separators] == 1).all()
    assert (w.gather(2, reduction.kept[..., None]) > 0).all()  # a kept token stays with itself
    if visual.crops is not None and k >= visual.crops.count:
        crop = visual.crops.index
        assert (crop[reduction.mixing.source] == crop[reduction.kept.gather(1, reduction.mixing.target)]).all()


def test_permuted_tokens_have_the_same_decision() -> None:
    visual = shown_to(TokenCorr(), visual_tokens("square", "cls"))
    order = torch.randperm(25, generator=torch.Generator().manual_seed(3))

    def at(values: dict[int, Tensor]) -> dict[int, Tensor]:
        return {block: value[:, order] for block, value in values.items()}

    shuffled = replace(visual, features=visual.features[:, order], cls=at(visual.cls), keys=at(visual.keys))
    for keep in (None, 9):
        method = TokenCorr(keep=keep, alpha=0.2, beta=0.15)
        before, after = (method.select(v, method.count(25)) for v in (visual, shuffled))
        assert before.mixing is not None and after.mixing is not None
        k = before.kept.shape[1]
        assert k < 25 and sorted(order[after.kept[0]].tolist()) == before.kept[0].tolist()
        into = [
            dict(zip(m.source[0].tolist(), r.kept[0][m.target[0]].tolist(), strict=True))
            for r, m in ((before, before.mixing), (after, after.mixing))
        ]
        assert {int(order[s]): int(order[t]) for s, t in into[1].items()} == into[0]


def test_global_tokens_come_first() -> None:
    deep, local = torch.full((12,), 0.01), torch.arange(12.0)
    deep[[2, 7]] = torch.tensor([0.5, 0.9])
    assert informative_order(deep, local).tolist() == [7, 2, 11, 10, 9, 8, 6, 5, 4, 3, 1, 0]


def test_neighbours_are_counted_in_chunks_as_at_once(monkeypatch: Any) -> None:
    keys = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    whole = neighbour_count(keys, 0.5)
    monkeypatch.setattr("vtc.selectors.saliency.tokencorr._CHUNK", 7)
    assert torch.equal(neighbour_count(keys, 0.5), whole)
    cosine = torch.cosine_similarity(keys[:, None], keys[None], dim=-1).fill_diagonal_(0)
    assert torch.equal(whole, (cosine > 0.5).sum(dim=1))


def test_local_counts() -> None:
    assert [local_count(d, 10) for d in (0.0, 0.05, 0.3, 0.31, 1.0)] == [1, 1, 3, 4, 10]


def test_drawing_follows_the_seed_alone_and_the_attention() -> None:
    method = TokenCorr(keep=0.3, sample=True, seed=4)
    visual = shown_to(method, visual_tokens("tiles", "cls", images=3))
    state = torch.get_rng_state()
    first = method.select(visual, 6).kept
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, method.select(visual, 6).kept)
    assert not torch.equal(first, replace(method, seed=5).select(visual, 6).kept)
    assert not torch.equal(exponential_noise(9, 0, 0), exponential_noise(9, 0, 1))
    attention = torch.tensor([0.0, 1.0, 3.0])  # the first of a race is drawn in proportion to its attention
    winners = [int((attention / exponential_noise(3, seed, 0)).argmax()) for seed in range(4000)]
    shares = torch.tensor(winners).bincount(minlength=3) / 4000
    assert shares[0] == 0 and abs(shares[2] - 0.75) < 0.03


# ---------------------------------------------------------------- hiprune, crop by crop

ANYRES = [
    pytest.param(case, id=name)
    for name, case in read(Path(__file__).parent / "golden" / "hiprune.safetensors").items()
    if "sequence" in case
]


@pytest.mark.parametrize("case", ANYRES)
def test_per_crop_is_what_the_released_code_does_with_tiles(case: Case) -> None:
    names = sorted((key for key in case.tensors if key.endswith("_full")), key=lambda key: int(key[5:-5]))
    first, deep = (case[name].reshape(-1, case[name].shape[-1])[:, 1:] for name in (names[0], names[-1]))
    crops, side = len(first), math.isqrt(first.shape[1])
    columns, rows = case.info["grid_wh"]
    place = torch.arange(columns * rows * side * side).view(rows, columns, side, side).transpose(1, 2).flatten()
    raster = torch.cat([torch.arange(side * side), side * side + place])
    visual = VisualTokens(
        features=torch.zeros(1, len(raster), 1),
        grids=(
            Grid(0, 1, side, side, kind="thumbnail"),
            Grid(side * side, 1, rows * side, columns * side, kind="tiles"),
        ),
        separators=torch.zeros(len(raster), dtype=torch.bool),
        received={8: first.flatten()[raster][None], 22: deep.flatten()[raster][None]},
        crops=Crops(raster // side**2, raster % side**2, crops, (side, side)),
    )
    official = case["sequence"]
    method = HiPrune(alpha=case.info.get("alpha", 0.1), per_crop=True)
    kept = raster[method.select(visual, len(official)).kept[0]]
    assert torch.equal(torch.stack([kept // side**2, kept % side**2], dim=1), official)
    budget = case.info.get("retention", len(official))
    counts = (raster[method.select(visual, budget).kept[0]] // side**2).bincount(minlength=crops).tolist()
    extra = budget - crops * (budget // crops)
    assert counts == [budget // crops + (crop < extra) for crop in range(crops)]  # the first crops get the remainder


def test_a_crop_that_has_less_than_its_part_passes_it_on() -> None:
    visual = shown_to(HiPrune(), visual_tokens("tiles", "joined"))
    assert counts_in(visual, HiPrune(per_crop=True).select(visual, 20)) == [8, 6, 6]


def test_buffers_stay_in_their_own_crop_and_among_what_is_visible() -> None:
    visual = shown_to(HiPrune(), visual_tokens("tiles", "joined"))
    first = torch.zeros(1, 23)
    first[0, 11] = 1.0  # the upper right corner of what is left of the first tile
    visual = replace(visual, received={1: first, 3: torch.zeros(1, 23)})
    assert visual.crops is not None
    kept = HiPrune(alpha=1.0, per_crop=True).select(visual, 15).kept[0].tolist()
    # place 5 of the tile's 9; its neighbours are 4, 6, 8 and 2, which was cut off; then the lowest index
    assert [token for token in kept if visual.crops.index[token] == 1] == [9, 10, 11, 16, 18]


def test_hidden_places_are_never_chosen() -> None:
    visible = torch.arange(9) >= 3
    for score in (torch.rand(2, 9), torch.full((2, 9), float("nan")), torch.full((2, 9), float("-inf"))):
        for k in range(1, 7):
            mask = hiprune(score, score, k, (3, 3), 1.0, visible=visible)
            assert (mask.sum(dim=1) == k).all() and not mask[:, :3].any()


def test_per_crop_without_tiles_changes_nothing() -> None:
    for layout in ("one crop", "square"):
        visual = shown_to(HiPrune(), visual_tokens(layout, "joined", images=2))
        for k in (1, 5, 12):
            ours, plain = (HiPrune(per_crop=per_crop, alpha=0.8).select(visual, k) for per_crop in (True, False))
            assert torch.equal(ours.kept, plain.kept)


@pytest.mark.parametrize(
    ("build", "error", "says"),
    [
        (lambda: HiPrune(compat=True, per_crop=True), ValueError, "use per_crop=False"),
        (lambda: HiPrune(per_crop=1), TypeError, "per_crop=1 is a int"),
        (lambda: VisionZip(keep=None), TypeError, "keep=None"),
        (lambda: VisionZip(dominant=1.5), ValueError, r"dominant=1.5 is not in \[0, 1\]"),
        (lambda: VisionZip(layer=0.5), TypeError, "layer=0.5"),
        (lambda: VisionZip(average=None), TypeError, "average=None"),
        (lambda: TokenCorr(alpha=2), ValueError, "alpha=2"),
        (lambda: TokenCorr(beta=-0.1), ValueError, "beta=-0.1"),
        (lambda: TokenCorr(keep=0), ValueError, "keep=0 keeps no token"),
        (lambda: TokenCorr(deep="last"), TypeError, "deep='last'"),
        (lambda: TokenCorr(seed=1.5), TypeError, "seed=1.5"),
        (lambda: TokenCorr(sample=2), TypeError, "sample=2"),
        (lambda: Recoverable(floor=0), ValueError, "floor=0 is below 1"),
        (lambda: Recoverable(keep=2.0), ValueError, "keep=2.0"),
    ],
)
def test_bad_fields_are_refused(build: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        build()


def test_merging_in_front_of_a_linear_projector_is_merging_behind_it() -> None:
    """Without a CLS row the two paths mix alike; they differ in order alone."""
    visual = visual_tokens("square", "rows")
    assert visual.projection is not None
    visual = replace(visual, features=visual.projection.apply(visual.projection.rows))
    for method, k in ((VisionZip(), 12), (Recoverable(keep=9), 9)):
        rows = method.select(shown_to(method, visual), k)
        behind = method.select(replace(shown_to(method, visual), projection=None), k)
        assert torch.equal(rows.kept, behind.kept) and rows.features is not None and behind.mixing is not None
        merged = ops.merge(visual.features, behind.mixing, k)[0]
        assert_close(merged.sort(dim=0).values, rows.features[0].sort(dim=0).values)


# ---------------------------------------------------------------- in a model


def decoder_input(model: Any, inputs: dict[str, Tensor], spec: str) -> Tensor:
    """What enters the first decoder layer, Tensor [B, n, D]."""
    seen: list[Tensor] = []
    with torch.no_grad(), vtc.patched(model, spec):
        layer = model.model.language_model.layers[0]
        handle = layer.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
        )
        try:
            model(**inputs)
        finally:
            handle.remove()
    return seen[0]


def test_a_llava_model_gets_cls_dominant_and_contextual_tokens() -> None:
    """The tower's own outputs, attention and keys, put together by hand."""
    family, model = EVERY["llava"], model_of("llava", "eager")
    inputs = family.inputs(model, scenario(family, "single"))
    tower, block = model.model.vision_tower, model.config.vision_feature_layer
    keys: list[Tensor] = []
    blocks = next(m for m in tower.modules() if isinstance(m, torch.nn.ModuleList))
    handle = blocks[block].self_attn.k_proj.register_forward_hook(lambda _, __, output: keys.append(output))
    with torch.no_grad():
        out = tower(inputs["pixel_values"], output_hidden_states=True, output_attentions=True)
    handle.remove()
    hidden, attention = out.hidden_states[block], out.attentions[block]
    key = keys[0].unflatten(2, (attention.shape[1], -1)).mean(dim=2)
    zipped = visionzip(attention[:, :, 0, 1:].mean(dim=1), key[:, 1:], 5, 3)
    patches = hidden[0, 1:]
    contextual = []
    for j, target in enumerate(zipped.target[0]):
        merged = patches[zipped.others[0][zipped.assigned[0] == j]]
        contextual.append(patches[target] + (merged.mean(dim=0) if len(merged) else 0))
    rows = torch.cat([hidden[0, :1], patches[zipped.dominant[0]], torch.stack(contextual)])
    expected = model.model.multi_modal_projector(rows[None]).detach()[0]
    got = decoder_input(model, inputs, f"visionzip:keep=9,dominant={2 / 3}")[0]
    start = int((inputs["input_ids"][0] == model.config.image_token_id).nonzero()[0])
    assert_close(got[start : start + 9], expected, rtol=0, atol=1e-5)
