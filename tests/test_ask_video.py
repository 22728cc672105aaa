"""`vtc ask --video`: two answers, the trace, and panels in which exactly the kept patches of each frame are bright."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_base import Row
from tiny_videos import InternVLVideo, LlavaOnevisionVideo, Qwen2_5VLVideo, Qwen3VLVideo, VideoLlavaVideo
from video_files import ffmpeg, needs_ffmpeg

import vtc
from vtc.eval import embedded
from vtc.eval.cli import main
from vtc.eval.media import contact_sheet
from vtc.eval.media.picture import OUTLINE
from vtc.eval.media.video import Video
from vtc.eval.models import load


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A bright square that moves over a bright ground, 2 seconds."""
    file = tmp_path_factory.mktemp("clip") / "clip.mp4"
    moving = "color=0xd08080:s=60x60:r=10:d=2[s];color=0xc0e0c0:s=320x240:r=10:d=2[g];[g][s]overlay=x=n*10:y=90"
    ffmpeg("-filter_complex", moving, "-pix_fmt", "yuv420p", file)
    return file


def ask(clip, *arguments):
    return main(["ask", "--video", str(clip), "--question", "What moves?", *map(str, arguments)])


@needs_ffmpeg
def test_ask_prints_both_answers_and_draws_a_sheet(clip, tmp_path, capsys):
    out = tmp_path / "kept.png"
    assert ask(clip, "--out", out) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0] == "question: What moves?"
    assert lines[1].startswith("all visual tokens: ")
    assert lines[2].startswith("divprune:keep=0.25: ")
    assert "513 -> 128 visual tokens" in lines[3]
    assert f"outlined what was merged into it: {out}" in printed.err
    assert Image.open(out).size == (4 * 232 - 8, 2 * 250 + 56)


@needs_ffmpeg
@pytest.mark.parametrize("ending", ["gif", "webp"])
def test_a_moving_picture_has_a_frame_for_each(clip, tmp_path, ending):
    out = tmp_path / f"kept.{ending}"
    assert ask(clip, "--out", out, "--frames", 4, "--compress", "evs:keep=0.5", "--max-new-tokens", 1) == 0
    with Image.open(out) as moving:
        assert moving.n_frames == 4
        assert moving.size == (224, 306)


@needs_ffmpeg
def test_what_cannot_be_asked_is_told(clip, tmp_path, capsys):
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    for arguments, message in (
        (["--video", text], "can't be opened: it is no video"),
        (["--video", clip, "--out", tmp_path / "kept.mp4"], "has no ending of a picture"),
        (["--video", clip, "--compress", "tome"], "argument --compress: llava_onevision pools the frames of a video"),
        (["--video", clip, "--model", embedded.path()], "takes no videos; give a model for videos"),
        (["--video", clip, "--compress", "nothing"], "argument --compress: "),
    ):
        assert main(["ask", "--question", "?", *map(str, arguments)]) == 2
        assert message in capsys.readouterr().err
    for arguments in (["--video", "x.mp4"], ["--video", clip, "--image", clip], [], ["--video", clip, "--frames", 0]):
        with pytest.raises(SystemExit):
            main(["ask", "--question", "?", *map(str, arguments)])
        assert "error: " in capsys.readouterr().err


def panels_of(family, size: tuple[int, ...], frames: int, spec: str):
    """The panels for a bright video, and what was kept of it, by a tiny model."""
    model = family.build()
    inputs = family.inputs(model, [Row((size,), 0)])
    with torch.no_grad(), vtc.patched(model, spec):
        model(**inputs)
        traces = vtc.trace(model).images
    video = Video(np.full((frames, 32, 64, 3), 200, np.uint8), tuple(0.5 * n for n in range(frames)), 10.0, 100)
    return contact_sheet.draw_video(video, {}, None, traces), traces


