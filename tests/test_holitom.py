"""HoliTom: its outer stage against a loop over frames and tokens, and both stages in models."""

import math
from itertools import pairwise, product
from typing import Any

import pytest
import torch
from contract import EVERY, model_of, ran
from torch import Tensor
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

import vtc
from vtc import HoliTom, HoliTomInner, Reduction, VisualTokens, ops
from vtc.method.kinds import split_kinds
from vtc.model.adapter import adapter_class
from vtc.model.layout import Grid, VisualInput
from vtc.selectors.video.holitom_segments import cluster, corrected_ratio, frame_similarity, merge_frames, segment

# ---------------------------------------------------------------- as the words say it


def best_cut(static: list[list[bool]], longest: int) -> tuple[list[tuple[int, int]], int]:
    """The best of all cuts; of equal ones that with the shortest last segment, then the shortest one before it..."""
    frames, found = len(static) + 1, []
    for borders in product((False, True), repeat=frames - 1):
        starts = [0, *(frame + 1 for frame, border in enumerate(borders) if border)]
        cut = list(zip(starts, [*(start - 1 for start in starts[1:]), frames - 1], strict=True))
        if max(last - first + 1 for first, last in cut) <= longest:
            spared = sum((b - a) * sum(map(all, zip(*static[a:b], strict=True))) for a, b in cut if b > a)
            found.append((-spared, [last - first for first, last in reversed(cut)], cut))
    spared, _, cut = min(found)
    return cut, -spared


def peaks(x: Tensor, count: int, neighbours: int) -> tuple[list[int], list[int]]:
    """Centres, ascending, and for each token the centre that it joins."""
    apart = [[float((one - other).square().sum().sqrt()) / x.shape[1] ** 0.5 for other in x] for one in x]
    near = min(neighbours, count)
    density = [math.exp(-sum(d * d for d in sorted(row)[:near]) / near) for row in apart]
    largest = max(map(max, apart))
    gap = [
        min((d for j, d in enumerate(row) if density[j] > density[i]), default=largest) for i, row in enumerate(apart)
    ]
    centres = sorted(sorted(range(len(x)), key=lambda i: (-density[i] * gap[i], i))[:count])
    return centres, [i if i in centres else min(centres, key=lambda c: apart[i][c]) for i in range(len(x))]


def by_the_words(frames: Tensor, attention: Tensor, rho: float, tau: float, beta: float) -> list[dict[str, Any]]:
    """What is left of [F, S, D] in the order of segments, static tokens first: frame, position, new token, sources."""
    frames, left = frames.double(), []
    similar = [torch.cosine_similarity(a, b, dim=-1) for a, b in pairwise(frames)]
    cut, spared = best_cut([(s > tau).tolist() for s in similar], len(frames))
    total = frames.shape[0] * frames.shape[1]
    ratio = min(rho / ((total - spared) / total), 1.0)
    for first, last in cut:
        places = [
            p for p in range(frames.shape[1]) if last > first and all(similar[f][p] > tau for f in range(first, last))
        ]
        count = round(len(places) * ratio)
        if count:
            mean = torch.stack([frames[first : last + 1, p].mean(dim=0) for p in places])
            centres, joined = peaks(mean, count, 7)
            for centre in centres:
                members = [i for i, c in enumerate(joined) if c == centre and i != centre]
                new = mean[centre] if not members else beta * mean[centre] + (1 - beta) * mean[members].mean(dim=0)
                sources = {(f, places[i]) for f in range(first, last + 1) for i in (centre, *members)}
                left.append({"frame": first, "place": places[centre], "new": new, "sources": sources})
        for frame in range(first, last + 1):
            moving = [p for p in range(frames.shape[1]) if p not in places]
            best = sorted(moving, key=lambda p: (-float(attention[frame, p]), p))[: math.ceil(len(moving) * ratio)]
            left += [
                {"frame": frame, "place": p, "new": frames[frame, p], "sources": {(frame, p)}} for p in sorted(best)
            ]
    return left


