"""Charts of scores as SVG elements, coloured by the variables of the page that holds them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from ocrl.visualize import spread


@dataclass(frozen=True)
class Band:
    """A curve with what is known of it, for `band_chart`.

    Attributes:
        x: places from left to right, rising.
        mean: the curve's height at each.
        low: the lower edge of the band around it; None for a curve without one.
        high: the upper edge.
        color: as CSS writes it.
    """

    x: Sequence[float]
    mean: Sequence[float]
    low: Sequence[float] | None
    high: Sequence[float] | None
    color: str


@dataclass(frozen=True)
class Spread:
    """A row of `interval_chart`.

    Attributes:
        values: one dot for each.
        mean: where the bar stands.
        interval: a thick line from its lower to its upper end; None for none.
        color: as CSS writes it.
    """

    values: Sequence[float]
    mean: float
    interval: Sequence[float] | None
    color: str


@dataclass(frozen=True)
class Line:
    """A straight line of `scatter_chart`.

    Attributes:
        slope: of the height over the place.
        start: the height at place 0.
    """

    slope: float
    start: float


def line_chart(curves: Mapping[str, Sequence[float]]) -> str:
    """Curves over the frames of a clip as an SVG element; NaN leaves a gap.

    Args:
        curves: name of a method to its value at each frame.
    """
    low, high = _limits([value for values in curves.values() for value in values])
    longest = max(len(values) for values in curves.values())
    left, right, top, bottom = 34.0, 392.0, 10.0, 168.0

    def x(frame: int) -> float:
        return left + (right - left) * frame / max(longest - 1, 1)

    def y(value: float) -> float:
        return bottom - (bottom - top) * (value - low) / (high - low)

    parts = [_rules(low, high, y, left, right)]
    for frame in spread(longest, 5):
        parts.append(f"<text x='{x(frame):.1f}' y='184' text-anchor='middle'>{frame}</text>")
    parts.append(f"<text x='{right}' y='198' text-anchor='end'>frame of the clip</text>")
    for method, values in reversed(list(curves.items())):
        points = [(x(t), y(value), t, value) for t, value in enumerate(values)]
        path = ""
        is_drawing = False
        for at, height, _, value in points:
            if math.isfinite(value):
                path += f"{'L' if is_drawing else 'M'}{at:.1f} {height:.1f}"
            is_drawing = math.isfinite(value)
        parts.append(f"<path class='curve' stroke='var(--{method})' d='{path}'/>")
        parts.extend(
            f"<circle class='hit' style='color:var(--{method})' cx='{at:.1f}' cy='{height:.1f}' "
            f"r='4'><title>{escape(method)}, frame {t}: {value:.3f}</title></circle>"
            for at, height, t, value in points
            if math.isfinite(value)
        )
    return f"<svg viewBox='0 0 400 202' role='img'>{''.join(parts)}</svg>"


def dot_chart(values: Mapping[str, Sequence[float]]) -> str:
    """One dot for each clip, a row for each method, a bar at the mean, as an SVG element."""
    finite = {m: [v for v in own if math.isfinite(v)] for m, own in values.items()}
    low, high = _limits([value for own in finite.values() for value in own])
    left, right = 64.0, 388.0

    def x(value: float) -> float:
        return left + (right - left) * (value - low) / (high - low)

    bottom = 22 + 34 * len(finite)
    parts = []
    for value in _ticks(low, high):
        at = x(value)
        parts.append(
            f"<line class='rule' x1='{at:.1f}' x2='{at:.1f}' y1='8' y2='{bottom}'/>"
            f"<text x='{at:.1f}' y='{bottom + 15}' text-anchor='middle'>{value:g}</text>"
        )
    for row, (method, own) in enumerate(finite.items()):
        y = 30 + 34 * row
        parts.append(f"<text x='{left - 10}' y='{y + 4}' text-anchor='end'>{escape(method)}</text>")
        parts.extend(
            f"<circle cx='{x(value):.1f}' cy='{y + (index % 5 - 2) * 3}' r='3.5' "
            f"fill='var(--{method})' fill-opacity='.55'><title>{value:.3f}</title></circle>"
            for index, value in enumerate(own)
        )
        if own:
            at = x(sum(own) / len(own))
            parts.append(
                f"<line x1='{at:.1f}' x2='{at:.1f}' y1='{y - 13}' y2='{y + 13}' "
                f"stroke='var(--{method})' stroke-width='2.5'/>"
            )
    return f"<svg viewBox='0 0 400 {bottom + 22}' role='img'>{''.join(parts)}</svg>"


def band_chart(
    bands: Mapping[str, Band],
    *,
    levels: Mapping[str, float],
    limits: tuple[float, float],
    x_name: str,
) -> str:
    """Curves with bands around them and dashed levels across, as an SVG element.

    Args:
        bands: by name.
        levels: heights of dashed lines, by the word written beside them.
        limits: the least and the largest height of the chart; what lies outside is cut off.
        x_name: written under the axis.
    """
    low, high = limits
    left, right, top, bottom = 44.0, 352.0, 10.0, 168.0
    last = max(band.x[-1] for band in bands.values())

    def x(place: float) -> float:
        return left + (right - left) * place / last

    def y(value: float) -> float:
        return bottom - (bottom - top) * (min(max(value, low), high) - low) / (high - low)

    parts = [_rules(low, high, y, left, right)]
    for place in _ticks(0.0, last):
        parts.append(
            f"<text x='{x(place):.1f}' y='184' text-anchor='middle'>{_short(place)}</text>"
        )
    parts.append(f"<text x='{right}' y='198' text-anchor='end'>{escape(x_name)}</text>")
    for name, value in levels.items():
        parts.append(
            f"<line class='level' x1='{left}' x2='{right}' y1='{y(value):.1f}' y2='{y(value):.1f}'>"
            f"<title>{escape(name)}: {value:.3g}</title></line>"
            f"<text x='{right + 5}' y='{y(value) + 4:.1f}'>{escape(name)}</text>"
        )
    for name, band in bands.items():
        points = [
            f"{x(place):.1f} {y(value):.1f}" for place, value in zip(band.x, band.mean, strict=True)
        ]
        if band.low is not None and band.high is not None:
            upper, lower = (list(zip(band.x, side, strict=True)) for side in (band.high, band.low))
            edge = [*upper, *reversed(lower)]
            outline = "L".join(f"{x(place):.1f} {y(value):.1f}" for place, value in edge)
            parts.append(f"<path fill='{band.color}' fill-opacity='.16' d='M{outline}Z'/>")
        parts.append(f"<path class='curve' stroke='{band.color}' d='M{'L'.join(points)}'/>")
        parts.extend(
            f"<circle class='hit' style='color:{band.color}' cx='{x(place):.1f}' "
            f"cy='{y(value):.1f}' r='4'><title>{escape(name)}, {place:,.0f}: {value:.3g}</title>"
            "</circle>"
            for place, value in zip(band.x, band.mean, strict=True)
        )
    return f"<svg viewBox='0 0 400 202' role='img'>{''.join(parts)}</svg>"


def interval_chart(
    rows: Mapping[str, Spread], *, levels: Mapping[str, float], limits: tuple[float, float]
) -> str:
    """A row for each name: its dots, its interval and a bar at its mean, as an SVG element.

    Args:
        rows: by name.
        levels: places of dashed lines, by the word written over them.
        limits: the least and the largest value of the chart.
    """
    low, high = limits
    left, right = 12.0, 388.0

    def x(value: float) -> float:
        return left + (right - left) * (min(max(value, low), high) - low) / (high - low)

    bottom = 24 + 38 * len(rows)
    parts = []
    for value in _ticks(low, high):
        parts.append(
            f"<line class='rule' x1='{x(value):.1f}' x2='{x(value):.1f}' y1='16' y2='{bottom}'/>"
            f"<text x='{x(value):.1f}' y='{bottom + 15}' text-anchor='middle'>{value:g}</text>"
        )
    for name, value in levels.items():
        at = x(value)
        parts.append(
            f"<line class='level' x1='{at:.1f}' x2='{at:.1f}' y1='16' y2='{bottom}'/>"
            f"<text x='{min(max(at, 20.0), 376.0):.1f}' y='11' text-anchor='middle'>"
            f"{escape(name)}</text>"
        )
    for row, (name, own) in enumerate(rows.items()):
        y = 46 + 38 * row
        parts.append(f"<text class='name' x='{left + 2}' y='{y - 11}'>{escape(name)}</text>")
        if own.interval is not None:
            begin, end = own.interval
            parts.append(
                f"<line x1='{x(begin):.1f}' x2='{x(end):.1f}' y1='{y}' y2='{y}' stroke-width='9' "
                f"stroke='{own.color}' stroke-opacity='.28' stroke-linecap='round'>"
                f"<title>{begin:.3g} to {end:.3g}</title></line>"
            )
        parts.extend(
            f"<circle cx='{x(value):.1f}' cy='{y}' r='3.5' fill='{own.color}' fill-opacity='.6'>"
            f"<title>{value:.3g}</title></circle>"
            for value in own.values
        )
        parts.append(
            f"<line x1='{x(own.mean):.1f}' x2='{x(own.mean):.1f}' y1='{y - 8}' y2='{y + 8}' "
            f"stroke='{own.color}' stroke-width='2.5'><title>{own.mean:.3g}</title></line>"
        )
    return f"<svg viewBox='0 0 400 {bottom + 22}' role='img'>{''.join(parts)}</svg>"


def scatter_chart(
    points: Mapping[str, tuple[float, float]],
    *,
    axes: tuple[str, str],
    limits: tuple[tuple[float, float], tuple[float, float]],
    line: Line | None,
    color: str,
) -> str:
    """A dot for each name, and a line through them, as an SVG element.

    Args:
        points: place and height by name, which is shown where the pointer is.
        axes: what is written at the ends of both axes.
        limits: the least and the largest place, and the same of heights.
        line: drawn dashed from side to side, as far as it is inside; None for none.
        color: of the dots, as CSS writes it.
    """
    (first, last), (low, high) = limits
    left, right, top, bottom = 44.0, 388.0, 22.0, 200.0

    def x(place: float) -> float:
        return left + (right - left) * (place - first) / (last - first)

    def y(value: float) -> float:
        return bottom - (bottom - top) * (value - low) / (high - low)

    parts = [_rules(low, high, y, left, right)]
    for place in _ticks(first, last):
        parts.append(f"<text x='{x(place):.1f}' y='216' text-anchor='middle'>{place:g}</text>")
    parts.append(f"<text x='{right}' y='230' text-anchor='end'>{escape(axes[0])}</text>")
    parts.append(f"<text x='{left}' y='12'>{escape(axes[1])}</text>")
    if line is not None:
        places = [first + (last - first) * step / 200 for step in range(201)]
        inside = [p for p in places if low <= line.start + line.slope * p <= high]
        if inside:
            ends = [(x(p), y(line.start + line.slope * p)) for p in (inside[0], inside[-1])]
            (x1, y1), (x2, y2) = ends
            parts.append(
                f"<line class='level' x1='{x1:.1f}' y1='{y1:.1f}' x2='{x2:.1f}' y2='{y2:.1f}'/>"
            )
    parts.extend(
        f"<circle cx='{x(place):.1f}' cy='{y(value):.1f}' r='5' fill='{color}' fill-opacity='.7'>"
        f"<title>{escape(name)}: {place:.3f}, {value:.3f}</title></circle>"
        for name, (place, value) in points.items()
    )
    return f"<svg viewBox='0 0 400 234' role='img'>{''.join(parts)}</svg>"


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """The axis of scores: 0 to 1, lower where a score is negative."""
    lowest = min((value for value in values if math.isfinite(value)), default=0.0)
    return (math.floor(lowest * 4) / 4 if lowest < 0 else 0.0), 1.0


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers from `low` to `high`, four to eight steps."""
    coarse = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(coarse))
    step = max(f * power for f in (1, 2, 2.5, 5) if f * power <= coarse * (1 + 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def _short(number: float) -> str:
    """A number of steps in few letters: 250k, 1.5M."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:g}{letter}"
    return f"{number:g}"


def _rules(low: float, high: float, y: Callable[[float], float], left: float, right: float) -> str:
    return "".join(
        f"<line class='rule' x1='{left}' x2='{right}' y1='{y(value):.1f}' y2='{y(value):.1f}'/>"
        f"<text x='{left - 6}' y='{y(value) + 4:.1f}' text-anchor='end'>{value:g}</text>"
        for value in _ticks(low, high)
    )
