"""Golden checks of selectors that pick tokens of a video's frames: vidcom2, v_cast."""

import torch
from golden_cases import SCORE, Case, Checks, Form
from torch import Tensor
from torch.testing import assert_close

from vtc import VCAST, VidCom2, VisualTokens
from vtc.method.selector import Selector
from vtc.method.units import Unit
from vtc.model.layout import Grid, VisualInput
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
]