def video(seed: int, frames: int, tokens: int, width: int = 12) -> Tensor:
    """Tokens that repeat the frame before with noise, or are new."""
    gen = torch.Generator().manual_seed(seed)
    found = [torch.randn(tokens, width, generator=gen)]
    for _ in range(frames - 1):
        new = torch.rand(tokens, 1, generator=gen) < 0.2
        noisy = found[-1] + 0.2 * torch.randn(tokens, width, generator=gen)
        found.append(torch.where(new, torch.randn(tokens, width, generator=gen), noisy))
    return torch.stack(found)


def shown(frames: Tensor, attention: Tensor, grid: Grid, packed: bool = True) -> VisualTokens:
    """The frames as a selector sees them; separators are all 7, and have no attention."""
    features = torch.full((1, len(grid), frames.shape[2]), 7.0)
    received = torch.full((1, len(grid)), float("nan"))
    features[0, grid.tokens().flatten()] = frames.flatten(0, 1)
    received[0, grid.tokens().flatten()] = attention.flatten()
    separators = VisualInput(0, "video", torch.arange(len(grid)), (grid,)).separators()
    return VisualTokens(features, (grid,), separators, "video", packed=packed, received={2: received})


def standing(visual: VisualTokens, reduction: Reduction) -> Tensor:
    """The new tokens [k, D] in the order in which they stand."""
    new = ops.merge(visual.features, reduction.mixing, reduction.kept.shape[1])[0]
    return new if reduction.order is None else new[reduction.order[0]]


# ---------------------------------------------------------------- the outer stage


@pytest.mark.parametrize("longest", [1024, 3, 1])
@pytest.mark.parametrize("frames", range(1, 9))
def test_segments_are_the_best_of_all_cuts(frames: int, longest: int) -> None:
    for seed in range(12):
        gen = torch.Generator().manual_seed(seed)
        positions = 1 + seed % 5
        similarity = (torch.rand(frames - 1, positions, generator=gen) * 4).round() / 4
        for tau in (0.0, 0.25, 0.5):
            expected = best_cut((similarity > tau).tolist(), longest) if frames > 1 else ([(0, 0)], 0)
            assert segment(similarity, tau, longest) == expected


@pytest.mark.parametrize("newline", ["none", "end", "rows"])
@pytest.mark.parametrize(("frames", "rho"), [(1, 0.3), (5, 0.1), (8, 0.25), (8, 0.9)])
@pytest.mark.parametrize("seed", range(3))
def test_the_outer_stage_is_what_the_words_say(seed: int, frames: int, rho: float, newline: str) -> None:
    grid = Grid(0, frames, 4, 5, row_end=int(newline == "rows"), end=int(newline == "end"))
    x = video(seed, frames, 20)
    attention = torch.rand(frames, 20, generator=torch.Generator().manual_seed(seed))
    visual = shown(x, attention, grid)
    reduction = HoliTom(keep=rho, tau=0.8).select(visual, len(grid))
    left = by_the_words(x, attention, rho, 0.8, 0.6)
    cells = grid.tokens().flatten(1)
    expected = {int(cells[token["frame"], token["place"]]): token for token in left}
    assert len(expected) == len(left)
    separators = {
        "none": set(),
        "end": {len(grid) - 1},
        "rows": {place + 5 - place % 6 for place in expected},  # a row is five tokens and its newline
    }[newline]
    assert reduction.kept[0].tolist() == sorted({*expected} | separators)
    if newline == "rows":
        order = sorted(expected)
        new = standing(visual, reduction)[~visual.separators[reduction.kept[0]]]
    else:
        order = list(expected)
        new = standing(visual, reduction)[: len(order)]
    assert_close(new.double(), torch.stack([expected[place]["new"] for place in order]), rtol=0, atol=1e-5)
    mixing, came = reduction.mixing, {}
    for source, target in zip(mixing.source[0].tolist(), mixing.target[0].tolist(), strict=True):
        came.setdefault(int(reduction.kept[0, target]), set()).add(source)
    told = {place: {int(cells[f, p]) for f, p in token["sources"]} for place, token in expected.items()}
    assert came == told | {place: {place} for place in separators}


