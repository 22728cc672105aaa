"""PruneVid: its outer stage against loops over frames and tokens, its inner stage, and both in models."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby, pairwise
from typing import Any

import pytest
import torch
from contract import EVERY, model_of, ran
from families import scenario
from test_holitom import Largest, shown, standing, video
from torch import Tensor
from torch.testing import assert_close

import vtc
from vtc import PruneVid, PruneVidInner, ops
from vtc.attention.scores import Attention
from vtc.method.kinds import split_kinds
from vtc.method.prune import Decision, Memory, Rows
from vtc.model.layout import Grid
from vtc.planning.calibrate import measure
from vtc.prunes.attention.prunevid_inner import best_of_groups, strongest
from vtc.selectors.video.prunevid_segments import frame_labels, lengths_of, merge_segments, repaired

# ---------------------------------------------------------------- as the words say it


def peaks(x: Tensor, count: int, neighbours: int) -> tuple[list[int], list[int]]:
    """Centres, best first, and for each token the number of the one that it joins."""
    apart = [[float((one - other).norm()) / x.shape[1] ** 0.5 for other in x] for one in x]
    near = min(neighbours, len(x))
    density = [math.exp(-sum(d * d for d in sorted(row)[:near]) / near) for row in apart]
    largest = max(map(max, apart))
    gap = [
        min((d for j, d in enumerate(row) if density[j] > density[i]), default=largest) for i, row in enumerate(apart)
    ]
    centres = sorted(range(len(x)), key=lambda i: (-density[i] * gap[i], i))[:count]
    joined = [min(range(count), key=lambda c: apart[i][centres[c]]) for i in range(len(x))]
    for number, centre in enumerate(centres):
        joined[centre] = number
    return centres, joined


def repaired_in_words(labels: list[int]) -> list[int]:
    frames = range(len(labels))
    bounds = [i for i in frames if i == 0 or labels[i] != labels[i - 1]] + [len(labels)]
    length = {i: b - a for a, b in pairwise(bounds) for i in range(a, b)}
    longest = {label: max(length[i] for i in frames if labels[i] == label) for label in labels}
    kept: list[int | None] = [
        labels[i] if length[i] == longest[labels[i]] and longest[labels[i]] > 1 else None for i in frames
    ]

    def run(start: int, step: int) -> tuple[int, int | None]:
        """Length and label of the run that begins beside a stretch."""
        place, label = start, kept[start] if 0 <= start < len(kept) else None
        while label is not None and 0 <= place < len(kept) and kept[place] == label:
            place += step
        return abs(place - start), label

    while None in kept:
        start = kept.index(None)
        stop = next((i for i in range(start, len(kept)) if kept[i] is not None), len(kept))
        (left, before), (right, behind) = run(start - 1, -1), run(stop, 1)
        kept[start:stop] = [(behind if right > left else before if left else 0)] * (stop - start)
    return kept  # type: ignore[return-value]


def by_the_words(x: Tensor, method: PruneVid) -> list[dict[str, Any]]:
    """What is left of [T, S, D] in the released order: place, new token, sources, group."""
    x, (frames, tokens, _) = x.double(), x.shape
    count = max(int(frames * method.segment_ratio), 1)
    labels = repaired_in_words(peaks(x.mean(dim=1), count, method.neighbours)[1])
    left, start = [], 0
    for _, run in groupby(labels):
        inside = range(start, start + len(list(run)))
        start = inside.stop

        def still(p: int, inside: Sequence[int] = inside) -> bool:
            pairs = [(a, b) for a in inside for b in inside if a != b]
            cosines = [float(torch.cosine_similarity(x[a, p], x[b, p], dim=0)) for a, b in pairs]
            return bool(pairs) and sum(cosines) / len(pairs) > method.tau

        static = [p for p in range(tokens) if still(p)]
        moving = [p for p in range(tokens) if p not in static]
        sheets = [(inside[0], static, list(inside)), *((t, moving, [t]) for t in inside)]
        for frame, places, over in sheets:
            own = [torch.stack([x[t, p] for t in over]).mean(dim=0) for p in places]
            centres, joined = list(range(len(places))), list(range(len(places)))
            if len(places) > 14:
                number = max(int(len(places) * method.cluster_ratio), 1)
                centres, joined = peaks(torch.stack(own), number, method.neighbours)
            for number, centre in enumerate(centres):
                members = [i for i, c in enumerate(joined) if c == number]
                left.append({
                    "place": frame * tokens + places[centre], "group": frame * tokens + places[0],
                    "new": torch.stack([own[i] for i in members]).mean(dim=0),
                    "sources": {t * tokens + places[i] for t in over for i in members},
                })  # fmt: skip
    return left


def scenes(seed: int, frames: int, tokens: int) -> Tensor:
    """A video with cuts, in which some positions stand still."""
    gen = torch.Generator().manual_seed(seed)
    parts = [video(seed + 100 * part, n, tokens) for part, n in enumerate((frames // 2, frames - frames // 2)) if n]
    x = torch.cat(parts) + torch.repeat_interleave(
        torch.randn(len(parts), 1, 12, generator=gen), torch.tensor([len(part) for part in parts]), dim=0
    )
    return x


# ---------------------------------------------------------------- the outer stage


@pytest.mark.parametrize("seed", range(40))
def test_short_runs_are_repaired_as_the_words_say(seed: int) -> None:
    gen = torch.Generator().manual_seed(seed)
    for frames in (1, 2, 5, 11, 24):
        labels = torch.randint(0, 1 + seed % 4, (frames,), generator=gen).tolist()
        again = [label for label in labels for _ in range(1 + seed % 3)][:frames]
        for some in (labels, again):
            assert repaired(some) == repaired_in_words(some)
    assert repaired([3]) == [0] and repaired([1, 2, 1]) == [0, 0, 0]
    assert repaired([1, 1, 0, 2, 2]) == [1, 1, 1, 2, 2]  # equally long: the left one
    assert lengths_of([1, 1, 0, 1]) == [2, 1, 1]


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("newline", ["none", "end", "rows"])
@pytest.mark.parametrize(
    ("frames", "settings"),
    [(1, {}), (3, {}), (7, {"tau": 0.7}), (12, {}), (9, {"cluster_ratio": 0.1}),
     (8, {"segment_ratio": 0.5, "tau": 0.6}), (6, {"cluster_ratio": 1.0}), (5, {"neighbours": 2, "tau": 0.4})],
    ids=str,
)  # fmt: skip
def test_the_outer_stage_is_what_the_words_say(frames: int, settings: dict, newline: str, packed: bool) -> None:
    grid = Grid(0, frames, 4, 5, row_end=int(newline == "rows"), end=int(newline == "end"), kind="video")
    cells, method = grid.tokens().flatten(), PruneVid(**settings)
    for seed in range(2):
        x = scenes(seed, frames, 20)
        visual = shown(x, torch.ones(frames, 20), grid, packed)
        reduction = method.select(visual, len(grid))
        left = by_the_words(x, method)
        kept, own = reduction.kept[0], torch.isin(reduction.kept[0], cells)
        places = sorted(token["place"] for token in left)
        assert kept[own].tolist() == cells[places].tolist()
        assert kept[~own].tolist() == visual.separators.nonzero()[:, 0].tolist()
        by_place = {token["place"]: token for token in left}
        ordered = [by_place[place] for place in places] if newline == "rows" or not packed else left
        new = standing(visual, reduction)[own]
        assert_close(new.double(), torch.stack([token["new"] for token in ordered]), rtol=0, atol=1e-5)
        assert reduction.groups is not None
        assert reduction.groups[0][own].tolist() == cells[[by_place[place]["group"] for place in places]].tolist()
        assert (reduction.groups[0][~own] == -1).all()
        came: dict[int, set[int]] = {}
        mixing = reduction.mixing
        for source, target in zip(mixing.source[0].tolist(), mixing.target[0].tolist(), strict=True):
            came.setdefault(int(kept[target]), set()).add(source)
        assert {place: came[int(cells[place])] for place in places} == {
            place: {int(cells[source]) for source in by_place[place]["sources"]} for place in places
        }


def test_equal_frames_become_one_and_a_share_leaves_one_cluster_at_least() -> None:
    one = torch.randn(1, 30, 8, generator=torch.Generator().manual_seed(0))
    merged = merge_segments(one.expand(8, -1, -1), [8], 0.8, 0.5, 7)
    assert len(merged.kept) == 15 and int(merged.kept.max()) < 30
    assert len(merge_segments(one, [1], 0.8, 0.0, 7).kept) == 1
    assert len(set(frame_labels(one.expand(3, -1, -1), 0.25, 7))) == 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.0])
def test_values_without_direction_never_lead_astray(bad: float) -> None:
    x = scenes(0, 6, 20)
    x[2, ::2], x[:, 3] = bad, bad
    grid = Grid(0, 6, 4, 5, end=1)
    reduction = PruneVid().select(shown(x, torch.ones(6, 20), grid), len(grid))
    kept = reduction.kept[0]
    assert torch.equal(kept, kept.unique()) and int(kept[-1]) == 120
    total = torch.zeros(len(kept)).index_add(0, reduction.mixing.target[0], reduction.mixing.weight[0])
    assert_close(total, torch.ones(len(kept)))


def test_nothing_grows_as_the_square_of_a_segment() -> None:
    x = video(0, 256, 16, 8)
    with Largest() as largest:
        merge_segments(x, [200, 56], 0.8, 0.5, 7)
    assert largest.numbers <= 2 * 258 * 16 * 16


# ---------------------------------------------------------------- the inner stage


@pytest.mark.parametrize("share", [0.0, 0.3, 0.4, 0.5, 1.0])
def test_groups_keep_their_best(share: float) -> None:
    gen = torch.Generator().manual_seed(0)
    for size in (1, 7, 40):
        score = (torch.rand(3, size, generator=gen) * 5).round()
        groups = torch.randint(-1, 5, (3, size), generator=gen) * 7
        kept = best_of_groups(score, groups, share)
        for row in range(3):
            for name, number in Counter(groups[row].tolist()).items():
                of = [i for i in range(size) if groups[row, i] == name]
                best = sorted(of, key=lambda i: (-float(score[row, i]), i))[: int(number * share)]
                assert [i for i in of if kept[row, i]] == (of if name < 0 else sorted(best))


def test_the_strongest_attention_is_over_heads_and_text() -> None:
    gen = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 4, 150, 8, generator=gen), torch.randn(2, 2, 160, 8, generator=gen)
    text = torch.rand(2, 150, generator=gen) < 0.5
    text[:, :20] = False
    seen = Attention(query, key, 8**-0.5)
    logits = query @ key.repeat_interleave(2, dim=1).mT * 8**-0.5
    logits = logits.masked_fill(~torch.ones(150, 160, dtype=torch.bool).tril(10), -torch.inf)
    whole = logits.softmax(dim=-1)[..., 10:]
    for row, found in enumerate(strongest(seen, text, 130)):
        assert_close(found, whole[row, :, text[row]].amax(dim=(0, 1)))


@pytest.mark.parametrize("keep", [0.4, 5])
@pytest.mark.parametrize("family", ["qwen2_5_vl_video", "qwen3_vl_video", "llava_onevision_video", "llava_next"])
def test_the_inner_stage_ranks_each_frame_by_what_the_text_attends_to(family: str, keep: float | int) -> None:
    """Attentions as the untouched model gives them; the frames, or crops, are those of the grids."""
    model = model_of(family, "eager")
    inputs = EVERY[family].inputs(model, scenario(EVERY[family], "single"))
    with torch.no_grad():
        attentions = model(**inputs, output_attentions=True).attentions[1][0]
        with vtc.patched(model, PruneVidInner(keep=keep, layer=2)):
            model(**inputs)
            (image,) = vtc.trace(model).images
    source = image.source
    score = attentions[:, int(source.positions[-1]) + 1 :].amax(dim=(0, 1))[source.positions]
    share = keep / len(source) if isinstance(keep, int) else keep
    expected = source.separators().nonzero()[:, 0].tolist()
    for grid in source.grids:
        for frame in grid.tokens().flatten(1).tolist():
            expected += sorted(frame, key=lambda i: (-float(score[i]), i))[: int(len(frame) * share)]
    assert image.kept(2).tolist() == sorted(expected) and len(expected) < len(source)
    assert image.kept(1).tolist() == list(range(len(source)))


class Seeing(PruneVidInner):
    """Remembers what it was shown, and what it decided."""

    seen: list[tuple[Rows, Tensor, Decision]]

    def decide(self, rows: Rows, counts: Sequence[int], memory: Memory) -> Decision:
        decision = super().decide(rows, counts, memory)
        self.seen = [(rows, memory["score"], decision)]
        return decision


@pytest.mark.parametrize("family", ["llava_onevision_video", "qwen2_5_vl_video", "llava_next_video_video"])
def test_behind_the_outer_stage_its_groups_are_ranked(family: str) -> None:
    """Also where tokens stand in another order than their places: the group goes with the token."""
    outer, inner = PruneVid(tau=0.0, inner=False), Seeing(keep=0.5, layer=2)
    _, _, trace = ran(family, [outer, inner], "ragged")
    rows, score, decision = inner.seen[0]
    assert rows.groups is not None
    for row in range(len(rows.visual)):
        visual = rows.visual[row].nonzero()[:, 0].tolist()
        names = [int(rows.groups[row, i]) for i in visual]
        kept = [i for i in visual if decision.alive[row, i]]
        expected = [i for i, name in zip(visual, names, strict=True) if name < 0]
        for name in set(names) - {-1}:
            of = [i for i, other in zip(visual, names, strict=True) if other == name]
            expected += sorted(of, key=lambda i: (-float(score[row, i]), i))[: len(of) // 2]
        assert kept == sorted(expected)
    assert trace.tokens_per_layer[2].tolist() == [int((d & v).sum()) for d, v in zip(decision.alive, rows.visual)]


def test_a_group_goes_with_its_token_where_tokens_change_places() -> None:
    """Frames of which the lower half stands still: what enters the decoder is in the released order."""
    model, family = model_of("llava_onevision_video"), EVERY["llava_onevision_video"]
    gen = torch.Generator().manual_seed(0)
    pixels = torch.randn(1, 8, 3, 16, 16, generator=gen)
    pixels[0, :, :, 8:] = pixels[0, :1, :, 8:]
    ids = torch.tensor([[10, 11, 12, *[family.image_id] * 33, 13, 14]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values_videos": pixels}
    shown_to: list[Any] = []

    class Told(PruneVid):
        def select(self, visual: Any, k: int) -> Any:
            shown_to.append(visual.features[0])
            return super().select(visual, k)

    moved = False
    for share in (0.5, 0.25, 0.75):
        inner = Seeing(keep=0.5, layer=2)
        with torch.no_grad(), vtc.patched(model, [Told(tau=0.9, segment_ratio=share, inner=False), inner]):
            model(**inputs)
        x_of = shown_to[-1]
        left = by_the_words(x_of[:32].view(8, 4, -1), PruneVid(tau=0.9, segment_ratio=share))
        rows = inner.seen[0][0]
        names = rows.groups[0][rows.visual[0]].tolist()
        assert names == [3 + token["group"] for token in left] + [-1]
        moved |= [token["place"] for token in left] != sorted(token["place"] for token in left)
    assert moved


# ---------------------------------------------------------------- both


@pytest.mark.parametrize("family", ["llava_onevision_video", "qwen2_5_vl_video"])
def test_prunevid_equals_its_stages_put_together(family: str) -> None:
    _, both, trace = ran(family, PruneVid(tau=0.0, layer=2), "ragged")
    apart = [PruneVid(tau=0.0, inner=False), PruneVidInner(layer=2)]
    _, expected, _ = ran(family, apart, "ragged")
    _, outer, first = ran(family, apart[0], "ragged")
    assert torch.equal(both.logits, expected.logits) and not torch.equal(both.logits, outer.logits)
    assert torch.equal(trace.tokens_per_layer[:2], first.tokens_per_layer[:2])


def test_prunevid_is_both_of_its_stages() -> None:
    assert split_kinds([PruneVid()]) == (None, PruneVid(), [PruneVidInner()])
    assert split_kinds([PruneVid(inner=False)]) == (None, PruneVid(inner=False), [])
    assert not PruneVid(tau=1.0, cluster_ratio=1.0).adaptive and not PruneVidInner(keep=1.0).adaptive
    assert PruneVidInner().schedule(32) == (11,) and PruneVidInner().schedule(28) == (10,)


def test_pictures_are_whole_in_front_of_the_decoder_and_frames_inside() -> None:
    _, _, trace = ran("llava", PruneVid(layer=2), "single")
    total = int(trace.original_tokens[0])
    assert trace.tokens_per_layer[:, 0].tolist() == [total] * 2 + [int(0.4 * total)] * (len(trace.tokens_per_layer) - 2)


def test_videos_of_a_row_have_their_own_groups() -> None:
    x, y = scenes(0, 4, 6), scenes(1, 3, 12)
    visual = shown(x, torch.ones(4, 6), Grid(0, 4, 2, 3, kind="video"))
    other = shown(y, torch.ones(3, 12), Grid(0, 3, 3, 4, kind="video"))
    both = replace(
        visual,
        features=torch.cat([visual.features, other.features], dim=1),
        grids=(visual.grids[0], other.grids[0].moved(24)),
        separators=torch.cat([visual.separators, other.separators]),
    )
    found = PruneVid(per="row").select(both, 60)
    alone = [PruneVid().select(each, n) for each, n in ((visual, 24), (other, 36))]
    assert found.groups is not None and found.order is None
    for name in ("kept", "groups"):
        first, second = (getattr(each, name)[0].tolist() for each in alone)
        assert getattr(found, name)[0].tolist() == [*first, *(24 + i for i in second)]


def test_a_share_of_clusters_is_calibrated_to_a_number_of_tokens() -> None:
    family, model = EVERY["qwen2_5_vl_video"], model_of("qwen2_5_vl_video")
    batches = [family.inputs(model, scenario(family, name)) for name in ("single", "ragged")]
    rest = "prunevid:tau=1.0,inner=False"
    ends = [measure(model, f"{rest},cluster_ratio={share}", batches) for share in (0.0, 1.0)]
    assert ends[0] < ends[1]
    wanted = sum(ends) / 2
    solved, measured = vtc.calibrate(model, rest, "cluster_ratio", batches, wanted)
    assert "cluster_ratio=" in solved and abs(measured - wanted) < 0.1 * wanted


@pytest.mark.parametrize(
    ("method", "fields", "words"),
    [
        (PruneVid, {"tau": 1.5}, ("tau=1.5", "0.8")),
        (PruneVid, {"segment_ratio": -0.1}, ("segment_ratio=-0.1", "share")),
        (PruneVid, {"cluster_ratio": 2}, ("cluster_ratio=2", "share")),
        (PruneVid, {"neighbours": 0}, ("neighbours=0", "below 1")),
        (PruneVid, {"inner": 1}, ("inner=1", "True or False")),
        (PruneVid, {"inner_keep": 2.0}, ("inner_keep=2.0", "share")),
        (PruneVid, {"layer": 0}, ("layer=0", "1 or more")),
        (PruneVidInner, {"keep": 0.0}, ("keep=0.0", "share")),
        (PruneVidInner, {"layer": 0}, ("layer=0", "1 or more")),
    ],
)
def test_bad_fields_are_named(method: type, fields: dict, words: tuple[str, ...]) -> None:
    with pytest.raises((TypeError, ValueError)) as error:
        method(**fields)
    assert all(word in str(error.value) for word in words)


def test_a_merge_of_the_released_order_is_told() -> None:
    """The order of the new tokens is a permutation of them."""
    merged = merge_segments(scenes(0, 8, 20), [4, 4], 0.7, 0.5, 7)
    assert merged.order.sort().values.tolist() == list(range(len(merged.kept)))
    new = ops.merge(scenes(0, 8, 20).flatten(0, 1)[None], merged.mixing, len(merged.kept))
    assert torch.isfinite(new).all()
