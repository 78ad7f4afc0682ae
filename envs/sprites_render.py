"""Anti-aliased drawing of flat shapes, with the masks that belong to the drawing.

H W image, M shapes. Lengths are in [0,1] of the image's side unless said to be in pixels.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

# Corners (0: a circle), inner radius over outer radius, and the angle of one corner. The edges run
# between a corner and the next inner point; with the inner point in the middle of a regular
# polygon's side the star is that polygon.
_OUTLINES: dict[str, tuple[int, float, float]] = {
    "circle": (0, 1.0, 0.0),
    "square": (4, math.cos(math.pi / 4), math.pi / 4),
    "triangle": (3, math.cos(math.pi / 3), -math.pi / 2),
    "diamond": (4, math.cos(math.pi / 4), 0.0),
    "pentagon": (5, math.cos(math.pi / 5), -math.pi / 2),
    "hexagon": (6, math.cos(math.pi / 6), 0.0),
    "star": (5, 0.45, -math.pi / 2),
    "spark": (4, 0.4, 0.0),
}
SHAPES = tuple(_OUTLINES)
"""Names of the shapes; a shape's number is its place here."""

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (230, 50, 50),
    "green": (60, 190, 75),
    "blue": (50, 100, 235),
    "yellow": (250, 220, 40),
    "magenta": (220, 60, 210),
    "cyan": (60, 210, 225),
    "orange": (245, 140, 40),
    "purple": (140, 60, 190),
    "white": (245, 245, 245),
    "grey": (140, 140, 140),
}
"""Colours by name; a colour's number is its place here."""


def outline_table() -> NDArray[np.float64]:
    """One row for each of `SHAPES`: corners, angle, and the outward normal of the folded edge.

    All symmetries of a shape folded away, one straight edge is left: from the corner (1, 0) to the
    inner point, seen from the centre. Its normal (x, y) is all that a distance needs.
    """
    rows = []
    for corners, inner, angle in _OUTLINES.values():
        half_sector = math.pi / corners if corners else 0.0
        normal = (inner * math.sin(half_sector), 1.0 - inner * math.cos(half_sector))
        length = math.hypot(*normal)
        x, y = (normal[0] / length, normal[1] / length) if corners else (1.0, 0.0)
        rows.append((float(corners), angle, x, y))
    return np.array(rows)


@njit(cache=True)
def _signed_distance(
    x: float, y: float, distance: float, radius: float, outline: NDArray[np.float64]
) -> float:
    """Distance of a point to an outline around the origin, negative inside."""
    if outline[0] == 0.0:
        return distance - radius
    sector = 2.0 * math.pi / outline[0]
    angle = math.atan2(y, x) - outline[1]
    angle -= sector * math.floor(angle / sector + 0.5)
    along, across = distance * math.cos(angle), distance * abs(math.sin(angle))
    return (along - radius) * outline[2] + across * outline[3]


@njit(cache=True)
def draw(
    frame: NDArray[np.uint8],
    ids: NDArray[np.uint16],
    background: NDArray[np.uint8],
    positions: NDArray[np.float64],
    radii: NDArray[np.float64],
    outlines: NDArray[np.float64],
    colors: NDArray[np.uint8],
) -> None:
    """Draw shapes into a frame and into its masks, the last first, so that the first is on top.

    A pixel is covered by a shape in proportion to the distance of its centre to the outline (half
    at the outline, over one pixel). It belongs to the top-most shape that covers more than half of
    it; row i of the tables has id i + 1.

    Args:
        frame: (H,W,3) with H = W, overwritten.
        ids: (H,W), overwritten.
        background: (3,).
        positions: (M,2) centres x, y.
        radii: (M,) of the circles around the shapes.
        outlines: (M,4) rows of `outline_table`.
        colors: (M,3).
    """
    size = frame.shape[0]
    for channel in range(3):
        frame[:, :, channel] = background[channel]
    ids[:] = 0
    for shape in range(len(radii) - 1, -1, -1):
        radius = radii[shape] * size
        outline = outlines[shape]
        center_x, center_y = positions[shape, 0] * size, positions[shape, 1] * size
        inside = radius * outline[2] - 0.5
        for row in range(
            max(0, math.floor(center_y - radius - 1.0)),
            min(size, math.ceil(center_y + radius + 1.0)),
        ):
            y = row + 0.5 - center_y
            for column in range(
                max(0, math.floor(center_x - radius - 1.0)),
                min(size, math.ceil(center_x + radius + 1.0)),
            ):
                x = column + 0.5 - center_x
                distance = math.sqrt(x * x + y * y)
                if distance >= radius + 0.5:
                    continue
                coverage = 1.0
                if distance > inside:
                    coverage = 0.5 - _signed_distance(x, y, distance, radius, outline)
                    if coverage <= 0.0:
                        continue
                    coverage = min(coverage, 1.0)
                for channel in range(3):
                    below = float(frame[row, column, channel])
                    mixed = below + (float(colors[shape, channel]) - below) * coverage
                    frame[row, column, channel] = np.uint8(mixed + 0.5)
                if coverage > 0.5:
                    ids[row, column] = shape + 1


@njit(cache=True)
def tight_boxes(ids: NDArray[np.uint16], num_ids: int) -> NDArray[np.int64]:
    """Left, top, right, bottom in pixels (right and bottom excluded) of the ids 1 to `num_ids`.

    Returns:
        (num_ids,4); ids without a pixel have right = 0.
    """
    height, width = ids.shape
    boxes = np.empty((num_ids, 4), dtype=np.int64)
    boxes[:, 0], boxes[:, 1], boxes[:, 2:] = width, height, 0
    for row in range(height):
        for column in range(width):
            label = ids[row, column]
            if 0 < label <= num_ids:
                box = boxes[label - 1]
                box[0], box[1] = min(box[0], column), min(box[1], row)
                box[2], box[3] = max(box[2], column + 1), max(box[3], row + 1)
    return boxes
