"""What visitors send: bounds before anything is decoded, kinds by content, nothing left behind."""

import io
import struct
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image
from video_files import ffmpeg, needs_ffmpeg

from vtc.demo.visitors.limits import Limits
from vtc.demo.visitors.uploads import display_name, read_upload
from vtc.eval.cli.errors import InputError
from vtc.eval.media.images import open_image, open_video

LIMITS = Limits(file_bytes=2 * 2**20, pixels=1_000_000, frame_pixels=400_000, seconds=30, decode_seconds=20)


def picture(form="PNG", size=(60, 40), **options):
    noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, form, **options)
    return file.getvalue()


def bomb(width, height):
    """A PNG whose header promises more pixels than its few bytes hold."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


def archive():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        made.writestr("evil.py", "print(1)")
    return file.getvalue()


@pytest.fixture
def put(tmp_path):
    def put(name, content):
        folder = tmp_path / "one"
        folder.mkdir()
        (folder / name).write_bytes(content)
        return folder / name

    return put


def left_behind(tmp_path):
    return [file for file in tmp_path.rglob("*") if file.is_file() and "keep" not in file.parts]


@pytest.mark.parametrize(
    "form, name", [("PNG", "a.png"), ("JPEG", "a.JPG"), ("WEBP", "a.webp"), ("GIF", "a.gif"), ("BMP", "a.bmp")]
)
def test_a_picture_is_what_vtc_ask_would_read_and_its_file_is_gone(put, tmp_path, form, name):
    file = put(name, picture(form))
    expected = open_image(file)
    media = read_upload(file, LIMITS, 8)
    assert media.kind == "image" and media.name == name and media.example is None
    assert np.array_equal(np.asarray(media.shown), np.asarray(expected))
    assert not left_behind(tmp_path)


def test_a_picture_is_turned_as_its_camera_says(put):
    exif = Image.Exif()
    exif[0x0112] = 6
    file = put("phone.jpg", picture("JPEG", (60, 40), exif=exif.tobytes()))
    assert open_image(file).size == (40, 60)
    assert read_upload(file, LIMITS, 8).shown.size == (40, 60)


def test_a_picture_with_another_picture_s_ending_is_read_by_its_content(put):
    assert read_upload(put("really-a.png", picture("JPEG")), LIMITS, 8).shown.size == (60, 40)


REFUSED = {
    "empty": ("a.png", b"", "is empty"),
    "too many bytes": ("a.png", picture() + b"\0" * 2**21, "at most 2 are read"),
    "bomb": ("a.png", bomb(60000, 60000), "60000 x 60000 pixels; at most 1 million"),
    "bomb within Pillow's own bound": ("a.png", bomb(1200, 1200), "1200 x 1200 pixels; at most 1 million"),
    "cut": ("a.png", picture()[:900], "damaged or cut off"),
    "svg": ("a.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no picture or video that is read here"),
    "svg in disguise": ("a.png", b"<?xml version='1.0'?><svg/>", "no picture or video that is read here"),
    "page": ("a.png", b"<html><script>alert(1)</script>", "no picture or video that is read here"),
    "archive": ("a.png", archive(), "no picture or video that is read here"),
    "playlist": ("a.mp4", b"#EXTM3U\n#EXTINF:10,\nfile:///etc/passwd\n", "no picture or video that is read here"),
    "concatenation": ("a.mp4", b"ffconcat version 1.0\nfile '/etc/passwd'\n", "no picture or video that is read here"),
    "postscript": ("a.png", b"%!PS-Adobe-3.0 EPSF-3.0\n", "no picture or video that is read here"),
    "picture as video": ("a.mp4", picture(), "ends in '.mp4' but holds PNG"),
    "picture as page": ("a.html", picture(), "ends in '.html' but holds PNG"),
    "no ending": ("picture", picture(), "ends in 'nothing' but holds PNG"),
    "video as picture": ("a.png", b"\0\0\0\x18ftypmp42" + b"\0" * 100, "ends in '.png' but holds MP4"),
    "only a header": ("a.mp4", b"\0\0\0\x18ftypmp42" + b"\0" * 100, "can't be opened"),
    "HEIC": ("a.png", b"\0\0\0\x18ftypheic" + b"\0" * 100, "no picture or video that is read here"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_can_t_be_read_is_refused_by_name_and_removed(put, tmp_path, case):
    name, content, message = REFUSED[case]
    with pytest.raises(InputError, match=message) as error:
        read_upload(put(name, content), LIMITS, 8)
    assert repr(name) in str(error.value) and str(tmp_path) not in str(error.value)
    assert not left_behind(tmp_path)


def test_a_polyglot_gives_its_pixels_and_nothing_else(put):
    """A PNG with an archive and a script behind it is a picture here, and only its pixels go on."""
    media = read_upload(put("a.png", picture() + archive() + b"<script>alert(1)</script>"), LIMITS, 8)
    assert np.array_equal(np.asarray(media.shown), np.asarray(Image.open(io.BytesIO(picture()))))


@pytest.mark.parametrize(
    "name, shown",
    [
        ("../../etc/passwd.png", "passwd.png"),
        ("..\\..\\boot.png", "boot.png"),
        ("a'; rm -rf $HOME; '.png", "a__ rm -rf _HOME_ _.png"),
        ("<img src=x onerror=alert(1)>.png", "_img src_x onerror_alert(1)_.png"),
        ("--output.png", "_output.png"),
        (".png", "_png"),
        ("\x1b[31mred\n.png", "__31mred_.png"),
        ("фото.png", "фото.png"),
        ("a" * 300 + ".png", "a" * 60 + ".png"),
    ],
)
def test_names_are_shown_without_what_could_be_taken_for_something_else(name, shown):
    assert display_name(name) == shown


def test_memory_and_time_of_reading_are_bounded(put):
    slow = Limits(decode_seconds=1, decode_bytes=2**20)  # less than an interpreter needs
    with pytest.raises(InputError, match=r"can't be read|takes longer"):
        read_upload(put("a.png", picture()), slow, 8)


@needs_ffmpeg
@pytest.mark.parametrize("ending", ["mp4", "webm"])
def test_a_video_is_what_vtc_ask_would_read(put, tmp_path, ending):
    made = tmp_path / "keep" / f"v.{ending}"
    made.parent.mkdir()
    ffmpeg("-f", "lavfi", "-i", "testsrc=duration=3:size=160x120:rate=8", "-pix_fmt", "yuv420p", made)
    expected = open_video(made, 5)
    media = read_upload(put(made.name, made.read_bytes()), LIMITS, 5)
    assert media.kind == "video" and np.array_equal(media.shown.frames, expected.frames)
    assert (media.shown.times, media.shown.fps, media.shown.count) == (expected.times, expected.fps, expected.count)
    assert not left_behind(tmp_path)


@needs_ffmpeg
@pytest.mark.parametrize(
    "source, message",
    [
        ("color=duration=2:size=1280x720:rate=2", "1280 x 720 pixels; at most 0.4 million"),
        ("color=duration=60:size=64x64:rate=1", "lasts 60 s; at most 30 s"),
    ],
)
def test_a_video_too_large_or_too_long_is_refused(put, tmp_path, source, message):
    made = tmp_path / "keep" / "v.mp4"
    made.parent.mkdir()
    ffmpeg("-f", "lavfi", "-i", source, "-pix_fmt", "yuv420p", made)
    with pytest.raises(InputError, match=message):
        read_upload(put(made.name, made.read_bytes()), LIMITS, 5)
    assert not left_behind(tmp_path)


@needs_ffmpeg
def test_a_video_that_is_cut_off_is_refused(put, tmp_path):
    made = tmp_path / "keep" / "v.mp4"
    made.parent.mkdir()
    ffmpeg("-f", "lavfi", "-i", "testsrc=duration=3:size=160x120:rate=8", "-pix_fmt", "yuv420p", made)
    with pytest.raises(InputError, match=r"'v\.mp4' can't be read: it can't be opened"):
        read_upload(put(made.name, made.read_bytes()[:2000]), LIMITS, 5)
