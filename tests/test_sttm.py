"""STTM: trees and merging over time against loops over nodes, inside the decoder and in front of it."""

import itertools
from typing import Any

import pytest
import torch
from contract import EVERY, model_of
from families import Row, scenario
from test_holitom import shown, video
from tiny_videos import Mixed
from torch import Tensor
from torch.testing import assert_close

import vtc
from vtc import STTM, STTMOuter, ops
from vtc.model.layout import Grid
from vtc.ops.mixing import Mixing
from vtc.planning.calibrate import measure
from vtc.prunes.sttm_tree import Merged, Rule, merge_video

# ---------------------------------------------------------------- as the words say it


def cosine(a: Tensor, b: Tensor, parts: int = 1) -> float:
    pairs = zip(a.chunk(parts), b.chunk(parts), strict=True)
    return sum(float(p @ q / (p.norm() * q.norm())) if p.any() and q.any() else 0.0 for p, q in pairs) / parts


def nodes_of(frame: Tensor, there: Tensor, rule: Rule) -> list[tuple[list[tuple[int, int]], Tensor]]:
    """The nodes of a frame [H, W, D] by their first cell: their cells and their means (sums, where weighted)."""
    height, width, _ = frame.shape
    levels = [
        {
            (i, j): ([(i, j)], [], frame[i, j] * alive, bool(alive))
            for i, row in enumerate(there)
            for j, alive in enumerate(row)
        }
    ]
    while rule.root >= 0 and min(height, width) > 2:
        blocks: dict[tuple[int, int], list] = {}
        for i, j in levels[-1]:
            blocks.setdefault(((i + height % 2) // 2, (j + width % 2) // 2), []).append((i, j))
        level = {}
        for key, children in blocks.items():
            own = [levels[-1][child] for child in children]
            values = [value for _, _, value, alive in own if alive]
            total = sum(values) if values else torch.zeros_like(own[0][2])
            value = total if rule.weighted or not values else total / len(values)
            level[key] = [cell for one in own for cell in one[0]], children, value, bool(values)
        levels.append(level)
        height, width = -(-height // 2), -(-width // 2)
    found = []

    def visit(depth: int, key: tuple[int, int]) -> None:
        cells, children, value, alive = levels[depth][key]
        compared = [levels[depth - 1][child] for child in children] if depth else []
        if depth and len(children) < 4 and rule.corner:
            compared.append(levels[depth - 1][0, 0])
        if all(cosine(value, other[2], rule.parts) >= rule.tau_s for other in compared if other[3]):
            if alive:
                found.append((sorted(cells), value))
            return
        for child in children:
            visit(depth - 1, child)

    top = max(len(levels) - 1 - rule.root, 0) if rule.root >= 0 else 0
    for key in levels[top]:
        visit(top, key)
    return sorted(found, key=lambda node: node[0])


def groups_of(pairs: list[tuple[int, int]], count: int, components: bool) -> list[int]:
    name = list(range(count))
    while True:
        lowest = [min(name[a], name[b]) for a, b in pairs]
        new = list(name)
        for (a, b), low in zip(pairs, lowest, strict=True):
            new[a], new[b] = min(new[a], low), min(new[b], low)
        new = [new[one] for one in new]
        if (components and new == name) or (not components and [new[one] for one in new] == new):
            return new
        name = new


def by_the_words(x: Tensor, rule: Rule, there: Tensor | None = None) -> dict[int, tuple[Tensor, set[int]]]:
    """First cell of a merged token -> the token, and all of its cells that are there; [T, H, W, D]."""
    x, (frames, height, width, _) = x.double(), x.shape
    there = torch.ones(frames, height, width, dtype=torch.bool) if there is None else there
    nodes = [(t, *node) for t in range(frames) for node in nodes_of(x[t], there[t], rule)]
    pairs = [
        (a, b)
        for (a, (t, own, u)), (b, (s, other, v)) in itertools.product(enumerate(nodes), repeat=2)
        if rule.tau_t and s == t + 1 and cosine(u, v, rule.parts) >= rule.tau_t
        if set(own) <= set(other) or set(other) <= set(own)
    ]
    # the order in which the first of several nodes was found is that of frame, top, left
    name = groups_of(pairs, len(nodes), rule.components)
    merged = {}
    for root in sorted(set(name)):
        of = [nodes[i] for i in range(len(nodes)) if name[i] == root]
        cells = {t * height * width + i * width + j for t, own, _ in of for i, j in own if there[t, i, j]}
        total = sum(value for _, _, value in of)
        first = min(t * height * width + i * width + j for t, own, _ in of[:1] for i, j in own if there[t, i, j])
        merged[first] = total / (len(cells) if rule.weighted else len(of)), cells
    return merged


def merged_as(x: Tensor, merged: Merged) -> dict[int, tuple[Tensor, set[int]]]:
    """The same of a decision."""
    own = merged.weight > 0
    kept, target = merged.into[own].unique(return_inverse=True)
    cells = own.nonzero()[:, 0]
    new = ops.merge(x.flatten(0, 2)[None], Mixing(cells[None], target[None], merged.weight[own][None]), len(kept))[0]
    return {int(k): (new[i].double(), set(cells[target == i].tolist())) for i, k in enumerate(kept)}


def check_same(found: dict[int, Any], expected: dict[int, Any]) -> None:
    assert {k: cells for k, (_, cells) in found.items()} == {k: cells for k, (_, cells) in expected.items()}
    for k, (new, _) in found.items():
        assert_close(new, expected[k][0].double(), rtol=0, atol=1e-5)


def clip(seed: int, frames: int, height: int, width: int, channels: int = 12) -> Tensor:
    """Smooth in space and time, with cuts: trees stop at all levels."""
    gen = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, channels, 3, 3, generator=gen)
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="nearest")[0].permute(1, 2, 0)
    steps = video(seed, frames, height * width, channels).view(frames, height, width, channels)
    return smooth + 0.5 * steps * (torch.rand(1, height, width, 1, generator=gen) < 0.3) + 0.1 * steps


def rule(**settings: Any) -> Rule:
    return STTM(**settings)


# ---------------------------------------------------------------- the mathematics


@pytest.mark.parametrize(
    "settings",
    [{}, {"tau_s": 0.5, "tau_t": 0.3}, {"weighted": True}, {"parts": 3}, {"corner": False}, {"components": True},
     {"tau_t": None}, {"root": 0}, {"root": 2}, {"root": -1}],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("grid", [(1, 8, 8), (5, 7, 9), (3, 13, 5), (4, 1, 6), (3, 2, 2), (2, 3, 3), (9, 4, 6)])
def test_a_video_is_merged_as_the_words_say(grid: tuple[int, int, int], settings: dict[str, Any]) -> None:
    for seed in range(3):
        x, how = clip(seed, *grid), rule(**settings)
        check_same(merged_as(x, merge_video(x, how)), by_the_words(x, how))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("grid", [(4, 7, 6), (3, 8, 8), (1, 5, 5)])
def test_cells_that_are_gone_are_left_out(grid: tuple[int, int, int], weighted: bool) -> None:
    for seed in range(4):
        x, how = clip(seed, *grid), rule(weighted=weighted)
        there = torch.rand(grid, generator=torch.Generator().manual_seed(seed)) < (0.9, 0.5, 0.1, 0.02)[seed]
        there.flatten()[seed] = True
        check_same(merged_as(x, merge_video(x, how, there)), by_the_words(x, how, there))
        other = torch.where(there[..., None], x, float("nan"))
        check_same(merged_as(x, merge_video(other, how, there)), by_the_words(x, how, there))


def test_the_released_groups_may_be_parts_of_components_and_never_more() -> None:
    parts = 0
    for seed in range(8):
        x = clip(seed, 9, 8, 8)
        released, whole = (merge_video(x, rule(components=components)) for components in (False, True))
        assert torch.equal(released.node, whole.node)
        assert torch.equal(whole.into[released.into], whole.into)
        parts += len(released.into.unique()) - len(whole.into.unique())
    assert parts > 0


def test_equal_frames_become_one_and_thresholds_are_included() -> None:
    x = clip(0, 1, 6, 6).expand(5, -1, -1, -1)
    assert torch.equal(merge_video(x, rule()).into.unique(), merge_video(x[:1], rule()).into.unique())
    flat = torch.tensor([1.0, 0.0]).expand(3, 4, 4, 2)
    assert merge_video(flat, rule(tau_s=1.0, tau_t=1.0, root=0)).into.unique().tolist() == [0, 2, 8, 10]
    assert merge_video(torch.zeros(3, 4, 4, 2), rule()).into.tolist() == list(range(48))


def test_channels_that_can_not_be_cut_are_refused() -> None:
    with pytest.raises(ValueError, match="parts=5: 12 channels"):
        merge_video(clip(0, 2, 4, 4), rule(parts=5))


@pytest.mark.parametrize("method", [STTM, STTMOuter])
@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"tau_s": 1.5}, ("tau_s=1.5", "0.85")),
        ({"tau_t": -1.0}, ("tau_t=-1.0", "None")),
        ({"root": -2}, ("root=-2", "-1 for no tree")),
        ({"parts": 0}, ("parts=0", "below 1")),
        ({"weighted": 1}, ("weighted=1", "True or False")),
        ({"components": None}, ("components=None",)),
    ],
)
def test_bad_fields_are_named(method: type, fields: dict, words: tuple[str, ...]) -> None:
    with pytest.raises((TypeError, ValueError)) as error:
        method(**fields)
    assert all(word in str(error.value) for word in words)


