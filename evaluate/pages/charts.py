"""Charts as SVG text: no script, no library, colours from the page's style sheet.

Sizes are in pixels of the drawing; the page scales it to the width there is.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 420, 300
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 44
# Steps between ticks, times a power of ten.
_NICE = (1, 2, 5, 10)


@dataclass(frozen=True)
class Line:
    """A named curve. `style` is a class of the style sheet: c0 to c5, or hada."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    style: str


def line_chart(
    lines: Sequence[Line], *, title: str, x_label: str, y_label: str, log_x: bool = False
) -> str:
    """Curves with axes, ticks, units and a legend.

    >>> line_chart([Line("a", [1, 2], [3, 4], "c0")], title="t", x_label="x", y_label="y")[:8]
    '<figure>'
    """
    xs, ys = [x for line in lines for x in line.xs], [y for line in lines for y in line.ys]
    x_low, x_high = min(xs), max(xs)
    y_low, y_high = _room(min(ys), max(ys))

    def across(value: float) -> float:
        if log_x:
            share = math.log(value / x_low) / math.log(x_high / x_low) if x_high > x_low else 0.5
        else:
            share = (value - x_low) / (x_high - x_low) if x_high > x_low else 0.5
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def down(value: float) -> float:
        return TOP + (y_high - value) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)

    parts = []
    for value in ticks(y_low, y_high):
        y = down(value)
        parts.append(
            f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts.append(
            f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>'
        )
    x_ticks = _powers(x_low, x_high) if log_x else ticks(x_low, x_high, whole=True)
    for value in x_ticks:
        x = across(value)
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" '
            f'text-anchor="middle">{value:g}</text>'
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        f'<text class="tick" x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">'
        f"{html.escape(x_label)}</text>"
    )
    parts.append(
        f'<text class="tick" transform="rotate(-90 13 {HEIGHT / 2})" x="13" y="{HEIGHT / 2}" '
        f'text-anchor="middle">{html.escape(y_label)}</text>'
    )
    for line in lines:
        points = " ".join(
            f"{across(x):.1f},{down(y):.1f}" for x, y in zip(line.xs, line.ys, strict=True)
        )
        parts.append(
            f'<polyline class="line {line.style}" points="{points}"><title>'
            f"{html.escape(line.name)}: {line.ys[-1]:.1f} at {line.xs[-1]:g}</title></polyline>"
        )
    legend = "".join(
        f'<li><span class="key {line.style}"></span>{html.escape(line.name)}</li>' for line in lines
    )
    return (
        f"<figure><figcaption><b>{html.escape(title)}</b></figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)}">'
        f'{"".join(parts)}</svg><ul class="legend">{legend}</ul></figure>'
    )


def share_bar(parts: Sequence[tuple[str, float, str]]) -> str:
    """A bar of shares (name, number, class) that fill its width; the label names the numbers."""
    total = sum(number for _, number, _ in parts) or 1
    cells, left = [], 0.0
    for name, number, style in parts:
        wide = 100 * number / total
        cells.append(
            f'<rect class="{style}" x="{left:.2f}" y="0" width="{wide:.2f}" height="1">'
            f"<title>{html.escape(name)}: {number:,.0f}</title></rect>"
        )
        left += wide
    label = ", ".join(f"{name} {number:,.0f}" for name, number, _ in parts)
    return (
        '<svg class="bar" viewBox="0 0 100 1" preserveAspectRatio="none" role="img" '
        f'aria-label="{html.escape(label)}">{"".join(cells)}</svg>'
    )


def ticks(low: float, high: float, *, whole: bool = False, most: int = 7) -> list[float]:
    """Round values from low to high, at most `most`.

    >>> ticks(0, 50)
    [0.0, 10.0, 20.0, 30.0, 40.0, 50.0]
    """
    span = max(high - low, 1e-9)
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(nice * power for nice in _NICE if span / (nice * power) <= most)
    step = max(step, 1.0) if whole else step
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def _powers(low: float, high: float) -> list[float]:
    steps = [nice * 10.0**power for power in range(6) for nice in (1, 2, 5)]
    return [value for value in steps if low <= value <= high]


def _room(low: float, high: float) -> tuple[float, float]:
    space = max((high - low) * 0.06, 0.5 if high > 5 else 0.02)
    return (max(0.0, low - space) if low >= 0 else low - space), high + space
