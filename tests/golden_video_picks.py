"""Golden checks of selectors that pick tokens of a video's frames: vidcom2, v_cast, evs with a threshold, dycoke."""

import torch
from golden_cases import SCORE, Case, Checks, Form, as_number
from torch import Tensor
from torch.testing import assert_close

from vtc import EVS, VCAST, DyCoke, DyCokeDecode, VidCom2, VisualTokens
from vtc.method.prune import Memory
from vtc.method.selector import Selector
from vtc.method.units import Unit
from vtc.model.layout import Grid, VisualInput
from vtc.ops.similarity import unit_rows
from vtc.selectors.video.dycoke import least_alike, thinned
from vtc.selectors.video.evs import temporal_change
from vtc.selectors.video.v_cast import curvature, frame_budgets, frame_directions, standing_out
from vtc.selectors.video.vidcom2 import frame_shares, likeness, steady_channels


def grid_of(case: Case, **separators: int) -> Grid:
    return Grid(0, *case.wholes("grid"), kind="video", **separators)


def selected(method: Selector, cells: Tensor, grid: Grid) -> list[int]:
    """What a selector keeps of a video whose cells are [T·H·W, D]; separators are 7."""
    features = torch.full((1, len(grid), cells.shape[-1]), 7.0)
    features[0, grid.places()] = cells
    unit = Unit((0,), (None,), (grid,), "video", 0, torch.arange(len(grid)))
    count = len(grid) if method.adaptive else method.count_of(unit)
    separators = VisualInput(0, "video", unit.positions, (grid,)).separators()
    kept = method.select(VisualTokens(features, (grid,), separators, "video"), count).kept[0].tolist()
    assert method.adaptive or len(kept) == count
    return kept


# ---------------------------------------------------------------- vidcom2


def check_vidcom2(case: Case) -> None:
    cells, grid, ratio = case["features"], grid_of(case), case.number("ratio")
    features = cells.view(1, grid.t, -1, cells.shape[1])
    assert steady_channels(features)[0].tolist() == case.indices("low_variance_channels")
    of_video, of_frame = likeness(features)
    assert_close(of_video[0], case["video_score"], **SCORE)
    assert_close(of_frame[0], case["frame_score"], **SCORE)
    assert_close(frame_shares(of_video, ratio)[0], case["scales"], **SCORE)
    released, exact = (selected(VidCom2(keep=ratio, exact=exact), cells, grid) for exact in (False, True))
    assert len(released) == len(case.indices("kept")) and len(exact) == len(case.indices("kept_exact"))
    assert len(released) == case.whole("official_count") and len(exact) == case.whole("exact_count")
    if case.tie is True:
        return
    frames = torch.tensor(released) // (grid.h * grid.w)
    assert torch.bincount(frames, minlength=grid.t).tolist() == case.indices("budgets")
    assert released == sorted(case.indices("kept"))
    if case.tie is False:
        assert exact == sorted(case.indices("kept_exact"))


def check_vidcom2_newlines(case: Case) -> None:
    method, cells = VidCom2(keep=case.number("ratio"), exact=False), case["features"]
    assert selected(method, cells, grid_of(case)) == sorted(case.indices("kept"))
    assert selected(method, cells, grid_of(case, row_end=1)) == sorted(case.indices("rows"))


def check_vidcom2_counts(case: Case) -> None:
    for frames, tokens, removed, left in case.indices("table"):
        method = VidCom2(keep=1 - removed / 1e4) if removed < 1e4 else VidCom2(keep=1e-9)
        assert method.left_of(frames, tokens, method.keep) == left


# ---------------------------------------------------------------- v_cast


