"""Line plots as inline SVG: no script, no library, colours from the page's style sheet.

Knows nothing of runs; it draws what it is given. Text is escaped here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

WIDTH, HEIGHT = 740, 380
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 172, 14, 46
_LABEL_GAP = 16
_LETTER = 7.4  # pixels of a label's letter, about
_ASIDE = 13


@dataclass(frozen=True)
class Line:
    """A curve. ``style`` is the CSS class that gives its colour; ``lows`` and ``highs`` bound its band, if any."""

    name: str
    style: str
    xs: Sequence[float]
    ys: Sequence[float]
    lows: Sequence[float] = ()
    highs: Sequence[float] = ()


@dataclass(frozen=True)
class Point:
    """A single result with its interval."""

    name: str
    style: str
    x: float
    y: float
    low: float
    high: float


@dataclass(frozen=True)
class Figure:
    """What a plot shows: logarithmic x, shares on y. ``ticks`` None places them by itself."""

    x_title: str
    lines: Sequence[Line]
    points: Sequence[Point]
    ticks: Sequence[float] | None = None
    y_title: str = "accuracy"


def draw(figure: Figure) -> str:
    """The figure as an SVG element."""
    return plot(
        figure.lines,
        figure.points,
        x_title=figure.x_title,
        y_title=figure.y_title,
        x_format=short,
        ticks=figure.ticks,
    )


def plot(
    lines: Sequence[Line],
    points: Sequence[Point],
    *,
    x_title: str,
    y_title: str,
    x_format: Callable[[float], str],
    ticks: Sequence[float] | None = None,
) -> str:
    """An SVG element: logarithmic x, shares 0..1 as percentages on y, names at the right of what they
    name."""
    xs = [x for line in lines for x in line.xs] + [point.x for point in points]
    ys = [y for line in lines for y in (*line.ys, *line.lows, *line.highs)]
    ys += [y for point in points for y in (point.low, point.high)]
    frame = _Frame.around(xs, ys)
    parts = [_axes(frame, x_title, y_title, x_format, ticks if ticks is not None else frame.log_ticks())]
    parts += [_band(frame, line) for line in lines if line.lows]
    parts += [_line(frame, line, x_format) for line in lines]
    at = _abreast(frame, points, [frame.x(line.xs[-1]) for line in lines])
    parts += [_point(frame, point, x, x_format) for point, x in zip(points, at, strict=True)]
    left = max([WIDTH - _RIGHT + 40.0, *(x + 24 for x in at)])  # points that were moved aside push the names
    parts.append(_labels(frame, lines, points, at, left))
    label = escape(f"{y_title} against {x_title}", quote=True)
    names = [line.name for line in lines] + [point.name for point in points]
    width = round(left + max(_RIGHT - 40.0, _LETTER * max(map(len, names), default=0)))
    opening = f'<svg class="plot" viewBox="0 0 {width} {HEIGHT}" role="img" aria-label="{label}">'
    return f"{opening}{''.join(parts)}</svg>"


@dataclass(frozen=True)
class _Frame:
    """Maps values to pixels."""

    x0: float
    x1: float
    y0: float
    y1: float
    step: float

    @classmethod
    def around(cls, xs: Sequence[float], ys: Sequence[float]) -> _Frame:
        low, high = min(xs), max(xs)
        if low == high:
            low, high = low / 2, high * 2
        pad = (high / low) ** 0.03
        span = max(ys) - min(ys)
        step = 0.02 if span <= 0.12 else 0.1 if span <= 0.4 else 0.2
        bottom = max(0.0, math.floor((min(ys) - 0.02) / step) * step)
        top = min(1.0, math.ceil((max(ys) + 0.02) / step) * step)
        return cls(low / pad, high * pad, bottom, max(top, bottom + step), step)

    def x(self, value: float) -> float:
        share = math.log(value / self.x0) / math.log(self.x1 / self.x0)
        return round(_LEFT + share * (WIDTH - _LEFT - _RIGHT), 1)

    def y(self, value: float) -> float:
        share = (value - self.y0) / (self.y1 - self.y0)
        return round(HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM), 1)

    def log_ticks(self) -> list[float]:
        """1, 2 and 5 times powers of ten; only powers of ten where those would crowd."""
        low, high = math.floor(math.log10(self.x0)), math.ceil(math.log10(self.x1))
        steps = (1, 2, 5) if high - low <= 3 else (1,)
        values = [step * 10.0**power for power in range(low, high + 1) for step in steps]
        return [value for value in values if self.x0 <= value <= self.x1]


def _axes(
    frame: _Frame, x_title: str, y_title: str, x_format: Callable[[float], str], ticks: Sequence[float]
) -> str:
    right, bottom = WIDTH - _RIGHT, HEIGHT - _BOTTOM
    parts = []
    for index in range(round((frame.y1 - frame.y0) / frame.step) + 1):
        value = frame.y0 + index * frame.step
        if value > frame.y1 + 1e-9:
            break
        y = frame.y(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="tick end" x="{_LEFT - 8}" y="{y + 4}">{value:.0%}</text>')
    for value in ticks:
        x = frame.x(value)
        parts.append(f'<line class="axis" x1="{x}" x2="{x}" y1="{bottom}" y2="{bottom + 4}"/>')
        parts.append(f'<text class="tick middle" x="{x}" y="{bottom + 18}">{escape(x_format(value))}</text>')
    middle = (_LEFT + right) / 2
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    parts.append(f'<text class="title middle" x="{middle}" y="{HEIGHT - 8}">{escape(x_title)}</text>')
    parts.append(
        f'<text class="title middle" transform="translate(13 {(_TOP + bottom) / 2}) rotate(-90)">'
        f"{escape(y_title)}</text>"
    )
    return "".join(parts)


def _band(frame: _Frame, line: Line) -> str:
    upper = [f"{frame.x(x)},{frame.y(y)}" for x, y in zip(line.xs, line.highs, strict=True)]
    lower = [f"{frame.x(x)},{frame.y(y)}" for x, y in zip(line.xs, line.lows, strict=True)]
    return f'<polygon class="band {line.style}" points="{" ".join([*upper, *reversed(lower)])}"/>'


def _line(frame: _Frame, line: Line, x_format: Callable[[float], str]) -> str:
    dots = [(frame.x(x), frame.y(y)) for x, y in zip(line.xs, line.ys, strict=True)]
    path = " ".join(f"{x},{y}" for x, y in dots)
    parts = [f'<polyline class="curve {line.style}" points="{path}"/>']
    for (x, y), value, share in zip(dots, line.xs, line.ys, strict=True):
        note = escape(f"{line.name}, {x_format(value)}: {share:.1%}")
        parts.append(
            f'<circle class="dot {line.style}" cx="{x}" cy="{y}" r="3.5"><title>{note}</title></circle>'
        )
    return "".join(parts)


def _abreast(frame: _Frame, points: Sequence[Point], taken: Sequence[float]) -> list[float]:
    """Pixel x of each point, moved aside where its interval would hide another or the end of a line."""
    places: list[float] = []
    for point in points:
        x = frame.x(point.x)
        while any(abs(x - other) < _ASIDE for other in (*taken, *places)):
            x += _ASIDE
        places.append(round(x, 1))
    return places


def _point(frame: _Frame, point: Point, x: float, x_format: Callable[[float], str]) -> str:
    y, low, high = frame.y(point.y), frame.y(point.low), frame.y(point.high)
    note = escape(
        f"{point.name}, {x_format(point.x)}: {point.y:.1%} "
        f"(95 % interval {point.low:.1%} to {point.high:.1%})"
    )
    return (
        f'<g class="point {point.style}"><title>{note}</title>'
        f'<line x1="{x}" x2="{x}" y1="{low}" y2="{high}"/>'
        f'<line x1="{x - 4}" x2="{x + 4}" y1="{low}" y2="{low}"/>'
        f'<line x1="{x - 4}" x2="{x + 4}" y1="{high}" y2="{high}"/>'
        f'<path d="M{x} {y - 6}L{x + 6} {y}L{x} {y + 6}L{x - 6} {y}Z"/></g>'
    )


def _labels(
    frame: _Frame, lines: Sequence[Line], points: Sequence[Point], at: Sequence[float], left: float
) -> str:
    """Names beside their marks where there is room within the plot, else in a column at the right."""
    marks = [(frame.y(line.ys[-1]), frame.x(line.xs[-1]), line.name, line.style) for line in lines]
    marks += [(frame.y(point.y), x, point.name, point.style) for point, x in zip(points, at, strict=True)]
    edge = _LEFT + 0.6 * (WIDTH - _LEFT - _RIGHT)
    taken = [spot for line in lines for spot in _drawn(frame, line)]
    taken += [
        (x, frame.y(y)) for point, x in zip(points, at, strict=True) for y in (point.low, point.y, point.high)
    ]
    inside = [mark for mark in marks if mark[1] < edge and _free(mark[0], mark[1], mark[2], taken)]
    column = sorted(mark for mark in marks if mark not in inside)
    places = spread([mark[0] for mark in column], _LABEL_GAP, _TOP + 6, HEIGHT - _BOTTOM - 4)
    parts = [
        f'<text class="label {style}" x="{x + 11}" y="{y + 4}">{escape(name)}</text>'
        for y, x, name, style in inside
    ]
    for place, (y, x, name, style) in zip(places, column, strict=True):
        parts.append(f'<path class="leader" d="M{x + 8} {y}L{left - 14} {place}L{left - 4} {place}"/>')
        parts.append(f'<text class="label {style}" x="{left}" y="{place + 4}">{escape(name)}</text>')
    return "".join(parts)


def _drawn(frame: _Frame, line: Line) -> list[tuple[float, float]]:
    """Places along a curve, a few pixels apart."""
    dots = [(frame.x(x), frame.y(y)) for x, y in zip(line.xs, line.ys, strict=True)]
    return dots + [
        (x0 + (x1 - x0) * part / 16, y0 + (y1 - y0) * part / 16)
        for (x0, y0), (x1, y1) in pairwise(dots)
        for part in range(1, 16)
    ]


def _free(y: float, x: float, name: str, taken: Sequence[tuple[float, float]]) -> bool:
    """Whether nothing is drawn where a name beside the mark at (x, y) would stand."""
    end = x + 11 + _LETTER * len(name)
    return not any(x + 5 < other < end and abs(y - height) < 9 for other, height in taken)


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places for sorted ``wanted`` heights, ``gap`` apart, as near as possible, within [low, high]."""
    places = list(wanted)
    for _ in range(200):
        moved = False
        for i in range(1, len(places)):
            overlap = gap - (places[i] - places[i - 1])
            if overlap > 1e-6:
                places[i - 1] -= overlap / 2
                places[i] += overlap / 2
                moved = True
        if not moved:
            break
    shift = max(0.0, low - places[0]) if places else 0.0
    places = [place + shift for place in places]
    over = max(0.0, places[-1] - high) if places else 0.0
    return [round(max(low + i * gap, place - over), 1) for i, place in enumerate(places)]


_HUES = 12  # classes hue-0 .. hue-11 of the style sheet


def hue(index: int) -> str:
    """The class of the colour of the strategy at this place in the recipe."""
    return f"hue-{index % _HUES}"


def short(value: float) -> str:
    """1234 -> ``1.2k``; small numbers as they are."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            text = f"{value / size:.1f}" if value < 100 * size else f"{value / size:.0f}"
            return text.removesuffix(".0") + unit
    return f"{value:.0f}"
