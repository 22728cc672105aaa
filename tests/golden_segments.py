"""Golden checks of the methods that merge within segments of a video: fastvid and flashvid."""

import math
from itertools import combinations, pairwise
from typing import Any

import torch
from golden_cases import HIDDEN, SCORE, Case, Checks, Form, UnknownForm, as_keep
from torch import Tensor
from torch.testing import assert_close

from vtc import ops
from vtc.attention.scores import Attention
from vtc.method.prune import Rows
from vtc.method.reduction import Reduction
from vtc.method.visual_tokens import VisualTokens
from vtc.model.layout import Grid, VisualInput
from vtc.prunes.flashvid_inner import FlashVIDInner
from vtc.selectors.video.segments.cutting import cut, frame_means, frame_similarity
from vtc.selectors.video.segments.fastvid import FastVID
from vtc.selectors.video.segments.flashvid import FlashVID
from vtc.selectors.video.segments.trees import attended_and_diverse, relevance
from vtc.selectors.video.videos import Video


def new_tokens(features: Tensor, reduction: Reduction) -> Tensor:
    """What stands at the places [k] that are kept of tokens [N, D]."""
    return ops.merge(features[None], reduction.mixing, reduction.kept.shape[1])[0]


def lengths(segments: list[tuple[int, int]]) -> list[int]:
    return [end - first for first, end in segments]


# ---------------------------------------------------------------- fastvid


def check_fastvid(case: Case) -> None:
    features, frames, attention = case["features"], case["frame_features"], case["attention"]
    similarity, variant = frame_similarity(frames), case.text("variant")
    assert_close(similarity, case["frame_similarity"], **SCORE)
    if variant == "qwen":
        assert_close(frame_means(features), frames, **SCORE)
    least, tau = case.whole("c"), case.number("tau")
    if case.tie is False:
        assert lengths(cut(similarity, least, tau)) == case.wholes("segments")
        compare_fastvid(case, features, frames, attention, variant)
        return
    # Frames are equal, and which of them are cut between is a tie: some cuts give exactly what the released code did.
    found = [
        lengths(list(pairwise([0, *cuts, len(frames)])))
        for cuts in combinations(range(1, len(frames)), least - 1)
        if matches(case, features, parted_at(cuts, len(frames)), attention, variant)
    ]
    assert len(found) == 1 and len(found[0]) == least


def parted_at(cuts: tuple[int, ...], frames: int) -> Tensor:
    """Vectors of frames that are equal within segments and have nothing in common with those of other segments."""
    return torch.eye(frames)[[sum(place <= frame for place in cuts) for frame in range(frames)]]


def matches(case: Case, *arguments: Any) -> bool:
    try:
        compare_fastvid(case, *arguments)
    except AssertionError:
        return False
    return True


