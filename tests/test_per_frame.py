"""What `keep` counts in: a whole image or video, each frame of a video, or all images of a row."""

import dataclasses

import pytest
import torch
from contract import EVERY, METHODS, ON_VIDEOS, check_rows, model_of, spec_of, state_of
from covering import product
from families import Row, scenario
from test_video_families import MIXED
from tiny_videos import Mixed

import vtc
from vtc.method.registry import method_class
from vtc.method.units import units
from vtc.method.visual_tokens import Crops, VisualTokens
from vtc.model.layout import Grid, Layout, VisualInput
from vtc.spec import parse, to_string

SELECTORS = [m for m in METHODS if method_class(m).kind == "selector" and m != "none" and not m.startswith("test-")]
VIDEOS = ("llava_onevision_video", "video_llava_video", "qwen3_vl_video")


pytestmark = pytest.mark.usefixtures("no_grad")


def method_of(name, family, per="input", keep=0.5):
    return dataclasses.replace(parse(spec_of(name, family, keep))[0], per=per)


def run(model, inputs, method, monkeypatch):
    """What the method was shown, and the trace."""
    shown, select = [], type(method).select

    def spy(self, visual, k):
        shown.append(visual)
        return select(self, visual, k)

    with monkeypatch.context() as patched:
        patched.setattr(type(method), "select", spy)
        with vtc.patched(model, method):
            model(**inputs)
            return shown, vtc.trace(model)


def frame_of(visual, frame):
    """The tokens of one frame within a video, and the frame by itself, cut by hand."""
    (grid,) = visual.grids
    length, last = grid.front + grid.h * (grid.w + grid.row_end), frame == grid.t - 1
    inside = torch.arange(frame * length, visual.features.shape[1] if last else (frame + 1) * length)
    alone = dataclasses.replace(grid, t=1, end=grid.end if last else 0)
    of_tower = {
        name: {key: values[:, inside] for key, values in getattr(visual, name).items()}
        for name in ("received", "cls", "keys", "hidden", "observed")
    }
    crops = None
    if visual.crops is not None:
        place = torch.full((len(inside),), -1)
        place[alone.tokens().flatten()] = torch.arange(grid.h * grid.w)
        crops = Crops(torch.where(place < 0, -1, 0), place, 1, (grid.h, grid.w))
    changes = {"grids": (alone,), "separators": visual.separators[inside], "crops": crops}
    return inside, dataclasses.replace(visual, features=visual.features[:, inside], **changes, **of_tower)


@pytest.mark.parametrize("family", VIDEOS)
@pytest.mark.parametrize("name", SELECTORS)
def test_frames_decide_alone(family, name, monkeypatch):
    """By the frame: what the method does with each frame, cut out of the video by hand."""
    tiny, model = EVERY[family], model_of(family)
    inputs = tiny.inputs(model, scenario(tiny, "single"))
    shown, _ = run(model, inputs, method_of(name, family), monkeypatch)
    (visual,) = shown
    assert isinstance(visual, VisualTokens) and visual.grids[0].t > 1
    method = method_of(name, family, "frame")
    shown, trace = run(model, inputs, method, monkeypatch)
    (image,) = trace.images
    expected, frame_number = [], torch.empty(visual.features.shape[1], dtype=torch.long)
    for frame in range(visual.grids[0].t):
        inside, alone = frame_of(visual, frame)
        frame_number[inside] = frame
        if name in ("dycoke", "evs", "v_cast"):  # a single frame stays whole
            expected += inside.tolist()
            continue
        k = len(inside) if method.adaptive else method.count(len(inside))
        expected += inside[method.select(alone, k).kept[0]].tolist()
    assert image.kept(0).tolist() == expected
    if image.merged_into(0) is not None:
        merged, into = (image.merged_into(0) >= 0).nonzero()[:, 0], image.merged_into(0)
        assert torch.equal(frame_number[into[merged]], frame_number[merged])
        assert torch.isin(into[merged], image.kept(0)).all()