def bright(panel: contact_sheet.Panel, rows: int, columns: int) -> list[bool]:
    """Whether each patch of a panel is bright."""
    pixels = np.asarray(panel.picture.convert("L"), dtype=float)
    lines = [np.array_split(line, columns, axis=1) for line in np.array_split(pixels, rows)]
    return [bool(np.median(patch) > 128) for line in lines for patch in line]


@pytest.mark.parametrize("spec", ["divprune:keep=0.4", "frame_stride:keep=0.5", "evs:keep=0.5"])
@pytest.mark.parametrize(
    ("family", "size", "frames", "times"),
    [
        (LlavaOnevisionVideo(), (6,), 6, [0, 0.5, 1, 1.5, 2, 2.5]),
        (VideoLlavaVideo(), (3,), 3, [0, 0.5, 1]),
        (Qwen2_5VLVideo(), (3, 4, 8), 6, [0, 1, 2]),
        (Qwen2_5VLVideo(), (3, 4, 8), 5, [0, 1, 2]),
        (Qwen3VLVideo(), (3, 4, 8), 6, [0, 1, 2]),
        (InternVLVideo(), (3,), 3, [0, 0.5, 1]),
    ],
    ids=["llava_onevision", "video_llava", "qwen2_5_vl", "qwen2_5_vl, odd", "qwen3_vl", "internvl"],
)
def test_bright_patches_are_the_kept_tokens(family, size, frames, times, spec):
    panels, traces = panels_of(family, size, frames, spec)
    assert [panel.time for panel in panels] == times
    expected = [
        [token in trace.kept().tolist() for token in frame.flatten().tolist()]
        for trace in traces
        for frame in trace.source.grids[0].tokens()
    ]
    grid = traces[0].source.grids[0]
    assert [bright(panel, grid.h, grid.w) for panel in panels] == expected
    assert [panel.kept for panel in panels] == [sum(frame) for frame in expected]
    assert {panel.given for panel in panels} == {grid.h * grid.w}
    assert panels[-1].caption == f"{times[-1]:.2f} s: kept {sum(expected[-1])} of {grid.h * grid.w}"


def test_panels_show_the_middle_that_the_model_sees():
    loaded = load("embedded", None, "cpu", None, "video")
    frames = np.zeros((2, 224, 448, 3), np.uint8)
    frames[:, :, 112:336] = 200
    views = contact_sheet.frames_seen_by_model(frames, loaded.inputs([[frames]], ["?"]), loaded.processor)
    assert [view.size for view in views] == [(224, 224)] * 2
    assert np.asarray(views[1]).min() > 190


def test_merged_patches_are_outlined():
    panels, _ = panels_of(LlavaOnevisionVideo(), (6,), 6, "pool:keep=0.25")
    assert any((np.asarray(panel.picture) == OUTLINE).all(axis=-1).any() for panel in panels)


def test_frames_that_are_not_the_videos_are_not_drawn():
    with pytest.raises(ValueError, match="the model makes 6 frames of 7, and which are which is unknown"):
        panels_of(LlavaOnevisionVideo(), (6,), 7, "random:keep=0.5")


def test_a_long_video_is_drawn_in_part(tmp_path):
    panels, _ = panels_of(LlavaOnevisionVideo(), (150,), 150, "random:keep=0.5")
    assert [panel.time for panel in panels] == [1.5 * n for n in range(50)]
    assert contact_sheet.sheet(panels).width == 8 * 232 - 8


def test_bars_are_as_high_as_what_is_kept():
    made = [contact_sheet.Panel(Image.new("RGB", (224, 100)), None, kept, 10) for kept in (0, 5, 10)]
    bars = np.asarray(contact_sheet.sheet(made))[-54:]
    heights = [(bars[:, x] == (60, 110, 180)).all(axis=-1).sum() for x in (50, 300, 550)]
    assert heights[0] == 0 and heights[1] == pytest.approx(27, abs=1) and heights[2] == 54
    assert made[1].caption == "kept 5 of 10"
