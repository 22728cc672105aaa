"""Frames of video files: the right ones, of every kind of file; a sentence where there are none; never a hang."""

import random
import subprocess
import sys
from pathlib import Path

import decord
import numpy as np
import pytest
from video_files import FPS, HEIGHT, WIDTH, ffmpeg, needs_ffmpeg, numbered, numbers

from vtc.eval.media.video import read

pytestmark = needs_ffmpeg

#: File name -> options of ffmpeg. In the last two, jumps to key frames don't land where decord's index says.
KINDS = {
    "h264.mp4": (),
    "h264.mkv": (),
    "h264.mov": (),
    "open_groups.mp4": ("-x264-params", "open-gop=1"),
    "one_group.mp4": ("-g", "1000", "-sc_threshold", "0"),
    "all_key.avi": ("-c:v", "mjpeg"),
    "mpeg4.avi": ("-c:v", "mpeg4"),
    "vp9.webm": ("-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8"),
    "flash.flv": ("-c:v", "libx264"),
    "hevc.mp4": ("-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "log-level=error:keyint=32:open-gop=1"),
}
COUNT = 150


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("videos")


@pytest.fixture(scope="module")
def mp4(folder):
    """150 frames in 5 seconds, its index in front, so that a part of it can be opened."""
    return numbered(folder / "whole.mp4", COUNT, "-movflags", "faststart")


@pytest.mark.parametrize("name", KINDS)
def test_the_frames_are_those_at_even_distances(folder, name):
    video = read(numbered(folder / name, COUNT, *KINDS[name]), frames=8)
    expected = np.linspace(0, COUNT - 1, 8).round().astype(int)
    assert numbers(video.frames) == expected.tolist()
    assert video.frames.shape == (8, HEIGHT, WIDTH, 3) and video.frames.dtype == np.uint8
    assert video.times == pytest.approx((expected / FPS).tolist(), abs=2e-3)
    assert video.fps == pytest.approx(FPS, rel=0.01)
    assert video.count == COUNT


@pytest.mark.parametrize("group", [32, 1000])
def test_frames_that_an_edit_list_hides_are_not_counted(folder, group):
    source = numbered(folder / "source.mp4", COUNT, "-g", str(group), "-sc_threshold", "0")
    ffmpeg("-ss", "1.5", "-i", source, "-c", "copy", folder / "cut.mp4")
    video = read(folder / "cut.mp4", frames=COUNT)
    assert numbers(video.frames) == list(range(45, COUNT))
    assert numbers(read(folder / "cut.mp4", frames=4).frames) == [45, 80, 114, 149]
    assert (video.times[0], video.count) == (0, COUNT - 45)


@pytest.mark.parametrize("name", ["stream.ts", "stream.m2ts", "stream.mpg"])
def test_streams_whose_first_frames_decord_loses_are_refused(folder, mp4, name):
    ffmpeg(
        "-i", mp4, *(("-f", "mpeg", "-c:v", "mpeg2video") if name.endswith("mpg") else ("-c", "copy")), folder / name
    )
    with pytest.raises(ValueError, match=r"MPEG transport or program stream.*-c copy whole\.mp4"):
        read(folder / name)


def test_how_many(mp4):
    assert numbers(read(mp4, frames=1).frames) == [0]
    assert numbers(read(mp4, frames=2).frames) == [0, COUNT - 1]
    assert numbers(read(mp4, frames=10**12).frames) == list(range(COUNT))
    assert len(read(mp4).frames) == 8


def test_a_part(mp4):
    part = read(mp4, frames=3, start=1.0, end=2.0)
    assert numbers(part.frames) == [30, 45, 60]
    assert part.times == (1.0, 1.5, 2.0)
    assert part.count == COUNT
    assert numbers(read(mp4, frames=1, start=4).frames) == [120]
    assert numbers(read(mp4, frames=100, end=0.1).frames) == [0, 1, 2, 3]
    for start, end in ((7, None), (2, 1), (None, -1), (float("nan"), None)):
        with pytest.raises(ValueError, match=rf"start is {start} and end {end}.*no frame in between.*4\.967 s"):
            read(mp4, start=start, end=end)


def test_one_frame(folder):
    video = read(numbered(folder / "one.mp4", 1))
    assert numbers(video.frames) == [0]
    assert (video.times, video.count) == ((0.0,), 1)


def test_odd_sizes_narrow_ones_and_rotation(folder, mp4):
    ffmpeg("-i", mp4, "-vf", "scale=321:179", "-pix_fmt", "yuv444p", folder / "odd.mp4")
    assert read(folder / "odd.mp4", frames=2).frames.shape == (2, 179, 321, 3)
    ffmpeg("-i", mp4, "-c", "copy", "-metadata:s:v", "rotate=90", folder / "rotated.mp4")
    turned = read(folder / "rotated.mp4", frames=2).frames
    assert numbers(np.rot90(turned, -1, axes=(1, 2))) == [0, COUNT - 1]


def test_times_of_a_variable_frame_rate(folder, mp4):
    slower = f"setpts='if(lt(N,100),N,100+(N-100)*4)/{FPS}/TB'"
    ffmpeg("-i", mp4, "-vf", slower, "-vsync", "vfr", folder / "variable.mp4")
    video = read(folder / "variable.mp4", frames=4)
    assert numbers(video.frames) == [0, 50, 99, 149]
    assert video.times == pytest.approx([0, 50 / FPS, 99 / FPS, (100 + 49 * 4) / FPS], abs=2e-3)


@pytest.mark.parametrize("rate", [0.0, float("nan"), float("inf"), -1.0])
def test_a_rate_that_makes_no_sense_is_none(mp4, monkeypatch, rate):
    monkeypatch.setattr(decord.VideoReader, "get_avg_fps", lambda reader: rate)
    video = read(mp4, frames=2)
    assert video.fps is None and video.times == (0, pytest.approx(149 / FPS, abs=1e-3))
    monkeypatch.setattr(decord.VideoReader, "get_frame_timestamp", lambda reader, at: np.full((len(at), 2), np.nan))
    video = read(mp4, frames=2)
    assert video.times is None and numbers(video.frames) == [0, 149]
    with pytest.raises(ValueError, match="tells no times; leave start and end out"):
        read(mp4, start=1)


@pytest.mark.parametrize("stamp", [np.nan, 0.0, -1e14])
def test_time_stamps_that_make_no_sense_are_made_of_the_rate(mp4, monkeypatch, stamp):
    monkeypatch.setattr(decord.VideoReader, "get_frame_timestamp", lambda reader, at: np.full((len(at), 2), stamp))
    assert read(mp4, frames=2).times == (0, pytest.approx(149 / FPS, abs=1e-3))


def no_pictures(file):
    ffmpeg("-f", "lavfi", "-i", "sine=d=1", file)


def no_frames(file):
    ffmpeg("-f", "lavfi", "-i", "color=s=64x48:d=1", "-frames:v", "0", file)


BAD = {
    "missing": (lambda file: None, FileNotFoundError, "does not exist; check the path"),
    "folder": (lambda file: file.mkdir(), ValueError, "is no file; give a video file"),
    "empty": (lambda file: file.touch(), ValueError, "is empty; give a video file"),
    "text": (lambda file: file.write_text("not a video\n" * 100), ValueError, "can't be opened: it is no video"),
    "noise": (lambda file: file.write_bytes(random.Random(0).randbytes(50_000)), ValueError, "can't be opened"),
    "sound": (no_pictures, ValueError, "has no frames that decord can read; give another"),
    "nothing": (no_frames, ValueError, "has no frames that decord can read; give another"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_video_is_told(tmp_path, name):
    make, error, message = BAD[name]
    make(tmp_path / "file.mp4")
    with pytest.raises(error, match=rf"video '.*file\.mp4' .*{message}"):
        read(tmp_path / "file.mp4")


def test_a_file_that_is_cut_off(folder, mp4):
    whole = mp4.read_bytes()
    (folder / "half.mp4").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cut off or damaged"):
        read(folder / "half.mp4")
    plain = numbered(folder / "plain.mp4", COUNT).read_bytes()  # the index at the end
    (folder / "no_index.mp4").write_bytes(plain[: len(plain) // 2])
    with pytest.raises(ValueError, match="can't be opened: it is no video, or cut off"):
        read(folder / "no_index.mp4")
    mkv = numbered(folder / "plain.mkv", COUNT).read_bytes()
    (folder / "half.mkv").write_bytes(mkv[: len(mkv) // 2])
    half = read(folder / "half.mkv", frames=COUNT)
    assert 32 < half.count < COUNT
    assert numbers(half.frames)[:-1] == list(range(half.count - 1))  # the last may be damaged


def test_a_file_that_is_damaged_in_the_middle(folder, mp4):
    content = bytearray(mp4.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 1000] = random.Random(0).randbytes(1000)
    (folder / "damaged.mp4").write_bytes(content)
    with pytest.raises(ValueError, match=r"cut off or damaged: frame \d+ can't be decoded \(.+\); save what can"):
        read(folder / "damaged.mp4", frames=COUNT)


CHILD = """
import sys
from vtc.eval.media.video import read
for file in sys.argv[1:]:
    try:
        assert len(read(file).frames)
    except ValueError:
        pass
"""


def test_no_damage_makes_it_hang_or_crash(folder, tmp_path):
    files = []
    for name in ("h264.mp4", "h264.mkv", "mpeg4.avi", "vp9.webm", "hevc.mp4"):
        whole = numbered(folder / name, COUNT, *KINDS[name]).read_bytes()
        for seed in range(12):
            chance, content = random.Random(f"{name} {seed}"), bytearray(whole)
            start, length = chance.randrange(len(whole)), chance.randrange(1, len(whole) // 3)
            damage = content[start : start + length]
            content[start : start + length] = (b"", bytes(len(damage)), chance.randbytes(len(damage)))[seed % 3]
            files.append(tmp_path / f"{seed}_{name}")
            files[-1].write_bytes(content)
    done = subprocess.run([sys.executable, "-c", CHILD, *files], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("frames", [0, -1])
def test_no_frames_are_refused(mp4, frames):
    with pytest.raises(ValueError, match=f"frames is {frames}; give a whole number of at least 1"):
        read(mp4, frames)


@pytest.mark.parametrize("frames", [True, 2.5, "8", None])
def test_what_is_no_number_is_refused(mp4, frames):
    with pytest.raises(TypeError, match=r"frames is .*; give a whole number of at least 1"):
        read(mp4, frames)


def test_without_decord_it_says_how_to_get_it(mp4, monkeypatch):
    monkeypatch.setitem(sys.modules, "decord", None)
    with pytest.raises(ImportError, match=r'pip install "vtc\[video\]"'):
        read(mp4)


def test_any_name_and_no_ffmpeg_program(tmp_path, mp4, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.chdir(tmp_path)
    for name in ("a b.mp4", "http:été.mp4", "-i.mp4", "%03d.mp4"):
        Path(name).write_bytes(mp4.read_bytes())
        assert numbers(read(name, frames=2).frames) == [0, COUNT - 1]


def test_a_bridge_that_the_program_set_does_not_matter(mp4):
    decord.bridge.set_bridge("torch")
    try:
        assert numbers(read(mp4, frames=2).frames) == [0, COUNT - 1]
    finally:
        decord.bridge.reset_bridge()


MEASURE = """
import sys
from vtc.eval.media.video import read
assert len(read(sys.argv[1]).frames) == 8
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def peak(file: Path) -> int:
    """KiB of memory that reading 8 frames takes at most, the process included."""
    return int(
        subprocess.run([sys.executable, "-c", MEASURE, file], capture_output=True, check=True, timeout=60).stdout
    )


def test_a_long_video_is_neither_held_nor_decoded_whole(folder, mp4, monkeypatch):
    long = folder / "long.mp4"
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=160x48:r=30", "-frames:v", "10000", "-preset", "ultrafast", long)
    assert peak(long) - peak(mp4) < 2**15  # 32 MiB; all its frames are 220
    steps = []
    following = decord.VideoReader.next
    monkeypatch.setattr(decord.VideoReader, "next", lambda reader: steps.append(0) or following(reader))
    video = read(long)
    assert (video.count, len(video.frames)) == (10_000, 8)
    assert len(steps) < 300  # the 8, and the first of 40 groups, where it is found that jumps hit
