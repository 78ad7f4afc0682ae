"""Charts of scores as SVG elements, coloured by the variables of the page that holds them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

from ocrl.visualize import spread


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


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """The axis of scores: 0 to 1, lower where a score is negative."""
    lowest = min((value for value in values if math.isfinite(value)), default=0.0)
    return (math.floor(lowest * 4) / 4 if lowest < 0 else 0.0), 1.0


def _ticks(low: float, high: float) -> list[float]:
    return [low + 0.25 * step for step in range(round((high - low) / 0.25) + 1)]


def _rules(low: float, high: float, y: Callable[[float], float], left: float, right: float) -> str:
    return "".join(
        f"<line class='rule' x1='{left}' x2='{right}' y1='{y(value):.1f}' y2='{y(value):.1f}'/>"
        f"<text x='{left - 6}' y='{y(value) + 4:.1f}' text-anchor='end'>{value:g}</text>"
        for value in _ticks(low, high)
    )
