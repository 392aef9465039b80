"""Line charts as SVG for a page: they have its colors, dark or light, and need nothing but the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 360, 230  # so that letters can be read where the page is that narrow
LEFT, RIGHT, TOP, BOTTOM = 46, 350, 26, 190
TICKS = 7  # at most, at an axis
DASHES = ("", "6 3", "2 3")  # tell lines apart without color
LINES = len(DASHES)  # at most


class Line(NamedTuple):
    """A line of a chart."""

    name: str
    points: Sequence[tuple[float, float]]


def line_chart(title: str, lines: Sequence[Line], below: str, beside: str, mark: tuple[float, float] | None) -> str:
    """Draw up to LINES lines over a logarithmic scale; `mark` is a point that gets a circle.

    Numbers are finite, and those of the scale above zero.
    """
    drawn = [point for line in lines for point in line.points]
    low, high = min(y for _, y in drawn), max(y for _, y in drawn)
    low, high = low / 1.05, high * 1.05
    least, most = min(0.0, *(x for x, _ in drawn)), max(x for x, _ in drawn) or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        up = math.log(y / low) / math.log(high / low)
        return LEFT + (x - least) / (most - least) * (RIGHT - LEFT), BOTTOM - up * (BOTTOM - TOP)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img"><title>{escape(title)}</title>']
    for tick in ticks(low, high, logarithmic=True):
        _, at = place(least, tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{LEFT - 4}" y="{at + 4:.1f}" text-anchor="end">{written(tick)}</text>')
    for tick in ticks(least, most):
        at, _ = place(tick, low)
        parts.append(f'<text x="{at:.1f}" y="{BOTTOM + 14}" text-anchor="middle">{written(tick)}</text>')
    parts.append(f'<text x="{RIGHT}" y="{BOTTOM + 30}" text-anchor="end">{escape(below)}</text>')
    parts.append(f'<text x="4" y="12">{escape(beside)}</text>')
    for number, line in enumerate(lines):
        parts += _drawn(number, line, [place(*point) for point in line.points])
    if mark:
        parts.append('<circle class="best" cx="{:.1f}" cy="{:.1f}" r="6"/>'.format(*place(*mark)))
    return "".join([*parts, "</svg>"])


def _drawn(number: int, line: Line, at: Sequence[tuple[float, float]]) -> list[str]:
    """Draw one line, its points and its name."""
    dash, key = DASHES[number], RIGHT - 84 * (number + 1)
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
    parts = [f'<g class="line{number}"><polyline stroke-dasharray="{dash}" points="{points}"/>']
    for (x, y), point in zip(at, line.points, strict=True):
        said = f"{line.name}: {written(point[1])} at {written(point[0])}"
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.2"><title>{escape(said)}</title></circle>')
    parts.append(f'<polyline stroke-dasharray="{dash}" points="{key},8 {key + 24},8"/>')
    return [*parts, f'<text x="{key + 28}" y="12">{escape(line.name)}</text></g>']


def ticks(low: float, high: float, logarithmic: bool = False) -> list[float]:
    """Return round numbers between two others: in equal steps, or for a logarithmic scale that is wide in equal ratios.

    There are at most TICKS of them.
    """
    if logarithmic and high >= 4 * low:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for steps in ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
            found = [step * 10.0**power for power in powers for step in steps if low <= step * 10.0**power <= high]
            if len(found) <= TICKS:
                return found
        return found[:: math.ceil(len(found) / TICKS)]
    size = 10.0 ** math.floor(math.log10((high - low) / TICKS))
    step = next(size * factor for factor in (1, 2, 5, 10, 20) if (high - low) / (size * factor) < TICKS - 1)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def written(number: float) -> str:
    """Write a number as people do."""
    if number and not 1e-3 <= abs(number) < 1e7:
        return f"{number:.0e}"
    return f"{number:,.0f}" if number >= 1000 else f"{number:.4g}"
