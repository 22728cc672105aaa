"""A line chart as SVG: it grows while a sweep runs, follows light and dark, and is read aloud by its title."""

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

#: Okabe and Ito's colours, told apart with any colour vision; of CSS, so that they follow light and dark.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d1f", "#7f7f7f")
#: SVG paths of markers of 10 by 10, which tell lines apart without colour.
MARKERS = ("M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0", "M-4-4h8v8h-8z", "M0-5L5 4H-5z", "M0-5L5 0L0 5L-5 0z", "M-5-4H5L0 5z")
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 520, 300, 52, 14, 14, 44


@dataclass(frozen=True)
class Dot:
    """A point of a line, with an interval where it has one; `about` is told of it."""

    x: float
    y: float
    about: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self) -> list[float]:
        """At most seven round numbers."""
        rough = (self.high - self.low) / 6
        power = 10 ** math.floor(math.log10(rough))
        step = next(power * each for each in (1, 2, 2.5, 5, 10) if power * each >= rough)
        first = math.ceil(self.low / step - 1e-9)
        return [number * step for number in range(first, math.floor(self.high / step + 1e-9) + 1)]


def draw(
    lines: Mapping[str, Sequence[Dot]],
    title: str,
    x_title: str,
    y_title: str,
    y_range: tuple[float, float] | None = None,
) -> str:
    """The chart, with its legend; nothing where there are no points.

    Args:
        lines: name -> points; each line is drawn from left to right.
        title: of the chart.
        x_title: of the axis, which begins at 0.
        y_title: of the other.
        y_range: of the other; None: what the points need.
    """
    dots = [dot for line in lines.values() for dot in line]
    if not dots:
        return ""
    low, high = y_range or _around([dot.y for dot in dots])
    x = _Axis(0.0, 1.05 * max(dot.x for dot in dots), _LEFT, _WIDTH - _RIGHT)
    y = _Axis(low, high, _HEIGHT - _BOTTOM, _TOP)
    parts = [_grid(x, y, x_title, y_title)]
    for number, line in enumerate(lines.values()):
        parts.append(_line(sorted(line, key=lambda dot: dot.x), x, y, number))
    told = f"{title}: {y_title} against {x_title}, of {', '.join(lines)}. The same numbers are in the table."
    return (
        f'<figure class="vtc-chart"><figcaption>{html.escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html.escape(told, quote=True)}">'
        f"{''.join(parts)}</svg>{_legend(list(lines))}</figure>"
    )


def _around(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = 0.08 * (high - low) or 0.1 * max(abs(high), 1.0)
    return low - margin, high + margin


def _style(number: int) -> tuple[str, str]:
    return COLOURS[number % len(COLOURS)], MARKERS[(number + number // len(COLOURS)) % len(MARKERS)]


def _grid(x: _Axis, y: _Axis, x_title: str, y_title: str) -> str:
    made = []
    for value in y.ticks():
        made.append(f'<path class="vtc-grid" d="M{x.start} {y(value)}H{x.end}"/>')
        made.append(f'<text x="{x.start - 6}" y="{y(value) + 4}" text-anchor="end">{value:g}</text>')
    for value in x.ticks():
        made.append(f'<path class="vtc-grid" d="M{x(value)} {y.start}v4"/>')
        made.append(f'<text x="{x(value)}" y="{y.start + 17}" text-anchor="middle">{value:g}</text>')
    middle = (y.start + y.end) / 2
    made.append(
        f'<text x="{(x.start + x.end) / 2}" y="{_HEIGHT - 6}" text-anchor="middle">{html.escape(x_title)}</text>'
    )
    turned = f'transform="translate(12 {middle}) rotate(-90)"'
    made.append(f'<text {turned} text-anchor="middle">{html.escape(y_title)}</text>')
    return "".join(made)


def _line(dots: Sequence[Dot], x: _Axis, y: _Axis, number: int) -> str:
    colour, marker = _style(number)
    path = "L".join(f"{x(dot.x)} {y(dot.y)}" for dot in dots)
    made = [f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>'] if dots else []
    for dot in dots:
        if dot.low is not None and dot.high is not None:
            made.append(f'<path d="M{x(dot.x)} {y(dot.low)}V{y(dot.high)}" stroke="{colour}" opacity="0.45"/>')
        place = f'transform="translate({x(dot.x)} {y(dot.y)})"'
        made.append(f'<path d="{marker}" {place} fill="{colour}"><title>{html.escape(dot.about)}</title></path>')
    return "".join(made)


def _legend(names: Sequence[str]) -> str:
    made = []
    for number, name in enumerate(names):
        colour, marker = _style(number)
        mark = f'<svg viewBox="-7 -7 14 14" aria-hidden="true"><path d="{marker}" fill="{colour}"/></svg>'
        made.append(f"<li>{mark}{html.escape(name)}</li>")
    return f"<ul>{''.join(made)}</ul>"
