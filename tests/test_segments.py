"""FastVID and FlashVID, which merge within segments of a video, against what the words say, in loops of float64."""

import math
from collections import defaultdict
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from contract import EVERY, ran
from families import scenario
from test_holitom import Largest
from torch import Tensor
from torch.testing import assert_close

import vtc
from vtc import FastVID, FlashVID, FlashVIDInner, ops
from vtc.method.kinds import split_kinds
from vtc.method.reduction import Reduction
from vtc.method.visual_tokens import VisualTokens
from vtc.model.layout import Grid, VisualInput
from vtc.selectors.video.segments.cutting import cut
from vtc.selectors.video.segments.trees import attended_and_diverse

Left = dict[tuple[int, int], Tensor]  # (frame, place) -> the token that stands there


def video(seed: int, frames: int, tokens: int, width: int = 10, drift: float = 0.2, shots: int = 3) -> Tensor:
    """Tokens that repeat the frame before with noise; all are new where another shot begins."""
    gen = torch.Generator().manual_seed(seed)
    found: list[Tensor] = []
    for frame in range(frames):
        new = frame % -(-frames // shots) == 0
        before = 1 + 2 * torch.randn(tokens, width, generator=gen) if new else found[-1]
        found.append(before + drift * torch.randn(tokens, width, generator=gen))
    return torch.stack(found)


def attention_of(seed: int, frames: int, tokens: int) -> Tensor:
    return torch.rand(frames, tokens, generator=torch.Generator().manual_seed(seed)) / tokens


def shown(frames: Tensor, attention: Tensor, grid: Grid, family: str = "") -> VisualTokens:
    """The frames as a selector sees them; separators are all 7, and have no attention."""
    features = torch.full((1, len(grid), frames.shape[2]), 7.0, dtype=frames.dtype)
    received = torch.full((1, len(grid)), float("nan"))
    features[0, grid.places()] = frames.flatten(0, 1)
    received[0, grid.places()] = attention.flatten()
    separators = VisualInput(0, "video", torch.arange(len(grid)), (grid,)).separators()
    return VisualTokens(features, (grid,), separators, "video", family=family, received={2: received})


def tokens_left(visual: VisualTokens, reduction: Reduction) -> Left:
    """What stands where, separators left out."""
    (grid,) = visual.grids
    new = ops.merge(visual.features, reduction.mixing, reduction.kept.shape[1])[0]
    frame = {int(token): divmod(cell, grid.h * grid.w) for cell, token in enumerate(grid.places())}
    kept = reduction.kept[0].tolist()
    assert kept == sorted(set(kept))
    return {frame[token]: new[slot] for slot, token in enumerate(kept) if token in frame}


def check_left(left: Left, expected: Left) -> None:
    assert left.keys() == expected.keys()
    for where, token in expected.items():
        assert_close(left[where].double(), token, rtol=0, atol=2e-5)


def cosine(one: Tensor, other: Tensor) -> float:
    length = float(one.norm() * other.norm())
    return float(one @ other) / length if length else 0.0


def segments_of(vectors: Tensor, least: int, tau: float) -> list[range]:
    similar = [cosine(vectors[t], vectors[t + 1]) for t in range(len(vectors) - 1)]
    lowest = sorted(range(len(similar)), key=lambda t: similar[t])[: least - 1]
    starts = [0, *(t + 1 for t in range(len(similar)) if t in lowest or similar[t] < tau), len(vectors)]
    return [range(a, b) for a, b in pairwise(starts)]


def peaks(x: list[Tensor], count: int, neighbours: int) -> list[int]:
    """The `count` tokens of the highest scores, best first; of equally dense ones the first is the denser."""
    apart = [[float((one - other).norm()) / len(one) ** 0.5 for other in x] for one in x]
    near = min(neighbours, len(x))
    rank = [(-math.exp(-sum(d * d for d in sorted(row)[:near]) / near), i) for i, row in enumerate(apart)]
    largest = max(map(max, apart))
    gap = [min((d for d, other in zip(row, rank) if other < rank[i]), default=largest) for i, row in enumerate(apart)]
    return sorted(range(len(x)), key=lambda i: (rank[i][0] * gap[i], i))[:count]


# ---------------------------------------------------------------- fastvid


def parts_of(total: int, parts: int) -> list[int]:
    return [total // parts + (part < total % parts) for part in range(parts)]


def fastvid_by_the_words(
    x: Tensor, attention: Tensor, each: int, variant: str, least: int, tau: float, d: float, p: int, beta: float,
    ignore: float,
) -> Left:  # fmt: skip
    """What is left of [T, S, D] where the budget is `each` of a frame's tokens."""
    x, tokens, left = x.double(), x.shape[1], {}
    means = x.mean(dim=1)
    for segment in segments_of(means, least, tau):
        length = len(segment)
        salient, centres = dict.fromkeys(segment, 0), {}
        if variant == "ov":
            dense = int(each * d)
            anchors = [*segment][::-1][::p]
            salient = dict.fromkeys(segment, each - dense)
            centres = {a: min(dense * length // len(anchors), tokens - each + dense) for a in anchors}
        else:
            ends = [*segment]
            if variant == "qwen":
                ends = [t for t in segment if t == segment[-1] or cosine(means[t], means[t + 1]) < ignore]
            total = each * length
            dense = int(total * d)
            if variant == "qwen" and total:
                dense = max(dense, 1)
            anchors = ends[::-1][::p]
            centres = dict(zip(anchors, parts_of(dense, len(anchors))))
            wanted = dict(zip(ends, parts_of(total - dense, len(ends))))
            if variant == "qwen":
                centres = {a: min(n, tokens // 2) for a, n in centres.items()}
            for t in ends:
                salient[t] = min(wanted[t], tokens - centres.get(t, 0) * (variant == "qwen"))
                if t in centres:
                    centres[t] = min(centres[t], tokens - salient[t])
        chosen = {t: sorted(range(tokens), key=lambda i, t=t: -attention[t, i])[:n] for t, n in salient.items()}
        left |= {(t, i): x[t, i] for t, some in chosen.items() for i in some}
        others = {t: [i for i in range(tokens) if i not in chosen[t]] for t in segment}
        for anchor, count in centres.items():
            if not count:
                continue
            found = peaks([x[anchor, i] for i in others[anchor]], count, 4)
            own = [(anchor, others[anchor][i]) for i in found]
            alone = variant == "ov" and count == int(each * d)
            members = defaultdict(list)
            for t in [anchor] if alone else segment:
                for i in others[t]:
                    similar = [cosine(x[t, i], x[c]) for c in own]
                    if (t, i) not in own:
                        members[own[max(range(count), key=similar.__getitem__)]].append(x[t, i])
                    elif variant == "ov":
                        members[t, i].append(x[t, i])
            for c in own:
                m = len(members[c])
                w = max(beta, 1 / (m + 1))
                left[c] = w * x[c] + (1 - w) * torch.stack(members[c]).mean(dim=0) if m else x[c]
    if not left:
        best = max(range(attention.numel()), key=lambda i: float(attention.flatten()[i]))
        left[divmod(best, tokens)] = x.flatten(0, 1)[best]
    return left


SETTINGS: list[dict[str, Any]] = [
    {},
    {"segments": 3, "tau": 0.5, "density": 0.7, "distance": 2, "beta": 0.2},
    {"segments": 1, "tau": 0.0, "density": 1.0, "distance": 3},
    {"segments": 2, "tau": 0.3, "density": 0.0},
    {"segments": 99, "distance": 1},
    {"segments": 2, "tau": 0.6, "ignore": 0.99, "distance": 2},
]


@pytest.mark.parametrize("variant", ["ov", "video", "qwen"])
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
@pytest.mark.parametrize(("frames", "keep"), [(1, 0.3), (2, 0.5), (7, 0.25), (9, 0.04), (11, 0.6), (8, 31)])
def test_fastvid_is_what_the_words_say(frames: int, keep: float, setting: dict, variant: str) -> None:
    tokens = 20
    x, attention = video(frames, frames, tokens), attention_of(frames, frames, tokens)
    visual = shown(x, attention, Grid(0, frames, 4, 5, kind="video"))
    method = FastVID(keep=keep, variant=variant, **setting)
    left = tokens_left(visual, method.select(visual, frames * tokens))
    each = keep // frames if isinstance(keep, int) else int(tokens * keep)
    fields = (method.segments, method.tau, method.density, method.distance, method.beta, method.ignore)
    check_left(left, fastvid_by_the_words(x, attention, each, variant, *fields))


def test_fastvid_leaves_what_it_says_of_a_video_of_any_cuts() -> None:
    """Σ over segments of A · L + n · ((C · L) // n), never above T · R."""
    for frames in (1, 3, 16, 40):
        x, attention = video(0, frames, 25), attention_of(0, frames, 25)
        visual = shown(x, attention, Grid(0, frames, 5, 5, kind="video"))
        kept = FastVID(keep=0.4).select(visual, frames * 25).kept[0]
        expected = 0
        for segment in segments_of(x.double().mean(dim=1), 8, 0.9):
            anchors = -(-len(segment) // 4)
            expected += 6 * len(segment) + anchors * (4 * len(segment) // anchors)
        assert len(kept) == expected <= 10 * frames


def test_weights_of_a_merged_token_add_up_to_one() -> None:
    x, attention = video(3, 12, 30), attention_of(3, 12, 30)
    visual = shown(x, attention, Grid(0, 12, 5, 6, kind="video"))
    for method in (FastVID(), FastVID(variant="video"), FastVID(variant="qwen"), FlashVID()):
        reduction = method.select(visual, 360)
        total = torch.zeros(reduction.kept.shape[1]).index_add(
            0, reduction.mixing.target[0], reduction.mixing.weight[0]
        )
        assert_close(total, torch.ones(len(total)))


# ---------------------------------------------------------------- flashvid


def flashvid_by_the_words(
    x: Tensor, attention: Tensor, selected: int, merged: int, selection: str, least: int, tau: float, link: float,
    released: bool,
) -> Left:  # fmt: skip
    """What is left of [T, N, D] where so many of each frame are selected, and so many merged into."""
    x, attention, tokens, left = x.double(), attention.double(), x.shape[1], {}
    means = x.mean(dim=1)
    for segment in segments_of(means, least, tau):
        rest = {}
        for t in segment:
            weight = attention[t].clone()
            if selection == "attn_div_v2":
                weight *= torch.stack([sum(x[t, j] @ means[f] for f in segment) / len(segment) for j in range(tokens)])
            chosen: list[int] = []
            while len(chosen) < selected:
                worth = {}
                for j in range(tokens):
                    among = chosen or [i for i in range(tokens) if i != j]
                    if j not in chosen:
                        worth[j] = min((1 - cosine(x[t, i], x[t, j])) * float(weight[j]) for i in among)
                chosen.append(max(worth, key=worth.__getitem__))
            left |= {(t, i): x[t, i] for i in chosen}
            rest[t] = [i for i in range(tokens) if i not in chosen]
        if not merged:
            continue
        best = {}
        for t in segment[1:]:
            for i in rest[t]:
                similar = [cosine(x[t, i], x[t - 1, j]) for j in rest[t - 1]]
                if similar:
                    place = max(range(len(similar)), key=similar.__getitem__)
                    best[t, i] = similar[place], rest[t - 1][place]
        most = len(segment) * (tokens - selected - merged)
        threshold = link
        if sum(s > link for s, _ in best.values()) > most:
            threshold = sorted((s for s, _ in best.values()), reverse=True)[most - 1] if most else math.inf
        tied = {token: parent for token, (s, parent) in best.items() if s > threshold}
        total = {(t, i): x[t, i].clone() for t in segment for i in rest[t]}
        size, children = dict.fromkeys(total, 1), dict.fromkeys(total, 0)
        for t in reversed(segment[1:]):
            for i in rest[t]:
                if (t, i) in tied:
                    parent = t - 1, tied[t, i]
                    total[parent] += total[t, i]
                    size[parent] += size[t, i]
                    children[parent] += 1
        trees = {t: [i for i in rest[t] if (t, i) not in tied] for t in segment}
        share = merged * len(segment) / sum(map(len, trees.values()))
        for t, alone in trees.items():
            new = [total[t, i] / (1 + children[t, i] if released else size[t, i]) for i in alone]
            count = math.ceil(len(alone) * share) if share < 1 else len(alone)
            if count >= len(alone):
                left |= {(t, i): token for i, token in zip(alone, new)}
                continue
            centres = peaks(new, count, min(count, 7))
            members = defaultdict(list)
            for number, token in enumerate(new):
                apart = [float((token - new[c]).norm()) for c in centres]
                members[number if number in centres else centres[apart.index(min(apart))]].append(token)
            left |= {(t, alone[c]): torch.stack(members[c]).mean(dim=0) for c in centres}
    return left


@pytest.mark.parametrize("selection", ["attn_div", "attn_div_v2"])
@pytest.mark.parametrize("tree_mean", ["size", "released"])
@pytest.mark.parametrize(
    "setting",
    [{}, {"segments": 1, "tau": 0.0}, {"segments": 3, "alpha": 0.2, "link": 0.95}, {"alpha": 1.0}, {"alpha": 0.0},
     {"segments": 2, "tau": 0.5, "link": 0.0, "expansion": 1.0}],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize(("frames", "keep"), [(1, 0.3), (2, 0.5), (7, 0.25), (9, 0.04), (6, 0.75), (8, 31)])
def test_flashvid_is_what_the_words_say(
    frames: int, keep: float, setting: dict, tree_mean: str, selection: str
) -> None:
    tokens = 20
    x, attention = video(frames, frames, tokens, drift=0.6), attention_of(frames, frames, tokens)
    visual = shown(x, attention, Grid(0, frames, 4, 5, kind="video"))
    method = FlashVID(keep=keep, selection=selection, tree_mean=tree_mean, **setting)
    share = keep / (frames * tokens) if isinstance(keep, int) else keep
    budget = math.ceil(tokens * share * setting.get("expansion", 1.25))
    selected = math.ceil(min(budget, tokens) * method.alpha)
    left = tokens_left(visual, method.select(visual, frames * tokens))
    least = method.segments or {"attn_div": 4, "attn_div_v2": 8}[selection]
    counts = selected, min(budget, tokens) - selected
    released = tree_mean == "released"
    check_left(left, flashvid_by_the_words(x, attention, *counts, selection, least, method.tau, method.link, released))
    assert len(left) <= frames * (min(budget, tokens) + 1)


def test_a_token_is_selected_once_even_where_all_are_worth_less_than_nothing() -> None:
    x = torch.randn(2, 9, 5, generator=torch.Generator().manual_seed(0))
    weight = -torch.rand(2, 9, generator=torch.Generator().manual_seed(1))
    chosen = attended_and_diverse(x, weight, 6)
    assert chosen.sum(dim=1).tolist() == [6, 6]
    for frame in range(2):
        apart = 1 - torch.cosine_similarity(x[frame, :, None].double(), x[frame, None].double(), dim=-1)
        worth = apart * weight[frame].double()
        picks = [int(worth.masked_fill(torch.eye(9).bool(), math.inf).amin(dim=0).argmax())]
        while len(picks) < 6:
            now = worth[picks].amin(dim=0)
            now[picks] = -math.inf
            picks.append(int(now.argmax()))
        assert chosen[frame].nonzero()[:, 0].tolist() == sorted(picks)


def test_without_the_inner_stage_nothing_is_added_for_it() -> None:
    assert FlashVID().per_frame(100, 0.2) == (18, 7)
    assert FlashVID(inner=False).per_frame(100, 0.2) == (14, 6)
    assert FlashVID(inner=False, expansion=2.0).per_frame(100, 0.2) == (28, 12)
    assert FlashVID().per_frame(100, 0.9) == (70, 30)


# ---------------------------------------------------------------- both


METHODS = (FastVID(), FastVID(variant="video"), FastVID(variant="qwen"), FlashVID(), FlashVID(selection="attn_div"))


def test_a_video_is_cut_below_tau_or_where_it_is_least_alike_and_first_of_equal_ones() -> None:
    similar = torch.tensor([0.9, 0.2, 0.5, 0.5, 0.5, 0.95])
    assert cut(similar, 1, 0.2) == [(0, 7)]  # itself not included
    assert cut(similar, 1, 0.21) == [(0, 2), (2, 7)]
    assert cut(similar, 3, 0.21) == [(0, 2), (2, 3), (3, 7)]
    assert cut(similar, 3, 0.6) == [(0, 2), (2, 3), (3, 4), (4, 5), (5, 7)]
    assert cut(similar, 99, 0.0) == [(frame, frame + 1) for frame in range(7)]
    assert cut(torch.empty(0), 8, 0.9) == [(0, 1)]


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_of_equal_tokens_and_equal_attention_the_first_stay(method: Any) -> None:
    x = torch.ones(4, 20, 6)
    kept = tokens_left(visual := shown(x, torch.ones(4, 20), Grid(0, 4, 4, 5)), method.select(visual, 80))
    for token in kept.values():
        assert_close(token, torch.ones(6))
    for frame in range(4):
        places = [place for t, place in kept if t == frame]
        assert places == [*range(len(places))]


@pytest.mark.parametrize("method", METHODS, ids=repr)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.0])
def test_values_without_direction_or_rank_never_lead_astray(bad: float, method: Any) -> None:
    x, attention = video(0, 6, 20), attention_of(0, 6, 20)
    x[2, ::2], x[:, 3], attention[1, ::2] = bad, bad, bad
    grid = Grid(0, 6, 4, 5, end=1)
    kept = method.select(shown(x, attention, grid), len(grid)).kept[0]
    assert torch.equal(kept, kept.unique()) and int(kept[-1]) == len(grid) - 1
    assert 10 < len(kept) <= 49


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_half_precision_is_decided_about_in_float32(method: Any) -> None:
    x, attention = video(5, 9, 20).bfloat16(), attention_of(5, 9, 20)
    grid = Grid(0, 9, 4, 5)
    half, full = (method.select(shown(each, attention, grid), 180) for each in (x, x.float()))
    assert torch.equal(half.kept, full.kept)
    assert_close(half.mixing.weight, full.mixing.weight)


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_separators_go_with_what_they_stand_beside(method: Any) -> None:
    x, attention = video(1, 6, 20), attention_of(1, 6, 20)
    plain = method.select(shown(x, attention, Grid(0, 6, 4, 5)), 120).kept[0]
    grid = Grid(0, 6, 4, 5, row_end=1, front=1, end=1)
    visual = shown(x, attention, grid)
    kept = method.select(visual, len(grid)).kept[0]
    assert torch.equal(grid.places()[plain], kept[~visual.separators[kept]])
    rows = {int(cell) // 5 for cell in plain}
    ends = {1 + row // 4 * grid.frame + row % 4 * 6 + 5 for row in rows}
    fronts = {row // 4 * grid.frame for row in rows}
    assert set(kept[visual.separators[kept]].tolist()) == ends | fronts | {len(grid) - 1}


@pytest.mark.parametrize("method", METHODS, ids=repr)
@pytest.mark.parametrize(("keep", "alone"), [(0.25, (0.25, 0.25)), (72, (60, 12))])
def test_each_video_of_a_row_is_by_itself_and_pictures_stay(
    keep: float, alone: tuple[float, float], method: Any
) -> None:
    first, second = Grid(0, 6, 4, 5, kind="video"), Grid(126, 3, 2, 4, row_end=1, kind="video")
    picture = Grid(120, 1, 2, 3)
    x, y = video(1, 6, 20), video(2, 3, 8)
    seen = torch.cat([attention_of(1, 6, 20).flatten(), torch.ones(6), torch.zeros(len(second))])[None]
    features = torch.zeros(1, 126 + len(second), 10)
    features[0, first.places()], features[0, second.places()] = x.flatten(0, 1), y.flatten(0, 1)
    seen[0, second.places()] = attention_of(2, 3, 8).flatten()
    separators = torch.zeros(len(features[0]), dtype=torch.bool)
    separators[second.start :] = True
    separators[second.places()] = False
    visual = VisualTokens(features, (first, picture, second), separators, "video", received={0: seen})
    kept = replace(method, keep=keep).select(visual, len(separators)).kept
    one = replace(method, keep=alone[0]).select(shown(x, attention_of(1, 6, 20), first), 120).kept
    two = replace(method, keep=alone[1]).select(shown(y, attention_of(2, 3, 8), second.moved(0)), len(second)).kept
    assert torch.equal(kept, torch.cat([one, 120 + torch.arange(6)[None], 126 + two], dim=1))


@pytest.mark.parametrize("method", [FastVID, FlashVID])
def test_all_is_all_and_the_least_is_something(method: Any) -> None:
    x, attention = video(1, 8, 20), attention_of(1, 8, 20)
    visual = shown(x, attention, Grid(0, 8, 4, 5))
    for keep in (160, 999, 0.9999):
        whole = method(keep=keep).select(visual, 160)
        assert torch.equal(whole.kept, torch.arange(160)[None]) and whole.mixing is None
    assert not method(keep=1.0).adaptive and method(keep=1).adaptive
    assert 1 <= method(keep=1).select(visual, 160).kept.shape[1] <= 16
    assert 1 <= method(keep=1e-6).select(visual, 160).kept.shape[1] <= 16


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_long_videos_take_no_table_of_all_pairs(method: Any) -> None:
    """1,000 frames in shots of ten: no tensor has more numbers than the video itself."""
    x = video(0, 1000, 16, 64, shots=100)
    visual = shown(x, attention_of(0, 1000, 16), Grid(0, 1000, 4, 4))
    with Largest() as largest:
        kept = method.select(visual, 16000).kept[0]
    assert largest.numbers <= x.numel()
    assert 0.1 * 16000 <= len(kept) < 0.4 * 16000


# ---------------------------------------------------------------- families, and in models


@pytest.mark.parametrize(
    ("family", "fast", "flash"),
    [("llava_onevision", "ov", "attn_div_v2"), ("llava_next_video", "video", "attn_div_v2"), ("", "ov", "attn_div_v2"),
     ("qwen2_5_vl", "qwen", "attn_div"), ("qwen3_vl", "qwen", "attn_div"), ("internvl", "ov", "attn_div_v2")],
)  # fmt: skip
def test_the_family_says_which_version(family: str, fast: str, flash: str) -> None:
    x, attention = video(1, 9, 20, shots=1), attention_of(1, 9, 20)
    visual, plain = (shown(x, attention, Grid(0, 9, 4, 5), name) for name in (family, "other"))
    for method, field, version in ((FastVID, "variant", fast), (FlashVID, "selection", flash)):
        found, told = method().select(visual, 180), method(**{field: version}).select(plain, 180)
        assert torch.equal(found.kept, told.kept) and torch.equal(found.mixing.weight, told.mixing.weight)
    versions = [
        *(FastVID(variant=each) for each in ("ov", "video", "qwen")),
        *(FlashVID(selection=each) for each in ("attn_div", "attn_div_v2")),
    ]
    made = [method.select(plain, 180) for method in versions]
    assert len({(tuple(each.kept[0].tolist()), tuple(each.mixing.weight[0].tolist())) for each in made}) == len(made)


@pytest.mark.parametrize("family", ["llava_onevision_video", "llava_next_video_video", "qwen2_5_vl_video"])
def test_a_model_tells_its_family(family: str) -> None:
    seen = []

    class Seeing(FastVID):
        def select(self, visual: VisualTokens, k: int) -> Reduction:
            seen.append(visual.family)
            return super().select(visual, k)

    ran(family, Seeing())
    assert seen == [family.removesuffix("_video")]


@pytest.mark.parametrize("family", ["llava_onevision_video", "qwen2_5_vl_video", "qwen3_vl_video"])
@pytest.mark.parametrize("method", [FastVID(keep=0.5), FlashVID(keep=0.5, inner=False)], ids=repr)
def test_what_enters_the_decoder_is_what_was_decided(family: str, method: Any) -> None:
    """The embeddings of the survivors are the mixtures, at the places that they were."""
    decided = []

    class Seeing(type(method)):  # type: ignore[misc]
        def select(self, visual: VisualTokens, k: int) -> Reduction:
            reduction = super().select(visual, k)
            decided.append(ops.merge(visual.features, reduction.mixing, reduction.kept.shape[1])[0])
            return reduction

    tiny = EVERY[family]
    model, inputs = tiny.build(), None
    inputs = tiny.inputs(model, scenario(tiny, "single"))
    entered: dict[str, Any] = {}
    model.model.language_model.layers[0].register_forward_pre_hook(
        lambda _, args, kwargs: entered.update(kwargs, hidden=args[0]), with_kwargs=True
    )
    seeing = Seeing(**vars(method))
    with torch.no_grad(), vtc.patched(model, seeing):
        model(**inputs)
        (image,) = vtc.trace(model).images
    (new,) = decided
    where = torch.tensor([*image.source.positions])
    dropped = torch.ones(len(where), dtype=torch.bool)
    dropped[image.kept()] = False
    before = [int((dropped[:place]).sum()) for place in image.kept()]
    slots = where[image.kept()] - torch.tensor(before)
    assert 0 < len(new) < len(where)
    assert_close(entered["hidden"][0, slots], new)


@pytest.mark.parametrize("family", ["llava_onevision_video", "qwen2_5_vl_video"])
def test_flashvid_equals_its_stages_put_together(family: str) -> None:
    _, both, trace = ran(family, FlashVID(keep=0.5, inner_keep=0.4, layer=2), "ragged")
    apart = [FlashVID(keep=0.5, inner=False, expansion=1.25), FlashVIDInner(keep=0.4, layer=2)]
    _, expected, _ = ran(family, apart, "ragged")
    _, outer, first = ran(family, apart[0], "ragged")
    assert torch.equal(both.logits, expected.logits) and not torch.equal(both.logits, outer.logits)
    assert torch.equal(trace.tokens_per_layer[:2], first.tokens_per_layer[:2])
    left = [math.ceil(0.4 * n) for n in first.tokens_per_layer[0].tolist()]
    assert trace.tokens_per_layer[2:].tolist() == [left] * (len(trace.tokens_per_layer) - 2)


def test_flashvid_is_both_of_its_stages() -> None:
    assert split_kinds([FlashVID()]) == (None, FlashVID(), [FlashVIDInner()])
    assert split_kinds([FlashVID(inner=False)]) == (None, FlashVID(inner=False), [])
    assert FlashVID(keep=1.0).split() == (FlashVID(keep=1.0),)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_the_inner_stage_is_fastv_with_a_count_that_is_rounded_up(family: str) -> None:
    _, ours, trace = ran(family, FlashVIDInner(keep=0.3, layer=2), "ragged")
    tokens = trace.original_tokens.tolist()
    assert trace.tokens_per_layer[2].tolist() == [math.ceil(0.3 * n) for n in tokens]
    if len(set(tokens)) == 1:
        _, fastv, _ = ran(family, vtc.FastV(keep=math.ceil(0.3 * tokens[0]), layer=2), "ragged")
        assert torch.equal(ours.logits, fastv.logits)


def test_the_inner_stage_is_scaled_to_the_depth() -> None:
    method = FlashVIDInner()
    assert [method.schedule(depth) for depth in (28, 36, 4)] == [(20,), (26,), (3,)]
    assert FlashVIDInner(layer=28).schedule(36) == (28,)
    assert [FlashVIDInner(keep=keep).count(13) for keep in (0.3, 1.0, 5, 99)] == [4, 13, 5, 13]


@pytest.mark.parametrize(
    ("method", "fields", "words"),
    [
        (FastVID, {"keep": 0.0}, ("keep=0.0", "share")),
        (FastVID, {"keep": None}, ("keep=None", "share")),
        (FastVID, {"segments": 0}, ("segments=0", "below 1", "8")),
        (FastVID, {"tau": 1.5}, ("tau=1.5", "cosine")),
        (FastVID, {"density": -0.1}, ("density=-0.1", "0.4")),
        (FastVID, {"distance": 0}, ("distance=0", "4")),
        (FastVID, {"beta": 2}, ("beta=2", "weight")),
        (FastVID, {"ignore": "high"}, ("ignore='high'", "0.95")),
        (FastVID, {"variant": "onevision"}, ("variant='onevision'", "'ov'", "None")),
        (FlashVID, {"keep": 1.5}, ("keep=1.5", "share")),
        (FlashVID, {"expansion": 0}, ("expansion=0", "1.25")),
        (FlashVID, {"expansion": True}, ("expansion=True", "bool")),
        (FlashVID, {"alpha": 1.1}, ("alpha=1.1", "0.7")),
        (FlashVID, {"link": None}, ("link=None", "0.8")),
        (FlashVID, {"tau": -1}, ("tau=-1", "0.9")),
        (FlashVID, {"segments": 0}, ("segments=0", "None")),
        (FlashVID, {"selection": "div"}, ("selection='div'", "'attn_div_v2'", "None")),
        (FlashVID, {"tree_mean": "sum"}, ("tree_mean='sum'", "'released'")),
        (FlashVID, {"inner": 1}, ("inner=1", "True or False")),
        (FlashVID, {"inner_keep": 2.0}, ("inner_keep=2.0", "share")),
        (FlashVID, {"layer": 0}, ("layer=0", "1 or more")),
        (FlashVIDInner, {"layer": 1.5}, ("layer=1.5", "1 or more")),
        (FlashVIDInner, {"keep": 0}, ("keep=0", "share")),
    ],
)
def test_bad_fields_are_named(method: Any, fields: dict, words: tuple[str, ...]) -> None:
    with pytest.raises((TypeError, ValueError)) as error:
        method(**fields)
    assert all(word in str(error.value) for word in words)