def test_layer_0_is_another_method_and_a_keep_is_refused() -> None:
    with pytest.raises(ValueError, match=r"layer=0 is below 1; .* sttm_outer"):
        STTM(layer=0)
    with pytest.raises(ValueError, match=r"no field 'keep'.*vtc.calibrate"):
        vtc.patch(model_of("llava_onevision_video"), "sttm:keep=0.5")


# ---------------------------------------------------------------- in front of the decoder


@pytest.mark.parametrize("newline", ["none", "end", "rows"])
def test_the_embeddings_are_merged_as_the_words_say(newline: str) -> None:
    grid = Grid(0, 4, 6, 7, row_end=int(newline == "rows"), end=int(newline == "end"))
    x = clip(2, 4, 6, 7)
    visual = shown(x.flatten(1, 2), torch.ones(4, 42), grid)
    expected = by_the_words(x, STTMOuter())
    reduction = STTMOuter().select(visual, len(grid))
    cells = grid.tokens().flatten()
    own = torch.isin(reduction.kept[0], cells)
    assert reduction.kept[0][own].tolist() == cells[sorted(expected)].tolist()
    new = ops.merge(visual.features, reduction.mixing, reduction.kept.shape[1])[0]
    assert_close(new[own].double(), torch.stack([expected[k][0] for k in sorted(expected)]), rtol=0, atol=1e-5)
    assert (new[~own] == 7).all() and int((~own).sum()) == int(visual.separators.sum())