@pytest.mark.parametrize("beta", [0.6, 0.0, 1.0, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_of_a_token_add_up_to_one_and_counts_to_the_budget(beta: float | None, dtype: torch.dtype) -> None:
    x, attention = video(0, 10, 30).to(dtype), torch.rand(10, 30, generator=torch.Generator().manual_seed(0))
    merged = merge_frames(x, attention, 0.2, 0.8, beta)
    total = torch.zeros(300).index_add(0, merged.target, merged.weight)
    assert_close(total[merged.kept.flatten()], torch.ones(int(merged.kept.sum())))
    assert not total[~merged.kept.flatten()].any()
    assert len(merged.source.unique()) == len(merged.source)
    spared = segment(frame_similarity(x), 0.8)[1]
    ratio = corrected_ratio(0.2, 300, spared)
    for first, last in merged.segments:
        inside = torch.arange(first * 30, (last + 1) * 30)
        static = [place for place in range(30) if merged.static[first, place]]
        members = torch.isin(merged.source, inside) & torch.isin(
            merged.target, first * 30 + torch.tensor(static).long()
        )
        repeated = int(members.sum()) // (last - first + 1)  # every static position of a segment that has clusters
        assert len(static) == round(repeated * ratio)
        for frame in range(first, last + 1):
            alone = int((merged.kept & ~merged.static)[frame].sum())
            if static or last == first:
                assert alone == math.ceil((30 - repeated) * ratio)


@pytest.mark.parametrize("neighbours", [1, 7, 20])
@pytest.mark.parametrize("count", [1, 5, 12, 40])
def test_clusters_are_those_of_density_peaks(count: int, neighbours: int) -> None:
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(count))
    centres, member_of, weight = cluster(x, count, 0.6, neighbours)
    expected, joined = peaks(x.double(), count, neighbours)
    assert centres.tolist() == expected and centres[member_of].tolist() == joined
    assert_close(torch.zeros(count).index_add(0, member_of, weight), torch.ones(count))


def test_a_similarity_of_just_tau_is_not_static() -> None:
    first, second = torch.eye(4)[:2], torch.eye(4)[[0, 3]]  # the cosines of the two positions are 1 and 0
    merged = merge_frames(torch.stack([first, second]), torch.ones(2, 2), 0.9, 0.0)
    assert merged.segments == [(0, 1)] and merged.static.tolist() == [[True, False], [False, False]]
    assert merged.kept.tolist() == [[True, True], [False, True]]


def test_equal_frames_become_one_and_equal_attention_keeps_the_first() -> None:
    one = torch.randn(1, 30, 8, generator=torch.Generator().manual_seed(0))
    merged = merge_frames(one.expand(6, -1, -1), torch.ones(6, 30), 0.1, 0.8)
    assert merged.segments == [(0, 5)] and merged.kept.sum(dim=1).tolist() == [18, 0, 0, 0, 0, 0]
    merged = merge_frames(one, torch.ones(1, 30), 0.25, 0.8)
    assert merged.kept[0].nonzero()[:, 0].tolist() == list(range(8))


def test_something_is_left_of_what_rounds_to_nothing() -> None:
    merged = merge_frames(torch.ones(2, 2, 4), torch.ones(2, 2), 0.1, 0.8)
    assert merged.kept.tolist() == [[True, False], [False, False]]
    assert sorted(merged.source.tolist()) == [0, 1, 2, 3] and merged.target.tolist() == [0] * 4


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.0])
def test_values_without_direction_or_rank_never_lead_astray(bad: float) -> None:
    x, attention = video(0, 6, 20), torch.rand(6, 20, generator=torch.Generator().manual_seed(0))
    x[2, ::2], x[:, 3], attention[1, ::2] = bad, bad, bad
    grid = Grid(0, 6, 4, 5, end=1)
    reduction = HoliTom(keep=0.2).select(shown(x, attention, grid), len(grid))
    kept = reduction.kept[0]
    assert torch.equal(kept, kept.unique()) and int(kept[-1]) == len(grid) - 1
    assert 0.1 * len(grid) < len(kept) < 0.4 * len(grid)
    assert torch.equal(
        torch.bincount(reduction.mixing.target[0], minlength=len(kept)) > 0, torch.ones(len(kept)).bool()
    )


