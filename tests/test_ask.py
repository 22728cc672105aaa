"""`vtc ask`: two answers, the trace, and a picture in which exactly the kept patches are bright."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

import vtc
from vtc.eval.cli import main
from vtc.eval.media import picture
from vtc.eval.models import load


def photograph(size: tuple[int, int] = (320, 240)) -> Image.Image:
    """A bright hillside with a red disc: never dark, so that a dimmed patch is told from a kept one."""
    width, height = size
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    noise = np.random.default_rng(0).normal(0, 6, (height, width, 1))
    sky = np.stack([180 + 40 * x, 190 + 30 * y, 230 - 20 * x], axis=-1)
    image = Image.fromarray((sky + noise).clip(150, 255).astype(np.uint8))
    ImageDraw.Draw(image).ellipse((120, 80, 200, 160), fill=(250, 160, 150))
    return image


@pytest.fixture
def photo(tmp_path):
    photograph().save(tmp_path / "photo.jpg")
    return tmp_path / "photo.jpg"


def test_ask_prints_both_answers_and_the_trace(photo, tmp_path, capsys):
    out = tmp_path / "kept.png"
    assert main(["ask", "--image", str(photo), "--question", "What colour is the disc?", "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "question: What colour is the disc?"
    assert lines[1].startswith("all visual tokens: ")
    assert lines[2].startswith("divprune:keep=0.25: ")
    assert "256 -> 64 visual tokens" in lines[3]
    assert Image.open(out).width > 2 * 400


def patches(image: Image.Image) -> np.ndarray:
    """Mean brightness of the 16 x 16 patches of the right half of a picture that `draw_kept` made."""
    pixels = np.asarray(image.convert("L"), dtype=float)
    side = pixels.shape[0]
    return pixels[:, -side:].reshape(16, side // 16, 16, side // 16).mean(axis=(1, 3))


@pytest.mark.parametrize("spec", ["divprune:keep=40", "fastv:keep=0.25", "pool:keep=16"])
def test_kept_patches_are_bright_and_no_others(spec):
    loaded = load("embedded", None, "cpu", None)
    image = photograph()
    inputs = loaded.inputs([[image]], ["Is there a disc?"])
    with vtc.patched(loaded.model, spec):
        loaded.model.generate(**inputs, max_new_tokens=1)
        trace = vtc.trace(loaded.model).images[0]
    view = picture.view_of_picture(picture.seen_by_model(image, inputs, loaded.processor), trace)
    drawn = picture.draw_kept(view)
    bright = (patches(drawn) > 128).flatten().nonzero()[0].tolist()
    assert bright == trace.kept().tolist()
    outlined = (np.asarray(drawn) == picture.OUTLINE).all(axis=-1).any()
    assert outlined == (spec.startswith("pool"))


def test_the_model_sees_the_middle_of_a_wide_picture():
    loaded = load("embedded", None, "cpu", None)
    wide = Image.new("RGB", (448, 224), "black")
    wide.paste(photograph((224, 224)), (112, 0))
    (view,) = picture.seen_by_model(wide, loaded.inputs([[wide]], ["?"]), loaded.processor)
    assert view.size == (224, 224)
    assert np.asarray(view).min() > 100
