"""Methods for videos: `evs` against its rule in loops, `frame_stride`, and what the others do on T × H × W grids."""

import pytest
import torch
from contract import EVERY, model_of
from families import scenario
from hypothesis import given, settings
from hypothesis import strategies as st

import vtc
from vtc.method.units import units
from vtc.method.visual_tokens import VisualTokens
from vtc.model.layout import Grid, Layout, VisualInput
from vtc.selectors.baselines import frame_stride_positions, stride_positions
from vtc.selectors.places import partition
from vtc.selectors.saliency.hiprune import hiprune
from vtc.selectors.video.evs import temporal_change

quick = settings(max_examples=40, deadline=None)
shapes = st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4))


def unit_of(grid):
    tokens = torch.arange(len(grid))
    return units(Layout((1, len(grid)), (VisualInput(0, "video", tokens, (grid,)),)), "input")[0]


def tokens_of(features, grid):
    return VisualTokens(features, (grid,), unit_of(grid).separators, "video")


# ---------------------------------------------------------------- evs


def evs_in_loops(features, grid, keep):
    """Tokens that stay, for one video [N, D], by the public description."""
    cells = grid.tokens().flatten(1).tolist()
    change = dict.fromkeys(cells[0], 255.0)
    for frame in range(1, grid.t):
        for before, cell in zip(cells[frame - 1], cells[frame]):
            change[cell] = 1 - float(torch.cosine_similarity(features[cell].double(), features[before].double(), dim=0))
    wanted = max(grid.h * grid.w, keep if isinstance(keep, int) else int(grid.t * grid.h * grid.w * keep))
    ranked = sorted(change, key=lambda cell: -change[cell])  # stable
    separators = set(range(len(features))) - set(change)
    return sorted({*ranked[:wanted], *separators})


@quick
@given(
    shapes, st.sampled_from([0.1, 0.25, 0.5, 0.9, 1.0, 1, 3, 7, 1000]), st.integers(0, 1), st.integers(0, 1),
    st.integers(0, 1), st.integers(0, 99),
)  # fmt: skip
def test_evs_is_its_rule(shape, keep, row_end, end, front, seed):
    grid = Grid(0, *shape, row_end=row_end, end=end, front=front)
    features = torch.randn(2, len(grid), 8, generator=torch.Generator().manual_seed(seed))
    method, unit = vtc.EVS(keep=keep), unit_of(grid)
    count = method.count_of(unit)
    if grid.t == 1:
        assert count == len(grid)
        return
    expected = [evs_in_loops(video, grid, keep) for video in features]
    assert [count] * 2 == [len(tokens) for tokens in expected]
    assert method.select(tokens_of(features, grid), count).kept.tolist() == expected


@pytest.mark.parametrize(
    ("frames", "keep", "count"),
    [(4, 1.0, 40), (4, 0.999, 39), (4, 0.5, 20), (4, 0.26, 10), (4, 0.1, 10), (4, 1e-9, 10), (2, 0.5, 10), (1, 0.1, 10),
     (3, 0.5, 15), (4, 13, 13), (4, 1, 10), (4, 99, 40)],
)  # fmt: skip
def test_evs_counts_are_rounded_down_and_at_least_a_frame(frames, keep, count):
    assert vtc.EVS(keep=keep).count_of(unit_of(Grid(0, frames, 2, 5))) == count
    assert vtc.EVS(keep=keep).count_of(unit_of(Grid(0, frames, 2, 5, end=1))) == count + 1


def test_evs_of_a_static_video_keeps_its_beginning():
    grid, frame = Grid(0, 4, 3, 3), torch.randn(1, 9, 16, generator=torch.Generator().manual_seed(0))
    features = frame.repeat(1, 4, 1)
    assert vtc.EVS(keep=0.5).select(tokens_of(features, grid), 18).kept[0].tolist() == list(range(18))


