"""Pages of documents and of screens, drawn from a seed with Pillow's own font, on which savings are told.

Sides are multiples of 224, so that cells of 28 and of 32 pixels divide them and no processor resizes them. The same
release of Pillow draws the same pixels; letters of another may differ a little.
"""

from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

WIDTH, HEIGHT = 672, 896
_MARGIN, _PAPER, _INK, _RULE, _SHADE = 56, (255, 255, 255), (25, 25, 30), (180, 180, 185), (238, 240, 244)
_BAR, _SIDE, _GROUND, _ACCENT = (36, 41, 54), (226, 230, 237), (246, 247, 250), (41, 98, 200)
_SYLLABLES = ("ba", "ce", "di", "fo", "gu", "ha", "ki", "lo", "mi", "ne", "or", "pa", "qui", "ra", "si", "tu", "ve")


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


class _Sheet:
    """A page that is drawn on.

    Args:
        seed: what stands on it is made of it.
        ground: its colour.
    """

    def __init__(self, seed: int, ground: tuple[int, int, int] = _PAPER):
        self.random = np.random.default_rng(seed)
        self.image = Image.new("RGB", (WIDTH, HEIGHT), ground)
        self.draw = ImageDraw.Draw(self.image)

    def word(self) -> str:
        return "".join(self.random.choice(_SYLLABLES, self.random.integers(1, 5)))

    def text(self, at: tuple[int, int], text: str, size: int, colour: tuple[int, int, int] = _INK) -> None:
        self.draw.text(at, text, fill=colour, font=_font(size))

    def lines(self, width: int, size: int) -> Iterator[str]:
        """Lines of words that are no longer than `width` pixels, without end."""
        font, line = _font(size), self.word().capitalize()
        while True:
            longer = f"{line} {self.word()}"
            if font.getlength(longer) > width:
                yield line
                line = self.word()
            else:
                line = longer


def _text(seed: int) -> Image.Image:
    """A title and paragraphs in black on white."""
    page = _Sheet(seed)
    page.text((_MARGIN, _MARGIN), f"{page.word()} {page.word()}".title(), 30)
    lines, y = page.lines(WIDTH - 2 * _MARGIN, 15), 120
    while y < HEIGHT - 100:
        count = int(page.random.integers(3, 8))
        for line in (next(lines) for _ in range(count)):
            page.text((_MARGIN, y), line, 15)
            y += 21
        y += 24
    return page.image


def _table(seed: int) -> Image.Image:
    """A ruled table of words and numbers, every second row shaded."""
    page = _Sheet(seed)
    page.text((_MARGIN, 40), f"{page.word()} {page.word()}".title(), 24)
    columns, rows, high = np.linspace(_MARGIN, WIDTH - _MARGIN, 6).astype(int).tolist(), 20, 36
    for row in range(rows):
        top = 100 + row * high
        if row % 2 == 0:
            page.draw.rectangle((_MARGIN, top, WIDTH - _MARGIN, top + high), fill=_SHADE)
        for column, left in enumerate(columns[:-1]):
            number = f"{page.random.integers(0, 99999) / 100:.2f}"
            page.text((left + 8, top + 9), page.word() if row == 0 or column == 0 else number, 15)
        page.draw.line((_MARGIN, top, WIDTH - _MARGIN, top), fill=_RULE)
    page.draw.line((_MARGIN, 100 + rows * high, WIDTH - _MARGIN, 100 + rows * high), fill=_RULE)
    for left in columns:
        page.draw.line((left, 100, left, 100 + rows * high), fill=_RULE)
    return page.image


def _slide(seed: int) -> Image.Image:
    """A coloured band with a title, a few points, and a box at the foot."""
    page = _Sheet(seed)
    page.draw.rectangle((0, 0, WIDTH, 128), fill=_ACCENT)
    page.text((_MARGIN, 42), f"{page.word()} {page.word()}".title(), 34, _PAPER)
    lines = page.lines(420, 22)
    for point in range(5):
        top = 200 + 88 * point
        page.draw.ellipse((_MARGIN, top + 8, _MARGIN + 10, top + 18), fill=_ACCENT)
        page.text((_MARGIN + 30, top), next(lines), 22)
    page.draw.rounded_rectangle((_MARGIN, 700, WIDTH - _MARGIN, 820), 12, fill=_SHADE)
    page.text((_MARGIN + 24, 746), next(lines), 20)
    return page.image


