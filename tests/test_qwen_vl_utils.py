"""A video file through qwen_vl_utils' `process_vision_info`, read by decord, into a patched Qwen2.5-VL."""

import importlib
import sys

import pytest
import torch
import torchvision_stand_in
from tiny_videos import Qwen2_5VLVideo, Row
from video_files import HEIGHT, WIDTH, needs_ffmpeg, numbered, numbers

import vtc
from vtc.eval.media.video import read

pytestmark = needs_ffmpeg

#: Side of a patch of the tiny model; 2 × 2 patches make a token, and 2 frames one of the model's.
PATCH = 4


@pytest.fixture
def vision_process(monkeypatch):
    """qwen_vl_utils' module, reading by decord, with torchvision where it can be loaded."""
    monkeypatch.setenv("FORCE_QWENVL_VIDEO_READER", "decord")
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        torchvision_stand_in.install(monkeypatch)
    for name in [name for name in sys.modules if name.startswith("qwen_vl_utils")]:
        monkeypatch.delitem(sys.modules, name)
    module = importlib.import_module("qwen_vl_utils.vision_process")
    # It falls back to another reader without a word where decord fails.
    monkeypatch.setitem(module.VIDEO_READER_BACKENDS, "torchvision", None)
    yield module
    for name in [name for name in sys.modules if name.startswith("qwen_vl_utils")]:
        del sys.modules[name]


def patches(video: torch.Tensor) -> torch.Tensor:
    """[T, 3, H, W] -> [T / 2 * H / 4 * W / 4, 96]: patches of 2 frames, those of one token side by side."""
    frames, _, height, width = video.shape
    split = (video / 127.5 - 1).reshape(frames // 2, 2, 3, height // 8, 2, PATCH, width // 8, 2, PATCH)
    return split.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(-1, 3 * 2 * PATCH**2)


def test_frames_of_a_file_reach_the_patched_model(tmp_path, vision_process):
    file = numbered(tmp_path / "numbered.mp4", 90)
    shown = {"type": "video", "video": str(file), "nframes": 8, "resized_height": HEIGHT, "resized_width": WIDTH}
    content = [shown, {"type": "text", "text": "What moves?"}]
    conversation = [{"role": "user", "content": content}]
    images, videos, options = vision_process.process_vision_info(
        conversation, return_video_kwargs=True, image_patch_size=PATCH
    )
    assert images is None and options["fps"] == [pytest.approx(8 / 3)]
    (video,) = videos
    assert video.shape == (8, 3, HEIGHT, WIDTH)
    ours = read(file, frames=8)
    assert numbers(video.permute(0, 2, 3, 1).numpy()) == numbers(ours.frames)
    torch.testing.assert_close(video.permute(0, 2, 3, 1), torch.tensor(ours.frames).float())

    family, grid = Qwen2_5VLVideo(), (4, HEIGHT // PATCH, WIDTH // PATCH)
    model = family.build()
    inputs = family.inputs(model, [Row((grid,), 0)])
    assert inputs["video_grid_thw"].tolist() == [list(grid)]
    inputs["pixel_values_videos"] = patches(video)
    with torch.no_grad():
        before = model(**inputs).logits
        with vtc.patched(model, "divprune:keep=0.25"):
            model.generate(**inputs, max_new_tokens=2, do_sample=False)
            trace = vtc.trace(model)
        assert torch.equal(model(**inputs).logits, before)
    assert (len(trace.images[0].source), len(trace.images[0].kept())) == (480, 120)
    assert trace.images[0].grid == (4, HEIGHT // PATCH // 2, WIDTH // PATCH // 2)


def test_another_size_is_resized(tmp_path, vision_process):
    file = numbered(tmp_path / "numbered.mp4", 30)
    shown = {"video": str(file), "nframes": 4, "resized_height": 2 * HEIGHT, "resized_width": WIDTH}
    _, (video,) = vision_process.process_vision_info([{"role": "user", "content": [shown]}], image_patch_size=PATCH)
    assert video.shape == (4, 3, 2 * HEIGHT, WIDTH)
    assert numbers(video.permute(0, 2, 3, 1).numpy()) == [0, 10, 19, 29]