def test_evs_compares_with_the_frame_before_in_float32():
    first = torch.tensor([1.0, 0.0])
    second, third = torch.tensor([1.0, 0.01]), torch.tensor([1.0, 0.02])
    change = temporal_change(torch.stack([first, second, third])[:, None].bfloat16())
    assert change.dtype == torch.float32
    assert change[0] == 255 and 0 < change[1] < 1e-3 and 0 < change[2] < 1e-3
    opposite, square = torch.tensor([-3.0, 0.0]), torch.tensor([0.0, 2.0])
    torch.testing.assert_close(
        temporal_change(torch.stack([first, opposite, square])[:, None])[1:, 0], torch.tensor([2.0, 1.0])
    )


def test_evs_leaves_images_bit_exact():
    family, model = EVERY["llava_next"], model_of("llava_next")
    inputs = family.inputs(model, scenario(family, "ragged"))
    with torch.no_grad():
        logits = model(**inputs).logits
        with vtc.patched(model, "evs:keep=0.1"):
            assert torch.equal(model(**inputs).logits, logits)


# ---------------------------------------------------------------- frame_stride


@quick
@given(shapes, st.integers(0, 1), st.data())
def test_frame_stride_keeps_whole_frames_and_part_of_one(shape, front, data):
    grid = Grid(2, *shape, front=front)
    k = data.draw(st.integers(1, shape[0] * shape[1] * shape[2]))
    kept = frame_stride_positions((grid,), k)
    assert len(kept) == k and (kept.diff() > 0).all()
    assert torch.isin(kept, grid.tokens().flatten()).all()
    held = torch.isin(grid.tokens().flatten(1), kept).sum(dim=1)
    frame = shape[1] * shape[2]
    assert (held == frame).sum() == k // frame
    assert sorted(held[held > 0].tolist()) == sorted([frame] * (k // frame) + [k % frame] * (k % frame > 0))
    gaps = held.nonzero()[:, 0].diff()
    assert not len(gaps) or gaps.max() - gaps.min() <= 1


def test_frame_stride_takes_the_middle_and_is_stride_on_images():
    grid = Grid(0, 8, 2, 2)
    assert frame_stride_positions((grid,), 8).tolist() == [8, 9, 10, 11, 24, 25, 26, 27]
    for grids in ((Grid(0, 1, 4, 4),), (Grid(0, 1, 2, 2), Grid(4, 1, 3, 4, row_end=1))):
        assert torch.equal(frame_stride_positions(grids, 7), stride_positions(grids, 7))


# ---------------------------------------------------------------- the others, on grids with time


def test_a_quarter_pools_2_by_2_cells_of_each_frame():
    box_of, centres = partition(3, 4, 6, 18)
    frames = box_of.view(3, 4, 6)
    assert [frame.unique().numel() for frame in frames] == [6, 6, 6]
    assert all((frame.unique(return_counts=True)[1] == 4).all() for frame in frames)
    assert (centres // 24).bincount().tolist() == [6, 6, 6]


def test_buffers_of_hiprune_stay_in_the_frame():
    score = torch.zeros(1, 18)
    score[0, 8] = 1.0  # the last place of the first of two frames of 3 × 3
    kept = hiprune(score, torch.zeros(1, 18), 5, (3, 3), alpha=1.0)
    assert kept[0].nonzero()[:, 0].max() == 8


def test_divprune_is_joint_over_frames():
    """What repeats in a later frame goes; by the frame it stays."""
    family, model = EVERY["qwen2_5_vl_video"], model_of("qwen2_5_vl_video")
    inputs = family.inputs(model, scenario(family, "single"))
    half = len(inputs["pixel_values_videos"]) // 2
    inputs["pixel_values_videos"][half:] = inputs["pixel_values_videos"][:half]
    with torch.no_grad():
        for per, expected in (("input", [16, 0]), ("frame", [8, 8])):
            with vtc.patched(model, "divprune", keep=0.5, per=per):
                model(**inputs)
                kept = vtc.trace(model).images[0].kept()
            assert (kept // 16).bincount(minlength=2).tolist() == expected