def compare_fastvid(case: Case, features: Tensor, frames: Tensor, attention: Tensor, variant: str) -> None:
    length, tokens, width = features.shape
    rows = "newline" in case
    side = math.isqrt(tokens) if rows else tokens
    grid = Grid(0, length, tokens // side, side, row_end=int(rows), kind="video")
    cells = grid.tokens().flatten()
    sequence = case["newline"].repeat(len(grid), 1) if rows else torch.empty(len(grid), width)
    sequence[cells] = features.flatten(0, 1)
    method = Told(
        keep=as_keep(case.number("ratio")),
        segments=case.whole("c"),
        tau=case.number("tau"),
        density=case.number("d"),
        distance=case.whole("p"),
        beta=case.number("beta"),
        ignore=case.number("ignore", default=FastVID.ignore),
        variant=variant,
    )
    method.frames, method.attention = frames, attention
    separators = VisualInput(0, "video", torch.arange(len(grid)), (grid,)).separators()
    reduction = method.select(VisualTokens(sequence[None], (grid,), separators, "video"), len(grid))
    assert reduction.kept[0].tolist() == case.indices("places")
    mixing = reduction.mixing
    assert mixing is not None
    assert_close(new_tokens(sequence, reduction), case["tokens"], **HIDDEN)


class Told(FastVID):
    """With frames' vectors and saliency that are given."""

    frames: Tensor
    attention: Tensor

    def choose(self, video: Video) -> Reduction:
        assert self.variant is not None
        each = int(video.features.shape[2] * self.keep)
        return self.compress(video.features[0], self.frames, self.attention, each, self.variant)


# ---------------------------------------------------------------- flashvid


def check_flashvid(case: Case) -> None:
    features, attention, version = case["features"], case["attention"], case.text("select")
    average, share = frame_means(features), as_keep(case.number("ratio"))
    similarity = frame_similarity(average)
    assert_close(similarity, case["frame_similarity"], **SCORE)
    segments = cut(similarity, case.whole("min_segments"), case.number("cut"))
    assert lengths(segments) == case.wholes("segments")
    counts = case.whole("adts_per_frame"), case.whole("merged_per_frame")
    weight = attention * relevance(features, average, segments) if version == "attn_div_v2" else attention
    chosen = attended_and_diverse(features, weight, counts[0])
    if case.tie is not True:
        assert chosen.nonzero()[:, 1].view(len(features), -1).tolist() == case.indices("selected")
    for tree_mean, prefix in (("size", "clean_"), ("released", "")):
        method = FlashVID(
            alpha=case.number("alpha"),
            expansion=case.number("expansion"),
            link=case.number("link"),
            tau=case.number("cut"),
            segments=case.whole("min_segments"),
            tree_mean=tree_mean,  # type: ignore[arg-type]
        )
        assert method.per_frame(features.shape[1], share) == counts
        reduction = method.compress(features, attention, share, version)
        # Of a segment of one frame the released code merges the selected tokens too.
        alike = torch.tensor([n > 1 or tree_mean == "size" for n in lengths(segments) for _ in range(n)])
        compare_flashvid(case, prefix, reduction, features, alike)


def compare_flashvid(case: Case, prefix: str, reduction: Reduction, features: Tensor, alike: Tensor) -> None:
    """Compare what is left of the frames that are `alike`, and how much of all."""
    kept, places = reduction.kept[0], case.index(f"{prefix}places")
    new, tokens = new_tokens(features.flatten(0, 1), reduction), case[f"{prefix}tokens"]
    assert len(kept) == len(places) and new.shape == tokens.shape
    if case.tie is True:
        return
    ours, theirs = (alike[each // features.shape[1]] for each in (kept, places))
    if case.tie is False:
        assert kept[ours].tolist() == places[theirs].tolist()
        assert_close(new[ours], tokens[theirs], **HIDDEN)
    elif case.tie == "places of merged tokens":
        for frame in range(len(features)):
            mine, official = (t[p // features.shape[1] == frame] for t, p in ((new, kept), (tokens, places)))
            apart = torch.cdist(mine, official, compute_mode="donot_use_mm_for_euclid_dist")
            assert sorted(apart.argmin(dim=1).tolist()) == list(range(len(official)))
            assert_close(mine, official[apart.argmin(dim=1)], **HIDDEN)
    else:
        raise UnknownForm(f"{case}: tie={case.tie!r} is not known")


def check_flashvid_counts(case: Case) -> None:
    for tokens, *shares, selected, merged in case.indices("table"):
        ratio, alpha, expansion = (share / 10**4 for share in shares)
        assert FlashVID(alpha=alpha, expansion=expansion).per_frame(tokens, ratio) == (selected, merged)


def check_flashvid_inner(case: Case) -> None:
    row, start = case["last_row"], case.whole("visual_start")
    (heads, keys), count = row.shape, case.whole("visual_count")
    assert_close(row.sum(dim=1), torch.ones(heads), **SCORE)
    query = torch.ones(1, heads, keys, 1)  # of which the last has these probabilities: the softmax of their logarithms
    visual = torch.zeros(1, keys, dtype=torch.bool)
    visual[:, start : start + count] = True
    method, memory = FlashVIDInner(keep=as_keep(case.number("ratio"))), {}
    rows = Rows(20, torch.zeros(1, keys, 4), visual, torch.ones_like(visual), ~visual)
    method.on_attention(rows, Attention(query, row.log()[None, :, :, None], 1.0), memory)
    assert_close(memory["attention"][0], row.mean(dim=0), **SCORE)
    alive = method.decide(rows, [method.count(count)], memory).alive[0]
    assert (alive | ~visual[0]).nonzero()[:, 0].tolist() == case.indices("keep")


CHECKS: Checks = [
    Form(
        lambda c: c.has("features", "frame_features", "attention", "places", "tokens"),
        check_fastvid,
        r"features|frame_features|attention|frame_similarity|newline|places|tokens",
    ),
    Form(
        lambda c: c.has("features", "attention", "selected", "clean_places", "clean_tokens"),
        check_flashvid,
        r"features|attention|frame_similarity|selected|(clean_)?(places|tokens)",
    ),
    Form(lambda c: c.file.stem == "flashvid" and "table" in c, check_flashvid_counts, r"table"),
    Form(
        lambda c: c.has("last_row", "visual_start", "visual_count", "keep"),
        check_flashvid_inner,
        r"last_row|visual_start|visual_count|keep",
    ),
]
