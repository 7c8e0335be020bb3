"""Plots as SVG text: lines over steps, and bars. A page's style sheet gives the colours (``--series-0`` ...).

A few dozen lines in place of a plotting library, because a report must open anywhere and install quickly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from tokvid.errors import ShapeError

WIDTH, HEIGHT = 560, 260
LEFT, RIGHT, TOP, BOTTOM = 58, 22, 30, 42
COLOURS = ("#2f6fde", "#d9642c", "#2a9d63", "#9a4fd1", "#b58a00", "#d13f6f")
# More points than this are drawn as means of neighbours: the plot has fewer pixels than that.
MOST_POINTS = 400

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Axis:
    """A range of values on a range of pixels, linear or logarithmic."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values inside the range: multiples of 1, 2 or 5, or decades when logarithmic and wide."""
        if not self.log:
            return _round_values(self.low, self.high)
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        wide = math.log10(self.high / self.low) > 2
        values = [factor * 10.0**e for e in decades for factor in ((1,) if wide else (1, 2, 5))]
        return [v for v in values if self.low <= v <= self.high]


def line_plot(
    series: Mapping[str, Points], title: str, xlabel: str = "step", ylabel: str = "", log_y: bool = False
) -> str:
    """SVG of named lines of (x, y) points, with a legend when there is more than one.

    Raises ShapeError on no points, on values that are not finite, and on values <= 0 with ``log_y``.
    """
    lines = {name: _thinned(sorted(points)) for name, points in series.items() if points}
    values = [value for points in lines.values() for point in points for value in point]
    heights = [y for points in lines.values() for _, y in points]
    if not values:
        raise ShapeError(f"the plot {title!r} has no points")
    if not all(map(math.isfinite, values)):
        raise ShapeError(f"the plot {title!r} holds values that are not finite")
    if log_y and min(heights) <= 0:
        raise ShapeError(f"the plot {title!r} is logarithmic and holds values <= 0")
    across = [x for points in lines.values() for x, _ in points]
    x_axis = Axis(*_widened(min(across), max(across), 0.0), LEFT, WIDTH - RIGHT)
    y_axis = Axis(*_range(heights, log_y), HEIGHT - BOTTOM, TOP, log_y)
    parts = _frame(title, xlabel, ylabel, x_axis, y_axis)
    for number, points in enumerate(lines.values()):
        path = " ".join(f"{x_axis(x):.1f},{y_axis(y):.1f}" for x, y in points)
        if len(points) == 1:
            x, y = path.split(",")
            parts.append(f'<circle cx="{x}" cy="{y}" r="3" fill="{_colour(number)}"/>')
        else:
            parts.append(f'<polyline points="{path}" fill="none" stroke="{_colour(number)}" stroke-width="1.8"/>')
    if len(lines) > 1:
        parts += _legend(list(lines))
    return _svg(title, parts)


def bar_plot(values: Sequence[float], title: str, xlabel: str = "", ylabel: str = "") -> str:
    """SVG of one bar a value (>= 0), in the order given; more bars than fit are drawn as means of neighbours."""
    if not len(values) or not all(math.isfinite(v) and v >= 0 for v in values):
        raise ShapeError(f"the plot {title!r} needs finite values >= 0 and at least one")
    bars = _thinned([(float(i), float(v)) for i, v in enumerate(values)])
    x_axis = Axis(0.0, float(len(values)), LEFT, WIDTH - RIGHT)
    y_axis = Axis(0.0, max(v for _, v in bars) * 1.05 or 1.0, HEIGHT - BOTTOM, TOP)
    width = (WIDTH - RIGHT - LEFT) / len(bars)
    parts = _frame(title, xlabel, ylabel, x_axis, y_axis)
    # Wide bars get a gap between them; bars of a pixel would vanish in it.
    drawn = width * 0.85 if width > 4 else width + 0.2
    for number, (_, value) in enumerate(bars):
        top = y_axis(value)
        parts.append(
            f'<rect x="{LEFT + number * width:.1f}" y="{top:.1f}" width="{drawn:.1f}"'
            f' height="{HEIGHT - BOTTOM - top:.1f}" fill="{_colour(0)}"/>'
        )
    return _svg(title, parts)