# ---------------------------------------------------------------- in models


def entering(family: Any, method: Any, inputs: dict[str, Any] | None = None, layer: int = 2, model: Any = None) -> Any:
    """What a layer is called with under a method, and the trace."""
    if model is None:
        model, name = model_of(family), family
        inputs = EVERY[name].inputs(model, scenario(EVERY[name], "single"))
    entered: dict[str, Any] = {}
    with torch.no_grad(), vtc.patched(model, method):
        handle = model.model.language_model.layers[layer].register_forward_pre_hook(
            lambda _, args, kwargs: entered.update(kwargs, hidden=args[0] if args else kwargs["hidden_states"]),
            with_kwargs=True,
        )
        try:
            model(**inputs)
            return entered, vtc.trace(model)
        finally:
            handle.remove()


@pytest.mark.parametrize("family", ["llava_onevision_video", "qwen2_5_vl_video", "qwen3_vl_video"])
def test_a_layer_is_shown_what_the_words_say(family: str) -> None:
    """Hidden states of layer 2: text and newlines as they were, merged tokens at their first cells."""
    spec = STTM(tau_s=0.2, tau_t=0.1)
    plain, trace = entering(family, "none")
    found, after = entering(family, spec)
    whole, source = plain["hidden"][0], trace.images[0].source
    cells = source.positions[source.grids[0].tokens()]
    expected = by_the_words(whole[cells], spec)
    assert 1 < len(expected) < cells.numel()
    now = dict(enumerate(whole))
    for place in cells.flatten().tolist():
        del now[place]
    now |= {int(cells.flatten()[k]): new.float() for k, (new, _) in expected.items()}
    assert_close(found["hidden"][0], torch.stack([now[i] for i in sorted(now)]), rtol=1e-4, atol=1e-5)
    visual = set(source.positions.tolist())
    assert after.tokens_per_layer[2:, 0].tolist() == [len(visual & set(now))] * (len(after.tokens_per_layer) - 2)
    if family == "llava_onevision_video":
        assert found["position_ids"][0].tolist() == list(range(len(now)))


def test_pictures_stay_and_videos_of_a_prompt_are_merged_one_by_one() -> None:
    family = Mixed(EVERY["qwen2_5_vl"], EVERY["qwen2_5_vl_video"])
    model = model_of("qwen2_5_vl")
    rows = [Row((("video", 3, 8, 8), ("image", 8, 8), ("video", 2, 8, 12)), 0), Row((("video", 2, 8, 8),), 1)]
    inputs = family.inputs(model, rows)
    _, trace = entering(None, STTM(tau_s=0.2, tau_t=0.1), inputs, model=model)
    counts = {(image.row, image.source.kind): [] for image in trace.images}
    for image in trace.images:
        counts[image.row, image.source.kind].append((len(image.kept(2)), len(image.source)))
    assert all(kept == total for kept, total in counts[0, "image"])
    assert len(counts[0, "video"]) == 2
    assert all(kept < total for kept, total in counts[0, "video"] + counts[1, "video"])


def test_after_a_selector_what_is_left_is_merged() -> None:
    _, trace = entering("qwen2_5_vl_video", "divprune:keep=0.5+sttm:tau_s=0.0,tau_t=0.01")
    first, last = trace.tokens_per_layer[0, 0], trace.tokens_per_layer[-1, 0]
    assert 0 < last < first


@pytest.mark.parametrize("method", ["sttm", "sttm_outer"])
def test_a_threshold_is_calibrated_to_a_number_of_tokens(method: str) -> None:
    family, model = EVERY["qwen2_5_vl_video"], model_of("qwen2_5_vl_video")
    batches = [family.inputs(model, scenario(family, name)) for name in ("single", "ragged")]
    ends = [measure(model, f"{method}:root=-1,tau_t={tau}", batches) for tau in (0.01, 1.0)]
    assert ends[0] < ends[1]
    wanted = sum(ends) / 2
    solved, measured = vtc.calibrate(model, f"{method}:root=-1", "tau_t", batches, wanted, between=(0.01, 1.0))
    assert "tau_t=" in solved and abs(measured - wanted) < 0.1 * wanted