def test_tokens_that_keep_their_positions_keep_their_order() -> None:
    x, attention = video(1, 8, 20), torch.rand(8, 20, generator=torch.Generator().manual_seed(1))
    grid = Grid(0, 8, 4, 5)
    moved, still = (HoliTom(keep=0.25).select(shown(x, attention, grid, packed), 160) for packed in (True, False))
    assert torch.equal(moved.kept, still.kept) and moved.order is not None and still.order is None
    assert not torch.equal(moved.order[0], torch.arange(len(moved.order[0])))


def test_cls_tokens_of_frames_go_with_them() -> None:
    x, attention = video(1, 8, 20), torch.rand(8, 20, generator=torch.Generator().manual_seed(1))
    x[1:] = x[0]
    grid = Grid(0, 8, 4, 5, front=1)
    kept = HoliTom(keep=0.1).select(shown(x, attention, grid), len(grid)).kept[0]
    assert int(kept[0]) == 0 and int(kept[-1]) < grid.frame and len(kept) == 1 + 16


def test_a_count_is_a_share_and_all_is_all() -> None:
    x, attention = video(1, 8, 20), torch.rand(8, 20, generator=torch.Generator().manual_seed(1))
    visual = shown(x, attention, Grid(0, 8, 4, 5))
    kept = [HoliTom(keep=keep).select(visual, 160).kept for keep in (0.25, 40, 160, 999)]
    assert torch.equal(kept[0], kept[1])
    assert torch.equal(kept[2], torch.arange(160)[None]) and torch.equal(kept[3], kept[2])