@pytest.mark.parametrize("keep", [0.5, 3])
def test_counts_hold_in_each_frame(keep):
    family, model = EVERY["llava_onevision_video"], model_of("llava_onevision_video")
    with vtc.patched(model, "stride", keep=keep, per="frame"):
        model(**family.inputs(model, scenario(family, "several_images")))
        for image in vtc.trace(model).images:
            frames = (image.kept(0) // 4).clamp(max=5).bincount()  # the newline goes with the last frame
            assert frames.tolist() == ([2] * 6 if keep == 0.5 else [3] * 6)


@pytest.mark.parametrize(
    "family", ["internvl_video", "llava", "llava_next", "llava_onevision_video", "qwen2_5_vl", "qwen2_5_vl_video"]
)
@pytest.mark.parametrize("name", SELECTORS)
def test_a_row_shares_one_budget(family, name, monkeypatch):
    tiny, model = EVERY[family], model_of(family)
    rows = scenario(tiny, "several_images")
    method = method_of(name, family, "row")
    shown, trace = run(model, tiny.inputs(model, rows), method, monkeypatch)
    for row, counts in enumerate(tiny.visual_tokens(rows)):
        kept = sum(len(image.kept(0)) for image in trace.images if image.row == row)
        if name in ON_VIDEOS:  # images, and mostly single frames, stay whole
            assert kept < sum(counts) or not family.endswith("_video") or len(counts) == 1
        elif not method.adaptive:
            assert kept == method.count(sum(counts))
    for visual in shown:
        cells = torch.cat([grid.tokens().flatten() for grid in visual.grids])
        assert torch.equal(cells.sort().values, (~visual.separators).nonzero()[:, 0])
        if visual.crops is not None:
            assert torch.equal(visual.crops.index < 0, visual.separators)
            assert visual.crops.index.unique()[-visual.crops.count :].tolist() == list(range(visual.crops.count))
            high, wide = visual.crops.grid
            pairs = (visual.crops.index * high * wide + visual.crops.place)[~visual.separators]
            assert visual.crops.place.max() < high * wide and len(pairs.unique()) == len(pairs)


def test_frames_that_are_images_are_one_video_to_the_method(monkeypatch):
    """Frames of InternVL, jointly: the same decision as on the frames laid behind each other."""
    family, model, method = EVERY["internvl_video"], model_of("internvl_video"), vtc.DivPrune(keep=0.4, per="row")
    inputs = family.inputs(model, [Row(((3,),), 2)])
    shown, trace = run(model, inputs, method, monkeypatch)
    (visual,) = shown
    assert visual.grids == (Grid(0, 3, 4, 4, kind="video"),) and visual.kind == "video"
    kept = torch.cat([image.kept(0) + 16 * number for number, image in enumerate(trace.images)])
    assert torch.equal(kept, method.select(visual, 19).kept[0])
    assert len({len(image.kept(0)) for image in trace.images}) > 1  # or nothing was shared


def test_blocks_of_a_row_in_several_widths_share_a_grid_of_crops(monkeypatch):
    family, model = EVERY["qwen2_5_vl"], model_of("qwen2_5_vl")
    method = vtc.HiPrune(keep=0.5, per_crop=True, per="row")
    shown, trace = run(model, family.inputs(model, scenario(family, "several_images")), method, monkeypatch)
    assert {visual.crops.grid for visual in shown} == {(4, 6), (7, 3)}
    assert trace.tokens_per_layer[0].tolist() == [20, 10]


@product(
    per=["frame", "row"],
    family=[*VIDEOS, "internvl_video"],
    name=["pool", "divprune", "visionzip", "tokencorr"],
    rows=["ragged", "several_images"],
)
def test_rows_equal_their_own_run(per, family, name, rows, compared):
    spec = f"{spec_of(name, family)},per={per}"
    check_rows(EVERY[family], model_of(family), spec, scenario(EVERY[family], rows), compared=compared)


@product(per=["frame", "row"], family=MIXED, name=["pool", "visionzip", "hiprune"])
def test_an_image_and_a_video_in_one_row(family, name, per):
    image, video = MIXED[family]
    rows = [Row((image, video), 2), Row((video, image), 5)]
    spec = f"{spec_of(name, family)},per={per}"
    check_rows(Mixed(EVERY[family], EVERY[f"{family}_video"]), model_of(family), spec, rows)


@pytest.mark.parametrize("per", ["frame", "row"])
def test_keeping_all_is_bit_exact(per):
    model, family = model_of("llava_onevision_video"), EVERY["llava_onevision_video"]
    inputs = family.inputs(model, scenario(family, "several_images"))
    logits, before = model(**inputs).logits, state_of(model)
    for name in SELECTORS:
        with vtc.patched(model, method_of(name, "llava_onevision_video", per, keep=1.0)):
            assert torch.equal(model(**inputs).logits, logits), name
    assert state_of(model) == before


# ---------------------------------------------------------------- units


def test_units_of_a_layout():
    grids = (
        (Grid(0, 2, 1, 2, end=1),),
        (Grid(0, 1, 1, 2, kind="thumbnail"), Grid(2, 1, 1, 1, row_end=1, kind="tiles")),
    )
    video = VisualInput(0, "video", torch.arange(3, 8), grids[0])
    image = VisualInput(0, "image", torch.arange(10, 14), grids[1])
    other = VisualInput(1, "image", torch.arange(4), (Grid(0, 1, 2, 2),))
    layout = Layout((2, 20), (video, image, other))
    assert [unit.positions.tolist() for unit in units(layout, "input")] == [
        [3, 4, 5, 6, 7],
        [10, 11, 12, 13],
        [0, 1, 2, 3],
    ]
    first, last, whole, alone = units(layout, "frame")
    assert (first.positions.tolist(), last.positions.tolist()) == ([3, 4], [5, 6, 7])
    assert (first.grids, last.grids) == (
        (Grid(0, 1, 1, 2, kind="video"),),
        (Grid(0, 1, 1, 2, end=1, kind="video"),),
    )
    assert last.separators.tolist() == [False, False, True]
    assert [unit.row for unit in (first, last, whole, alone)] == [0, 0, 0, 1]
    row, alone = units(layout, "row")
    assert row.positions.tolist() == [3, 4, 5, 6, 7, 10, 11, 12, 13] and row.images == (0, 1)
    assert [grid.start for grid in row.grids] == [0, 5, 7]
    assert row.separators.tolist() == [False] * 4 + [True] + [False] * 3 + [True]
    assert alone.grids == other.grids


# ---------------------------------------------------------------- specs


def test_per_in_a_spec_and_in_a_repr():
    (method,) = parse("divprune:keep=0.25,per=frame")
    assert method == vtc.DivPrune(keep=0.25, per="frame")
    assert to_string([method]) == "divprune:keep=0.25,per=frame"
    assert repr(vtc.Stride(per="row")) == "Stride(per='row', positions='packed', keep=0.25)"
    assert to_string([vtc.Stride()]) == "stride"


@pytest.mark.parametrize("name", SELECTORS)
def test_bad_values_are_named(name):
    with pytest.raises(ValueError, match=r"per='frames' is not one of 'input', 'frame', 'row'"):
        parse(f"{name}:per=frames")


def test_only_selectors_have_it():
    with pytest.raises(ValueError, match="fastv has no field 'per'"):
        parse("fastv:per=frame")


# ---------------------------------------------------------------- plans


@pytest.mark.parametrize("per", ["input", "frame", "row"])
@pytest.mark.parametrize(
    "spec", ["evs:keep=0.3", "evs:keep=0.1", "stride:keep=0.3", "pool:keep=5", "divprune:keep=0.4"]
)
@pytest.mark.parametrize("family", ["llava_onevision_video", "llava_next_video_video"])
def test_a_plan_of_videos_is_what_happens(family, spec, per):
    tiny, model, spec = EVERY[family], model_of(family), f"{spec},per={per}"
    rows = [scenario(tiny, "several_images")[0]]
    inputs = tiny.inputs(model, rows)
    (tokens, _), length = tiny.visual_tokens(rows)[0], inputs["input_ids"].shape[1]
    plan = vtc.plan(model, spec, text_tokens=length - 2 * tokens, visual_tokens=tokens, images=2, frames=6)
    with vtc.patched(model, spec):
        model(**inputs)
        assert torch.equal(plan.tokens_per_layer, vtc.trace(model).tokens_per_layer[:, 0])


@pytest.mark.parametrize("spec", ["evs:keep=0.5", "evs:keep=0.75", "frame_stride:keep=0.5"])
def test_a_plan_knows_the_cls_tokens_of_frames(spec):
    tiny, model = EVERY["video_llava_video"], model_of("video_llava_video")
    inputs = tiny.inputs(model, [Row(((3,),), 4)])
    plan = vtc.plan(model, spec, text_tokens=inputs["input_ids"].shape[1] - 51, visual_tokens=51, frames=3)
    with vtc.patched(model, spec):
        model(**inputs)
        assert torch.equal(plan.tokens_per_layer, vtc.trace(model).tokens_per_layer[:, 0])


def test_what_a_plan_of_videos_does_not_tell():
    model = model_of("llava_onevision_video")
    with pytest.raises(ValueError, match="what the vision tower does with videos is not planned"):
        vtc.plan(model, "evs", text_tokens=5, visual_tokens=25, frames=6).flops()
    with pytest.raises(ValueError, match="frames=26 of 25 visual tokens"):
        vtc.plan(model, "evs", text_tokens=5, visual_tokens=25, frames=26)
    spec = vtc.solve(model, "evs", "tokens=12", text_tokens=5, visual_tokens=25, frames=6)
    assert vtc.plan(model, spec, text_tokens=5, visual_tokens=25, frames=6).equivalent_tokens == 12
