"""VScan: what windows and the whole picture choose, plain means of what goes, and the cut in the decoder."""

from dataclasses import replace
from typing import Any

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

import vtc
from vtc import VisualTokens, VScan, VScanStage2
from vtc.method.prune import Rows
from vtc.method.visual_tokens import Crops
from vtc.model.layout import Grid
from vtc.model.parts import Parts
from vtc.selectors.crops import crop_tokens
from vtc.selectors.saliency.vscan import local_picks, merge_nearest, scan, windows


def scores(tokens: int, seed: int, images: int = 1) -> Tensor:
    return torch.rand(images, tokens, generator=torch.Generator().manual_seed(seed))


def window_by_hand(place: int, grid: tuple[int, int], side: int) -> tuple[int, int]:
    """Row and column of the window of a place."""
    (h, w), row, column = grid, place // grid[1], place % grid[1]
    return min(row // side, max(h // side, 1) - 1), min(column // side, max(w // side, 1) - 1)


def local_by_hand(score: list[float], grid: tuple[int, int], side: int, count: int, quota: bool) -> list[int]:
    of = [window_by_hand(i, grid, side) for i in range(len(score))]
    ranked = sorted(range(len(score)), key=lambda i: -score[i])
    number = len(set(of))
    if not quota:
        return sorted(i for w in set(of) for i in [j for j in ranked if of[j] == w][: count // number])
    taken: list[int] = []
    for i in ranked:
        if len(taken) < count and sum(of[j] == of[i] for j in taken) < -(-count // number):
            taken.append(i)
    return sorted(taken)


# ---------------------------------------------------------------- stage 1


@pytest.mark.parametrize("grid", [(24, 24), (7, 3), (1, 11), (13, 18), (5, 4)])
@pytest.mark.parametrize("side", [4, 6])
def test_the_last_windows_take_what_is_left_over(grid: tuple[int, int], side: int) -> None:
    found = windows(grid, side).tolist()
    by_hand = [window_by_hand(i, grid, side) for i in range(grid[0] * grid[1])]
    assert [by_hand.index(w) for w in by_hand] == [found.index(w) for w in found]
    assert max(found) + 1 == max(grid[0] // side, 1) * max(grid[1] // side, 1)


@quick
@given(
    h=st.integers(1, 14), w=st.integers(1, 14), side=st.sampled_from([3, 4, 6]), quota=st.booleans(),
    seed=st.integers(0, 99), data=st.data(),
)  # fmt: skip
def test_kept_tokens_are_the_algorithm_step_by_step(
    h: int, w: int, side: int, quota: bool, seed: int, data: Any
) -> None:
    grid, tokens = (h, w), h * w
    k = data.draw(st.integers(1, tokens))
    shallow, deep = scores(tokens, seed, 2), scores(tokens, seed + 1000, 2)
    kept = scan(shallow, deep, windows(grid, side), k, quota)
    released = scan(shallow, deep, windows(grid, side), k, quota, compat=True)
    assert kept.shape == (2, k)
    for image in range(2):
        local = local_by_hand(shallow[image].tolist(), grid, side, k // 2, quota)
        others = [i for i in deep[image].argsort(descending=True).tolist() if i not in local]
        assert kept[image].tolist() == sorted(local + others[: k - len(local)])
        assert released[image].tolist() == sorted(local + others[: k - k // 2])


def test_ties_and_nan_go_by_place() -> None:
    window = windows((12, 12), 6)
    flat = torch.full((1, 144), 0.5)
    assert local_picks(flat, window, 9, quota=False).sort().values.tolist() == [[0, 1, 6, 7, 72, 73, 78, 79]]
    assert scan(flat, flat, window, 10, quota=True)[0].tolist() == [
        0,
        1,
        2,
        3,
        4,
        5,
        6,
        7,
        8,
        72,
    ]  # two of a window, five in all
    missing = flat.clone()
    missing[0, :6] = torch.nan
    assert scan(missing, missing, window, 2, quota=False)[0].tolist() == [6, 7]
    assert scan(missing[:, :6], missing[:, :6], window[:6], 5, quota=True)[0].tolist() == [0, 1, 2, 3, 4]
    assert scan(torch.zeros(1, 144), torch.zeros(1, 144), window, 143, quota=True).shape == (1, 143)


def test_the_released_count_loses_what_windows_leave_over() -> None:
    visual = square(24, 3)
    counts = [(VScan(keep=k), VScan(keep=k, compat=True)) for k in (100, 72, 96)]
    assert [m.select(visual, m.keep).kept.shape[1] for pair in counts for m in pair] == [100, 98, 72, 68, 96, 96]


def square(side: int, seed: int, images: int = 1, cls: bool = True) -> VisualTokens:
    tokens = side * side
    of = {2: scores(tokens, seed, images), 6: scores(tokens, seed + 7, images)}
    return VisualTokens(
        features=torch.randn(images, tokens, 8, generator=torch.Generator().manual_seed(seed)),
        grids=(Grid(0, 1, side, side),),
        separators=torch.zeros(tokens, dtype=torch.bool),
        **{"cls" if cls else "received": of},
    )


@quick
@given(tokens=st.integers(2, 50), seed=st.integers(0, 99), data=st.data())
def test_merging_is_a_plain_mean_into_the_most_similar(tokens: int, seed: int, data: Any) -> None:
    x = torch.randn(2, tokens, 6, generator=torch.Generator().manual_seed(seed))
    k = data.draw(st.integers(1, tokens))
    kept = scores(tokens, seed, 2).argsort(dim=1)[:, :k].sort().values
    merged = merge_nearest(x, kept)
    for image in range(2):
        wide, own = x[image].double(), kept[image].tolist()
        groups: dict[int, list[int]] = {c: [c] for c in own}
        for i in range(tokens):
            if i not in own:
                groups[max(own, key=lambda c: float(torch.cosine_similarity(wide[i], wide[c], dim=0)))].append(i)
        for c, members in groups.items():
            mine = merged.centre[image] == c
            mean = (merged.weight[image, mine, None] * wide[merged.source[image, mine]]).sum(dim=0)
            assert_close(mean, wide[members].mean(dim=0), check_dtype=False, rtol=1e-5, atol=1e-6)


def test_equal_and_zero_tokens_go_to_the_first() -> None:
    x = torch.ones(1, 6, 3)
    x[0, 4] = 0
    merged = merge_nearest(x, torch.tensor([[1, 3]]))
    assert merged.centre.tolist() == [[1, 3, 1, 1, 1, 1]]
    assert_close(merged.weight, torch.tensor([[0.2, 1.0, 0.2, 0.2, 0.2, 0.2]]))


@pytest.mark.parametrize("tower", ["rows", "cls"])
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "square"])
def test_each_crop_is_treated_by_itself(layout: str, tower: str) -> None:
    visual = shown_to(VScan(), visual_tokens(layout, tower))
    assert visual.crops is not None
    cells = [len(tokens) for tokens in crop_tokens(visual)]
    k = sum(cells) // 3 * 2
    whole = VScan(keep=k).select(visual, k)
    assert whole.mixing is not None and whole.features is None
    into = dense(whole.mixing, k, len(visual.separators))[0]
    kept = []
    for crop, tokens in enumerate(crop_tokens(visual)):
        part = int((visual.crops.index[whole.kept[0]] == crop).sum())
        alone = replace(
            visual, features=visual.features[:, tokens], separators=visual.separators[tokens],
            crops=Crops(torch.zeros(len(tokens), dtype=torch.long), visual.crops.place[tokens], 1, visual.crops.grid),
            **{name: {block: score[:, tokens] for block, score in getattr(visual, name).items()}
               for name in ("cls", "received")},
        )  # fmt: skip
        if part < len(tokens):
            kept += tokens[VScan().select(alone, part).kept[0]].tolist()
        else:
            kept += tokens.tolist()
        mine = visual.crops.index[whole.kept[0]] == crop
        outside = torch.ones(len(visual.separators), dtype=torch.bool)
        outside[tokens] = False
        assert not into[mine][:, outside].any()
    assert whole.kept[0].tolist() == sorted(kept)
    assert_close(into.sum(dim=1), torch.ones(k))


def test_a_group_of_images_gets_what_each_gets_alone() -> None:
    for cls in (True, False):
        together = VScan(keep=31).select(square(13, 5, 3, cls), 31)
        for index in range(3):
            visual = square(13, 5, 3, cls)
            alone = slice(index, index + 1)
            of = {name: {b: s[alone] for b, s in getattr(visual, name).items()} for name in ("cls", "received")}
            found = VScan(keep=31).select(replace(visual, features=visual.features[alone], **of), 31)
            assert torch.equal(found.kept[0], together.kept[index])


# ---------------------------------------------------------------- stage 2, and both


def test_stage_two_ranks_by_the_last_row_of_the_layers_own_attention() -> None:
    model = model_of("llava", "eager")
    inputs = EVERY["llava"].inputs(model, scenario(EVERY["llava"], "single"))
    with torch.no_grad():
        attention = model(**inputs, output_attentions=True).attentions[2][0, :, -1].mean(dim=0)
        with vtc.patched(model, "vscan_stage2:keep=5,layer=2"):
            model(**inputs)
            trace = vtc.trace(model)
    shown = (inputs["input_ids"][0] == model.config.image_token_id).nonzero()[:, 0]
    assert trace.images[0].kept(2).tolist() == attention[shown].topk(5).indices.sort().values.tolist()
    assert trace.tokens_per_layer[:, 0].tolist()[1:3] == [len(shown), 5]


def test_equal_attention_keeps_the_first() -> None:
    rows = Rows(1, torch.zeros(1, 6, 4), torch.tensor([[0, 1, 1, 1, 1, 0]]).bool(), torch.ones(1, 6).bool(),
                torch.tensor([[0, 0, 0, 0, 0, 1]]).bool())  # fmt: skip

    class Flat(VScanStage2):
        def score(self, rows: Rows, memory: Any) -> Tensor:
            return torch.ones(1, 6)

    assert Flat().decide(rows, [2], {}).alive.tolist() == [[False, True, True, False, False, False]]


def test_both_stages_are_one_method() -> None:
    first, second = VScan(keep=96, later_keep=32).split()
    assert isinstance(second, VScanStage2) and second.keep == 32 and first.keep == 96
    assert VScan(keep=1.0).split() == (VScan(keep=1.0),) and len(VScan(later_keep=1.0).split()) == 1
    assert [VScanStage2().schedule(depth) for depth in (32, 28, 4, 1)] == [(16,), (14,), (2,), (1,)]
    assert VScanStage2(layer=3).schedule(32) == (3,) and VScanStage2().count(96) == 32
    family, model = EVERY["llava"], model_of("llava")
    inputs = family.inputs(model, scenario(family, "single"))
    with torch.no_grad(), vtc.patched(model, "vscan:keep=0.5,later_keep=0.5,layer=1"):
        model(**inputs)
        trace = vtc.trace(model)
    total = int(trace.original_tokens[0])
    assert trace.tokens_per_layer[:2, 0].tolist() == [round(total / 2), round(round(total / 2) / 2)]


def test_a_llava_model_gets_means_of_projected_tokens() -> None:
    family, model = EVERY["llava"], model_of("llava", "eager")
    inputs = family.inputs(model, scenario(family, "single"))
    tower = model.model.vision_tower
    with torch.no_grad():
        out = tower(inputs["pixel_values"], output_hidden_states=True, output_attentions=True)
        block = model.config.vision_feature_layer
        x = model.model.multi_modal_projector(out.hidden_states[block][:, 1:])
    depth = len(out.attentions)
    rows = [out.attentions[i][:, :, 0, 1:].mean(dim=1) for i in (round(5 * depth / 24), depth + block)]
    side = round(x.shape[1] ** 0.5)
    kept = scan(*rows, windows((side, side), 6), 7, quota=False)
    merged = merge_nearest(x, kept)
    expected = []
    for c in kept[0]:
        mine = merged.centre[0] == c
        expected.append(x[0, merged.source[0, mine]].mean(dim=0))
    got = decoder_input(model, inputs, "vscan:keep=7,later_keep=1.0")[0]
    start = int((inputs["input_ids"][0] == model.config.image_token_id).nonzero()[0])
    assert_close(got[start : start + 7], torch.stack(expected), rtol=0, atol=1e-5)


# ---------------------------------------------------------------- what is read, what is refused


def parts_of(depth: int, has_cls: bool = True, feature_layer: int = -2) -> Parts:
    layers = torch.nn.ModuleList(torch.nn.Identity() for _ in range(depth))
    return Parts("some", layers, layers, (), tuple(layers), has_cls, feature_layer)


def test_the_blocks_that_are_read() -> None:
    assert VScan().needs(parts_of(24)).cls == (5, 22)
    assert VScan().needs(parts_of(32, has_cls=False)).received == (7, 31)
    assert VScan().needs(parts_of(2)).cls == (0,)
    assert VScan(shallow=1, deep=-1).needs(parts_of(24)).cls == (1, 23)
    with pytest.raises(ValueError, match=r"shallow is block 9, behind deep, block 3; exchange them"):
        VScan(shallow=9, deep=3).needs(parts_of(24))
    with pytest.raises(ValueError, match="tower layer 30 is out of range"):
        VScan(deep=30).needs(parts_of(24))


@pytest.mark.parametrize(
    ("build", "error", "says"),
    [
        (lambda: VScan(keep=0), ValueError, "keep=0 keeps no token"),
        (lambda: VScan(later_keep=1.5), ValueError, r"later_keep=1.5 is not in \(0, 1\]"),
        (lambda: VScan(later_keep=True), TypeError, "later_keep=True is a bool"),
        (lambda: VScan(layer=0), ValueError, "layer=0 is below 1"),
        (lambda: VScan(shallow=0.5), TypeError, "shallow=0.5"),
        (lambda: VScan(deep="last"), TypeError, "deep='last'"),
        (lambda: VScan(compat=1), TypeError, "compat=1 is a int"),
        (lambda: VScanStage2(layer=2.5), TypeError, "layer=2.5"),
        (lambda: VScanStage2(keep=-1), ValueError, "keep=-1"),
    ],
)
def test_bad_fields_are_refused(build: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        build()