def check_v_cast(case: Case) -> None:
    cells, grid, ratio = case["features"], grid_of(case), case.number("ratio")
    kept = selected(VCAST(keep=ratio), cells, grid)
    assert len(kept) == len(case.indices("kept"))
    if "score" not in case:
        assert kept == case.indices("kept")
        return
    features = cells.view(1, grid.t, -1, cells.shape[1])
    frames, tokens = frame_directions(features), features.shape[2]
    assert_close(curvature(frames)[0], case["curvature"], **SCORE)
    assert_close((curvature(frames) / 0.7).softmax(dim=1)[0], case["weights"], **SCORE)
    assert_close(standing_out(features, frames)[0], case["score"], **SCORE)
    assert frame_budgets(case["weights"][None], case.whole("total"), tokens)[0].tolist() == case.indices("budgets")
    if case.tie is False:
        assert kept == sorted(case.indices("kept"))
    else:  # which frame has the remainder; of a frame's tokens stay those that stand out most
        budgets = torch.bincount(torch.tensor(kept) // tokens, minlength=grid.t).tolist()
        assert sorted(budgets) == sorted(case.indices("budgets"))
        for frame, score in enumerate(case["score"]):
            most = score.argsort(descending=True)[: budgets[frame]] + frame * tokens
            assert sorted(most.tolist()) == [place for place in kept if place // tokens == frame]


def check_v_cast_budgets(case: Case) -> None:
    budgets = frame_budgets(case["weights"][None], case.whole("total"), case.whole("max_k"))[0].tolist()
    assert sum(budgets) == sum(case.indices("budgets")) and max(budgets) <= case.whole("max_k")
    if case.tie is False:
        assert budgets == case.indices("budgets") and min(budgets) >= case.whole("min_k")


# ---------------------------------------------------------------- evs


def check_evs_threshold(case: Case) -> None:
    """`dissimilarity` is to the frame before, whatever the files' description says of the last kept token."""
    cells, grid = case["features"], grid_of(case)
    told = case.info.get("thresholds", {"0": case.info})
    for number, found in told.items():
        threshold = as_number(found["threshold"], f"{case}: threshold")
        for reference in ("kept", "previous"):
            method = EVS(threshold=threshold, reference=reference)
            official = case.indices(f"{reference}{number}")
            assert selected(method, cells, grid) == official
            if reference in found:
                assert len(official) == as_number(found[reference], reference)
    assert len(case.named(r"kept\d+")) == len(case.named(r"previous\d+")) == len(told)
    if "dissimilarity" in case:
        change = temporal_change(cells.view(grid.t, -1, cells.shape[1]))[1:]
        assert_close(change, case["dissimilarity"], **SCORE)


# ---------------------------------------------------------------- dycoke


def check_dycoke(case: Case) -> None:
    features, drop = case["features"], case.number("k")
    (frames, tokens, _), method = features.shape, DyCoke(drop=drop)
    assert (frames, tokens) == (case.whole("frames"), case.whole("tokens"))
    assert int((1 - drop) * tokens) == case.whole("kept_per_reduced_frame")
    grid = Grid(0, frames, 1, tokens, kind="video")
    kept, lost = selected(method, features.flatten(0, 1), grid), frames % 2 * tokens  # the released code loses these
    assert len(kept) == int(as_number(case.info["kept"], f"{case}: kept")) + lost
    if "kept" not in case:
        assert case.tie is True
        return
    assert kept == case.indices("kept_with_last_frame")
    assert kept[: len(kept) - lost] == case.indices("kept")
    unit, picks = unit_rows(features)[None], {}
    for back, thin in enumerate(thinned(frames, every_group=False), start=1):
        picks |= zip(thin, least_alike(unit, thin, back, case.whole("kept_per_reduced_frame"))[0])
    order = [picks.get(frame, torch.arange(tokens)) + frame * tokens for frame in range(frames - frames % 2)]
    assert torch.cat(order).tolist() == case.indices("order")


def check_dycoke_counts(case: Case) -> None:
    for tokens, drop, left in case.indices("table"):
        assert DyCoke(drop=drop / 1e4).left_of(2, tokens, None) == tokens + left


def check_dycoke_decode(case: Case) -> None:
    """The rows of the released run's steps, as what a step is told; the choice is among the visual tokens."""
    rows, start, tokens = case["head_rows"].mean(dim=1), case.whole("visual_start"), case.whole("visual_count")
    official, left, renewed = case.index("kept_visual"), case.whole("kept"), case.mask("renewed")
    visual = torch.zeros(1, rows.shape[1], dtype=torch.bool)
    visual[:, start : start + tokens] = True
    count = DyCokeDecode(keep=1 - case.number("p")).seen_at(0, tokens)
    assert count == left == official.shape[1]
    memories: dict[bool, Memory] = {True: {}, False: {}}
    before, last = None, None
    for step, row in enumerate(rows):
        keys = int(row.nonzero()[-1]) + 1
        assert keys >= start + tokens
        chosen = {
            reuse: DyCokeDecode(reuse=reuse).choose(row[None, :keys], visual[:, :keys], [count], memory)[0, start:][
                :tokens
            ]
            for reuse, memory in memories.items()
        }
        seen = row[start : start + tokens]
        if before is not None:
            assert_close(torch.cosine_similarity(seen, before, dim=0), case["similarity"][step], **SCORE)
        if renewed[step]:
            last = sorted(official[step].tolist())
            assert chosen[True].nonzero()[:, 0].tolist() == chosen[False].nonzero()[:, 0].tolist() == last
        else:  # the released code sees all again
            assert (official[step] == -1).all() and chosen[False].all()
            assert chosen[True].nonzero()[:, 0].tolist() == last
        before = seen


def of(stem: str, *names: str):
    """Cases of a file that have some tensors."""
    return lambda case: case.file.stem == stem and case.has(*names)


CHECKS: Checks = [
    Form(of("vidcom2", "rows"), check_vidcom2_newlines, r"features|kept|rows"),
    Form(of("vidcom2", "table"), check_vidcom2_counts, r"table"),
    Form(
        of("vidcom2", "features"),
        check_vidcom2,
        r"features|low_variance_channels|(video|frame)_score|scales|budgets|kept(_exact)?",
    ),
    Form(of("v_cast", "features"), check_v_cast, r"features|curvature|weights|budgets|score|kept"),
    Form(of("v_cast", "weights"), check_v_cast_budgets, r"weights|budgets"),
    Form(of("evs_threshold", "features"), check_evs_threshold, r"features|(kept|previous)\d+|dissimilarity"),
    Form(of("dycoke", "features"), check_dycoke, r"features|order|kept(_with_last_frame)?"),
    Form(of("dycoke", "table"), check_dycoke_counts, r"table"),
    Form(of("dycoke", "head_rows"), check_dycoke_decode, r"head_rows|similarity|renewed|kept_visual"),
]
