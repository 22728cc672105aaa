"""Photographs, digits and fonts that installed packages carry, dealt out to the splits so that none is shared.

The packages' files are read and the packages never imported: scikit-learn alone brings pandas and scipy with it.
"""

from __future__ import annotations

import gzip
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageFont

from .sample import SPLITS

# package, path inside it. Both motorcycle pictures show one scene, so only the left one is used.
PHOTOGRAPHS: dict[str, tuple[tuple[str, str], ...]] = {
    "train": (
        ("skimage", "data/astronaut.png"),
        ("skimage", "data/camera.png"),
        ("skimage", "data/chelsea.png"),
        ("skimage", "data/coffee.png"),
        ("skimage", "data/coins.png"),
        ("skimage", "data/grass.png"),
        ("skimage", "data/gravel.png"),
        ("skimage", "data/ihc.png"),
        ("skimage", "data/rocket.jpg"),
        ("sklearn", "datasets/images/china.jpg"),
    ),
    "validation": (("skimage", "data/hubble_deep_field.jpg"), ("skimage", "data/retina.jpg")),
    "test": (
        ("skimage", "data/motorcycle_left.png"),
        ("sklearn", "datasets/images/flower.jpg"),
        ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
    ),
}

FONTS: dict[str, tuple[str, ...]] = {
    "train": (
        "DejaVuSans",
        "DejaVuSans-Bold",
        "DejaVuSans-Oblique",
        "DejaVuSansMono",
        "DejaVuSansMono-Bold",
        "DejaVuSansMono-Oblique",
        "DejaVuSerif-Bold",
        "DejaVuSerif-Italic",
        "STIXGeneral",
        "STIXGeneralBolIta",
        "STIXGeneralItalic",
        "cmb10",
        "cmr10",
        "cmss10",
        "cmtt10",
    ),
    "validation": ("DejaVuSansMono-BoldOblique", "DejaVuSerif-BoldItalic"),
    "test": ("DejaVuSans-BoldOblique", "DejaVuSerif", "STIXGeneralBol"),
}

# Slant (pixels per pixel of height) and share of the largest size: training words vary, the others don't.
WORD_LOOKS: dict[str, tuple[tuple[float, float], ...]] = {
    "train": ((0.0, 1.0), (0.0, 0.85), (0.12, 1.0), (-0.12, 1.0), (0.25, 0.9), (-0.2, 0.8), (0.3, 1.0), (0.15, 0.8)),
    "validation": ((0.0, 1.0),),
    "test": ((0.0, 1.0),),
}

# Last decimal of a digit's index in `load_digits` -> split.
DIGIT_RESIDUES: dict[str, tuple[int, ...]] = {"train": (0, 1, 2, 3, 4, 5, 6), "validation": (7,), "test": (8, 9)}

PHOTO_SIDES = (240, 320, 448)  # pixels of the shorter side, before a 224-pixel crop


def check_split(split: str) -> None:
    """Raises ValueError for anything but a known split."""
    if split not in SPLITS:
        raise ValueError(f"split={split!r} is unknown; choose one of {', '.join(SPLITS)}")


def _package_file(package: str, inside: str) -> Path:
    """A file of an installed package, which is found but not imported.

    Raises:
        ModuleNotFoundError: there is no such package.
    """
    found = find_spec(package)
    if found is None or found.origin is None:
        raise ModuleNotFoundError(
            f"{package} is not installed, whose pictures are asked about; run: pip install vtc[eval]", name=package
        )
    return Path(found.origin).parent / inside


@cache
def photograph(split: str, index: int, scale: int) -> np.ndarray:
    """One photograph of a split, resized. uint8 [H, W, 3] with min(H, W) = `PHOTO_SIDES[scale]`."""
    with Image.open(_package_file(*PHOTOGRAPHS[split][index])) as file:
        picture = file.convert("RGB")
    factor = PHOTO_SIDES[scale] / min(picture.size)
    size = (round(picture.width * factor), round(picture.height * factor))
    return np.asarray(picture.resize(size, Image.Resampling.BICUBIC))


@cache
def digit_indices(split: str) -> tuple[tuple[int, ...], ...]:
    """For each class 0 to 9, the indices into `load_digits` that a split owns."""
    labels = _digits()[1]
    own = np.isin(np.arange(len(labels)) % 10, DIGIT_RESIDUES[split])
    return tuple(tuple(np.flatnonzero(own & (labels == digit)).tolist()) for digit in range(10))


@cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    """What scikit-learn's `load_digits` gives: ink [1797, 8, 8], here in 0 to 1, and labels [1797]."""
    with gzip.open(_package_file("sklearn", "datasets/data/digits.csv.gz"), "rt", encoding="ascii") as file:
        table = np.loadtxt(file, delimiter=",")
    return table[:, :-1].reshape(-1, 8, 8) / 16.0, table[:, -1].astype(int)


def digit_ink(index: int) -> np.ndarray:
    """Ink of one handwritten digit, float [8, 8] in 0 to 1."""
    return _digits()[0][index]


@cache
def font(split: str, index: int, size: int) -> ImageFont.FreeTypeFont:
    """One font of a split at a size in pixels."""
    file = _package_file("matplotlib", f"mpl-data/fonts/ttf/{FONTS[split][index]}.ttf")
    return ImageFont.truetype(str(file), size)