def _interface(seed: int) -> Image.Image:
    """A window: a dark bar, a list at its side, and cards with a heading, a chart of bars and a button."""
    page = _Sheet(seed, _GROUND)
    page.draw.rectangle((0, 0, WIDTH, 56), fill=_BAR)
    page.text((24, 16), page.word().title(), 20, _PAPER)
    page.draw.rectangle((0, 56, 168, HEIGHT), fill=_SIDE)
    for item in range(9):
        if item == 2:
            page.draw.rounded_rectangle((12, 80 + 44 * item, 156, 116 + 44 * item), 8, fill=_ACCENT)
        page.text((28, 89 + 44 * item), page.word(), 15, _PAPER if item == 2 else _INK)
    for card in range(6):
        left, top = 196 + 232 * (card % 2), 88 + 260 * (card // 2)
        page.draw.rounded_rectangle((left, top, left + 216, top + 232), 10, fill=_PAPER, outline=_RULE)
        page.text((left + 16, top + 14), page.word().capitalize(), 17)
        for bar, high in enumerate(page.random.integers(10, 90, 8).tolist()):
            page.draw.rectangle((left + 16 + 24 * bar, top + 150 - high, left + 32 + 24 * bar, top + 150), fill=_ACCENT)
        page.draw.rounded_rectangle((left + 16, top + 176, left + 104, top + 212), 8, fill=_SIDE)
        page.text((left + 30, top + 186), page.word()[:7], 14)
    return page.image


def _scan(seed: int) -> Image.Image:
    """A page of text as a scanner sees it: paper that darkens to a side, and noise of two steps of brightness."""
    paper = np.asarray(_text(seed), dtype=float) * np.linspace(0.97, 0.93, WIDTH)[None, :, None]
    noise = np.random.default_rng(seed).normal(0, 2, (HEIGHT, WIDTH, 3))
    return Image.fromarray((paper + noise).clip(0, 255).round().astype(np.uint8))


def _photograph(seed: int) -> Image.Image:
    """Clouds of many sizes and the noise of a sensor, as hard as a photograph."""
    random, clouds = np.random.default_rng(seed), np.zeros((HEIGHT, WIDTH, 3))
    for octave in range(2, 8):
        grid = random.integers(0, 256, (2**octave * 4 // 3, 2**octave, 3)).astype(np.uint8)
        clouds += np.asarray(Image.fromarray(grid).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)) / 2 ** (
            octave - 1
        )
    return Image.fromarray((clouds + random.normal(0, 3, clouds.shape)).clip(0, 255).round().astype(np.uint8))


KINDS: dict[str, Callable[[int], Image.Image]] = {
    "text": _text, "table": _table, "slide": _slide, "interface": _interface, "scan": _scan, "photograph": _photograph,
}  # fmt: skip


def page(kind: str, seed: int = 0) -> Image.Image:
    """A page of one of `KINDS`, RGB, WIDTH × HEIGHT."""
    return KINDS[kind](seed)


def cells(picture: Image.Image, side: int) -> np.ndarray:
    """The pixels of a picture, from 0 to 1, in cells: [H, W, side, side, 3]."""
    pixels = np.asarray(picture, dtype=np.float64) / 255
    high, wide = (length // side for length in pixels.shape[:2])
    return pixels.reshape(high, side, wide, side, 3).swapaxes(1, 2)


def restored(picture: Image.Image, kept: Tensor, side: int, threshold: float = 0.0) -> Image.Image:
    """A picture made again of the cells that PixelPrune kept, and of nothing else, by its own prediction.

    With a threshold of 0 it is the picture itself; else no pixel is further from it than the threshold (metric "max").

    Args:
        picture: of which nothing but the kept cells is looked at.
        kept: LongTensor [k], cells in raster order.
        side: of a cell, in pixels.
        threshold: that they were kept with.
    """
    given = cells(picture, side)
    made, stays = np.zeros_like(given), set(kept.tolist())
    for place in range(made.shape[0] * made.shape[1]):
        row, column = divmod(place, made.shape[1])
        if place in stays:
            made[row, column] = given[row, column]
        elif not row or not column:
            made[row, column] = made[row - bool(row), column - bool(not row)]
        else:
            left, above, corner = made[row, column - 1], made[row - 1, column], made[row - 1, column - 1]
            straight = abs(corner - left).max() <= threshold < abs(corner - above).max()
            made[row, column] = above if straight else left
    whole = made.swapaxes(1, 2).reshape(made.shape[0] * side, made.shape[1] * side, 3)
    return Image.fromarray((whole * 255).round().astype(np.uint8))