class Largest(TorchDispatchMode):
    """The most numbers that a tensor had."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for value in output if isinstance(output, (tuple, list)) else (output,):
            if isinstance(value, Tensor):
                self.numbers = max(self.numbers, value.numel())
        return output


def test_nothing_grows_beyond_the_video_itself() -> None:
    """64 frames of 196 tokens, most of them static: no map of all pairs, no table of windows by positions."""
    x = video(0, 64, 196, 64)
    grid = Grid(0, 64, 14, 14)
    visual = shown(x, torch.rand(64, 196, generator=torch.Generator().manual_seed(0)), grid)
    with Largest() as largest:
        HoliTom(keep=0.1).select(visual, len(grid))
    assert largest.numbers <= x.numel()


# ---------------------------------------------------------------- in models


def test_llava_onevision_is_shown_what_the_words_say() -> None:
    """From pixels to what enters the decoder: the tower's attention, pooled as features are, and the released order."""
    model, family = model_of("llava_onevision_video", "eager"), EVERY["llava_onevision_video"]
    composite: Any = model.model
    gen = torch.Generator().manual_seed(0)
    pixels = torch.randn(1, 4, 3, 16, 16, generator=gen).repeat_interleave(2, dim=1)
    pixels[0, 1::2, :, :8] = torch.randn(4, 3, 8, 16, generator=gen)  # of each second frame only the lower half is old
    frames, start = pixels.shape[1], 3
    ids = torch.tensor([[10, 11, 12, *[family.image_id] * (4 * frames + 1), 13, 14]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values_videos": pixels}
    entered: dict[str, Any] = {}
    handle = composite.language_model.layers[0].register_forward_pre_hook(
        lambda _, args, kwargs: entered.update(kwargs, hidden=args[0]), with_kwargs=True
    )
    try:
        with torch.no_grad():
            model(**inputs)
            whole = entered["hidden"][0]
            x = whole[start : start + 4 * frames].view(frames, 4, -1)
            tau = float(torch.cosine_similarity(x[1:], x[:-1], dim=-1).quantile(0.6))
            seen = composite.vision_tower(pixels[0], output_attentions=True).attentions
            with vtc.patched(model, HoliTom(keep=0.4, tau=tau, inner=False)):
                model(**inputs)
                (image,) = vtc.trace(model).images
    finally:
        handle.remove()
    received = seen[adapter_class(model)(model).parts.feature_layer].mean(dim=(1, 2))
    attention = composite.apply_pooling(received[:, :, None])[..., 0]
    left = by_the_words(x, attention, 0.4, tau, 0.6)
    came = {len(token["sources"]) for token in left}
    assert 1 in came and max(came) > 1
    expected = torch.cat([whole[:start], torch.stack([token["new"] for token in left]), whole[start + 4 * frames :]])
    assert_close(entered["hidden"][0], expected.float(), rtol=0, atol=1e-5)
    assert entered["position_ids"][0].tolist() == list(range(len(expected)))
    places = sorted(4 * token["frame"] + token["place"] for token in left)
    assert image.kept().tolist() == [*places, 4 * frames]


@pytest.mark.parametrize(("family", "packed"), [("llava_onevision_video", True), ("qwen2_5_vl_video", False)])
def test_a_selector_is_told_whether_places_are_numbered_anew(family: str, packed: bool) -> None:
    seen = []

    class Seeing(HoliTom):
        def select(self, visual: VisualTokens, k: int) -> Reduction:
            seen.append(visual.packed)
            return super().select(visual, k)

    ran(family, Seeing(inner=False))
    assert seen == [packed]


@pytest.mark.parametrize("family", ["llava", "llava_next", "llava_onevision_video", "qwen2_5_vl_video"])
@pytest.mark.parametrize("causal", [True, False])
def test_holitom_equals_its_stages_put_together(family: str, causal: bool) -> None:
    inner = {"layer": 2, "causal": causal}
    _, both, trace = ran(family, HoliTom(keep=0.5, inner_keep=0.4, **inner), "ragged")
    apart = [HoliTom(keep=0.5, inner=False), HoliTomInner(keep=0.4, **inner)]
    _, expected, _ = ran(family, apart, "ragged")
    _, outer, first = ran(family, apart[0], "ragged")
    assert torch.equal(both.logits, expected.logits) and not torch.equal(both.logits, outer.logits)
    assert torch.equal(trace.tokens_per_layer[:2], first.tokens_per_layer[:2])
    left = [max(round(0.4 * n), 1) for n in first.tokens_per_layer[0].tolist()]
    assert trace.tokens_per_layer[2:].tolist() == [left] * (len(trace.tokens_per_layer) - 2)


def test_holitom_is_both_of_its_stages() -> None:
    assert split_kinds([HoliTom()]) == (None, HoliTom(), [HoliTomInner()])
    assert split_kinds([HoliTom(inner=False)]) == (None, HoliTom(inner=False), [])
    assert HoliTom(keep=1.0).split() == (HoliTom(keep=1.0),)
    assert HoliTom(keep=1).adaptive and not HoliTom(keep=1.0).adaptive


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"keep": 0.0}, ("keep=0.0", "share")),
        ({"keep": None}, ("keep=None", "share")),
        ({"tau": 1.5}, ("tau=1.5", "cosine")),
        ({"beta": -0.1}, ("beta=-0.1", "None")),
        ({"neighbours": 0}, ("neighbours=0", "below 1")),
        ({"inner": 1}, ("inner=1", "True or False")),
        ({"inner_keep": 2.0}, ("inner_keep=2.0", "share")),
        ({"layer": 0}, ("layer=0", "1 or more")),
        ({"causal": None}, ("causal=None", "True or False")),
    ],
)
def test_bad_fields_are_named(fields: dict, words: tuple[str, ...]) -> None:
    with pytest.raises((TypeError, ValueError)) as error:
        HoliTom(**fields)
    assert all(word in str(error.value) for word in words)