def usage_plot(counts: Sequence[int], title: str = "codebook usage") -> str:
    """SVG of how often each code occurs, most frequent first, as a share of all codes in percent."""
    total = sum(counts)
    if total <= 0:
        raise ShapeError(f"the plot {title!r} has no codes to count")
    shares = [100 * int(count) / total for count in sorted(counts, reverse=True)]
    used = sum(count > 0 for count in counts)
    label = f"codes, most frequent first ({used} of {len(counts)} used)"
    return bar_plot(shares, title, label, "% of all codes")


def _frame(title: str, xlabel: str, ylabel: str, x_axis: Axis, y_axis: Axis) -> list[str]:
    """Title, labels, ticks and grid lines."""
    middle_x, middle_y = (LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2
    parts = [
        _text(LEFT, 18, title, 'font-weight="600"'),
        _text(middle_x, HEIGHT - 8, xlabel, 'text-anchor="middle" opacity=".75"'),
        _text(14, middle_y, ylabel, f'text-anchor="middle" opacity=".75" transform="rotate(-90 14 {middle_y:g})"'),
    ]
    line = 'stroke="currentColor" stroke-opacity=".15"'
    for tick in y_axis.ticks():
        y = y_axis(tick)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" {line}/>')
        parts.append(_text(LEFT - 6, y + 4, f"{tick:g}", 'text-anchor="end" opacity=".75"'))
    for tick in x_axis.ticks():
        x = x_axis(tick)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" {line}/>')
        parts.append(_text(x, HEIGHT - BOTTOM + 16, f"{tick:g}", 'text-anchor="middle" opacity=".75"'))
    return parts


def _legend(names: Sequence[str]) -> list[str]:
    parts: list[str] = []
    x = WIDTH - RIGHT - 8.0
    for number in reversed(range(len(names))):
        # 6.2 pixels is the mean width of a letter at this size.
        x -= 6.2 * len(names[number])
        parts.append(_text(x, 18, names[number], f'style="fill:{_colour(number)}"'))
        parts.append(f'<rect x="{x - 13:.1f}" y="10" width="9" height="9" rx="2" fill="{_colour(number)}"/>')
        x -= 26
    return parts


def _svg(title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
        f' aria-label="{escape(title)}" font-family="system-ui, sans-serif" font-size="12" fill="currentColor">'
        + "".join(parts)
        + "</svg>"
    )


def _text(x: float, y: float, text: str, attributes: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {attributes}>{escape(text)}</text>' if text else ""


def _colour(number: int) -> str:
    index = number % len(COLOURS)
    return f"var(--series-{index}, {COLOURS[index]})"


def _thinned(points: Points) -> Points:
    if len(points) <= MOST_POINTS:
        return points
    size = -(-len(points) // MOST_POINTS)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def _range(values: Sequence[float], log: bool) -> tuple[float, float]:
    low, high = min(values), max(values)
    if log:
        return (low / 1.1, high * 1.1)
    return _widened(low, high, 0.05)


def _widened(low: float, high: float, share: float) -> tuple[float, float]:
    """The range with ``share`` of its length added at both ends; never of length 0."""
    if low == high:
        return low - (abs(low) or 1.0) * 0.5, high + (abs(high) or 1.0) * 0.5
    margin = (high - low) * share
    return low - margin, high + margin


def _round_values(low: float, high: float) -> list[float]:
    """Four to nine multiples of 1, 2 or 5 times a power of ten inside [low, high]."""
    rough = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    # Rounded to the digits of the step, because 3 * 0.1 is not 0.3.
    digits = max(0, -math.floor(math.log10(step)))
    return [round(i * step, digits) for i in range(first, last + 1)]
