"""Paints scenes, and tells which patch shows which thing."""

from __future__ import annotations

from functools import cache, lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from . import assets
from .scenes import COLOURS, GRID, PATCH, SIZE, Scene, Thing

_FINE = 4  # supersampling of shapes
_AXIS = np.arange(SIZE, dtype=np.float32)


def _polygon(kind: str, centre: float, radius: float) -> list[tuple[float, float]]:
    if kind == "triangle":
        corners = [(-1.0, 0.85), (1.0, 0.85), (0.0, -0.95)]
    elif kind == "cross":
        a = 0.36
        corners = [(-a, -1), (a, -1), (a, -a), (1, -a), (1, a), (a, a), (a, 1), (-a, 1), (-a, a), (-1, a), (-1, -a)]
        corners.append((-a, -a))
    else:
        angles = -np.pi / 2 + np.arange(10) * np.pi / 5
        corners = [(r * np.cos(t), r * np.sin(t)) for t, r in zip(angles, [1.05, 0.45] * 5, strict=True)]
    return [(centre + radius * float(x), centre + radius * float(y)) for x, y in corners]


@cache
def _shape(kind: str, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Fill and fill-plus-outline coverage of a shape, float32 [side + 4, side + 4, 1] in 0 to 1."""
    full = (side + 4) * _FINE
    middle, radius = full / 2, side * _FINE / 2
    canvas = Image.new("L", (full, full))
    draw = ImageDraw.Draw(canvas)
    if kind in ("circle", "ring"):
        draw.ellipse([middle - radius, middle - radius, middle + radius, middle + radius], fill=255)
        if kind == "ring":
            hole = radius * 0.5
            draw.ellipse([middle - hole, middle - hole, middle + hole, middle + hole], fill=0)
    elif kind == "square":
        radius *= 0.9
        draw.rectangle([middle - radius, middle - radius, middle + radius, middle + radius], fill=255)
    else:
        draw.polygon(_polygon(kind, middle, radius), fill=255)
    outline = canvas.filter(ImageFilter.MaxFilter(2 * _FINE - 1))
    small = (side + 4, side + 4)
    fill, cover = (np.asarray(m.resize(small, Image.Resampling.BOX), np.float32) / 255 for m in (canvas, outline))
    return fill[..., None], cover[..., None]


def _ink(colour: str) -> np.ndarray:
    """Black on light colours, white on dark ones, float32 [3]."""
    luminance = float(np.dot(COLOURS[colour], (0.299, 0.587, 0.114)))
    return np.full(3, 15.0 if luminance > 130 else 245.0, np.float32)


@lru_cache(maxsize=4096)
def _digit(index: int, side: int) -> np.ndarray:
    """Coverage of a digit's ink, float32 [side, side, 1] in 0 to 1."""
    small = Image.fromarray((assets.digit_ink(index) * 255).astype(np.uint8))
    large = np.asarray(small.resize((side - 4, side - 4), Image.Resampling.BICUBIC), np.float32) / 255
    return np.pad(np.clip(large * 1.3, 0, 1), 2)[..., None]


@lru_cache(maxsize=20000)
def _word(split: str, look: int, word: str, width: int, height: int) -> np.ndarray:
    """Coverage of a word's ink, float32 [height, width, 1] in 0 to 1, as large as its look and the sign allow."""
    variant, face_index = divmod(look, len(assets.FONTS[split]))
    slant, share = assets.WORD_LOOKS[split][variant]
    canvas = Image.new("L", (width, height))
    for size in range(16, 6, -1):
        face = assets.font(split, face_index, max(7, round(size * share)))
        left, top, right, bottom = face.getbbox(word)
        if right - left + abs(slant) * (bottom - top) <= width - 4 and bottom - top <= height - 3:
            break
    at = ((width - right - left) / 2, (height - bottom - top) / 2)
    ImageDraw.Draw(canvas).text(at, word, fill=255, font=face)
    if slant:
        shear = (1, slant, -slant * height / 2, 0, 1, 0)
        canvas = canvas.transform(canvas.size, Image.Transform.AFFINE, shear, Image.Resampling.BILINEAR)
    return np.asarray(canvas, np.float32)[..., None] / 255


def background(scene: Scene) -> np.ndarray:
    """Float32 [224, 224, 3] in 0 to 255, of moderate contrast."""
    rng = np.random.default_rng(scene.texture)
    if scene.background == "photo":
        pool = assets.PHOTOGRAPHS[scene.split]
        photo = assets.photograph(scene.split, int(rng.integers(len(pool))), int(rng.integers(len(assets.PHOTO_SIDES))))
        top, left = (int(rng.integers(side - SIZE + 1)) for side in photo.shape[:2])
        crop = photo[top : top + SIZE, left : left + SIZE].astype(np.float32)
        if rng.random() < 0.5:
            crop = crop[:, ::-1]
        return crop * rng.uniform(0.5, 0.75) + rng.uniform(20, 60)
    low, high = rng.uniform(60, 140, 3).astype(np.float32), rng.uniform(110, 200, 3).astype(np.float32)
    if scene.background == "clouds":
        cells = int(rng.integers(4, 9))
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        return np.asarray(noise.resize((SIZE, SIZE), Image.Resampling.BICUBIC), np.float32) * 0.55 + 50
    if scene.background == "stripes":
        angle, turns = rng.uniform(0, np.pi), np.float32(2 * np.pi / rng.uniform(9, 22))
        wave = (
            np.sin(_AXIS * np.float32(np.cos(angle) * turns) + _AXIS[:, None] * np.float32(np.sin(angle) * turns)) > 0
        )
    elif scene.background == "dots":
        wave = np.sin(_AXIS * np.float32(2 * np.pi / rng.uniform(10, 20)))
        wave = wave[:, None] * wave[None, :] > 0.35
    else:
        wave = np.zeros((SIZE, SIZE), bool)
    mix = wave.astype(np.float32)[..., None]
    return low + mix * (high - low)


def paint(canvas: np.ndarray, thing: Thing, split: str) -> None:
    """Paints one thing into a canvas, float32 [224, 224, 3], in place."""
    colour = np.clip(np.add(COLOURS[thing.colour], thing.tint), 0, 255).astype(np.float32)
    if thing.kind in ("card", "sign"):
        width, height = thing.width, thing.height
        patch = np.broadcast_to(colour, (height, width, 3)).copy()
        ink = (
            _digit(thing.look, width)
            if thing.kind == "card"
            else _word(split, thing.look, thing.content, width, height)
        )
        patch += ink * (_ink(thing.colour) - patch)
        patch[[0, -1]] = patch[:, [0, -1]] = 255 - _ink(thing.colour)
        top, left = thing.y - height // 2, thing.x - width // 2
        canvas[top : top + height, left : left + width] = patch
        return
    fill, cover = _shape(thing.kind, thing.width)
    side = thing.width + 4
    top, left = thing.y - side // 2, thing.x - side // 2
    part = canvas[top : top + side, left : left + side]
    part += cover * (255 - _ink(thing.colour) - part)
    part += fill * (colour - part)


def render(scene: Scene) -> np.ndarray:
    """Paints a scene. uint8 [224, 224, 3]."""
    canvas = background(scene)
    for thing in scene.things:
        paint(canvas, thing, scene.split)
    canvas += np.random.default_rng(scene.texture + 1).integers(-6, 7, (SIZE, SIZE, 1), dtype=np.int8)
    return np.clip(canvas, 0, 255).astype(np.uint8)


def patch_owner(scene: Scene) -> np.ndarray:
    """Which thing each patch shows: int [16, 16], index into `scene.things`, -1 for background.

    A patch belongs to the thing whose box covers most of it, if that is at least a fifth of the patch.
    """
    owner = np.full((GRID, GRID), -1)
    best = np.full((GRID, GRID), 0.2)
    edges = np.arange(GRID) * PATCH
    for index, thing in enumerate(scene.things):
        left, top = thing.x - thing.width / 2, thing.y - thing.height / 2
        x = np.clip(np.minimum(edges + PATCH, left + thing.width) - np.maximum(edges, left), 0, PATCH) / PATCH
        y = np.clip(np.minimum(edges + PATCH, top + thing.height) - np.maximum(edges, top), 0, PATCH) / PATCH
        share = y[:, None] * x[None, :]
        owner[share >= best] = index
        best = np.maximum(best, share)
    return owner
