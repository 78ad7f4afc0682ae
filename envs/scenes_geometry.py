"""Bodies on a ground, and which of them a pinhole camera sees at every pixel's centre.

M bodies, H W image. Lengths are in units of the world, z is up and the ground is z = 0.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

SHAPES = ("sphere", "cube", "cylinder")
"""Names of the shapes; a shape's number is its place here."""
SPHERE, CUBE, CYLINDER = range(3)
SOLIDS = (*SHAPES, "cone", "icosahedron", "torus")
"""All shapes that `body_table` and `ocrl.envs.scenes3d_geometry` know; here only the first three
are drawn."""
CONE, ICOSAHEDRON, TORUS = range(3, 6)
_ROUNDNESS = 1.2584085723648188
"""Circumradius of an icosahedron over its inradius."""
_SHRINK = np.array([1.0, math.sqrt(2.0), 1.0, 1.0, _ROUNDNESS, 1.0])
_TALLNESS = np.array([1.0, 1.0, 1.0, 1.0, 1.0, 0.32])
_AROUND = np.array([1.0, math.sqrt(3.0), math.sqrt(2.0), math.sqrt(2.0), _ROUNDNESS, 1.0])
"""By shape: size over half width, half height over half width, radius of the ball around it over
half width."""
BACKDROP_RADIUS = 60.0
"""The world ends at a dome around the origin, so that every ray meets something."""

KIND, X, Y, Z, COS, SIN, HALF_WIDTH, HALF_HEIGHT, BOUND, RED, GREEN, BLUE, IS_METAL = range(13)
"""Columns of a table of bodies: shape, centre, turn about z, half extents, radius of the sphere
around it, linear colour, material."""
NUM_COLUMNS = 13
GROUND, BACKDROP = -1, -2
"""What a ray meets that meets no body."""


def body_table(
    shapes: NDArray[np.int64],
    sizes: NDArray[np.float64],
    places: NDArray[np.float64],
    angles: NDArray[np.float64],
    colors: NDArray[np.float64],
    is_metal: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """Stand bodies on the ground.

    As in CLEVR a body's size is the radius of the circle around its footprint: the radius of
    spheres, cylinders and cones (which are as high as wide), half the diagonal of a cube's face,
    the radius of the ball around an icosahedron (which lies on a face), the outer radius of a torus
    (which lies flat; half its height is the radius of the tube).

    Args:
        shapes: (M,) numbers in `SOLIDS`.
        sizes: (M,).
        places: (M,2) x and y.
        angles: (M,) turn about the vertical in radians.
        colors: (M,3) linear, in [0,1].
        is_metal: (M,).

    Returns:
        (M,13), see `KIND` and the columns after it.
    """
    half = sizes / _SHRINK[shapes]
    tall = half * _TALLNESS[shapes]
    bodies = np.empty((len(shapes), NUM_COLUMNS))
    bodies[:, KIND] = shapes
    bodies[:, X : Z + 1] = np.column_stack([places, tall])
    bodies[:, COS], bodies[:, SIN] = np.cos(angles), np.sin(angles)
    bodies[:, HALF_WIDTH], bodies[:, HALF_HEIGHT] = half, tall
    bodies[:, BOUND] = half * _AROUND[shapes]
    bodies[:, RED : BLUE + 1] = colors
    bodies[:, IS_METAL] = is_metal
    return bodies


@njit(cache=True, error_model="numpy", forceinline=True)
def _span(start: float, step: float, half: float) -> tuple[float, float]:
    """When a point that moves along a line is within `half` of the origin: from, until."""
    if step == 0.0:
        return (-math.inf, math.inf) if abs(start) <= half else (math.inf, -math.inf)
    first, last = (-half - start) / step, (half - start) / step
    return (first, last) if first < last else (last, first)


@njit(cache=True, error_model="numpy", forceinline=True)
def _disc_span(x: float, y: float, dx: float, dy: float, radius: float) -> tuple[float, float]:
    """The same for a point in the plane and a disc around the origin."""
    square = dx * dx + dy * dy
    outside = x * x + y * y - radius * radius
    if square == 0.0:
        return (-math.inf, math.inf) if outside <= 0.0 else (math.inf, -math.inf)
    half = x * dx + y * dy
    root = half * half - square * outside
    if root < 0.0:
        return math.inf, -math.inf
    root = math.sqrt(root)
    return (-half - root) / square, (-half + root) / square


@njit(cache=True, error_model="numpy", forceinline=True)
def hit(
    bodies: NDArray[np.float64],
    index: int,
    x: float,
    y: float,
    z: float,
    dx: float,
    dy: float,
    dz: float,
) -> float:
    """How far along a ray from outside a body it is met, in lengths of (dx, dy, dz); inf: never."""
    x, y, z = x - bodies[index, X], y - bodies[index, Y], z - bodies[index, Z]
    half = bodies[index, HALF_WIDTH]
    if bodies[index, KIND] == SPHERE:
        square = dx * dx + dy * dy + dz * dz
        along = x * dx + y * dy + z * dz
        root = along * along - square * (x * x + y * y + z * z - half * half)
        if root < 0.0:
            return math.inf
        first = (-along - math.sqrt(root)) / square
        return first if first > 0.0 else math.inf
    first, last = _span(z, dz, bodies[index, HALF_HEIGHT])
    if bodies[index, KIND] == CUBE:
        cos, sin = bodies[index, COS], bodies[index, SIN]
        x, y = cos * x + sin * y, cos * y - sin * x
        dx, dy = cos * dx + sin * dy, cos * dy - sin * dx
        for side in (_span(x, dx, half), _span(y, dy, half)):
            first, last = max(first, side[0]), min(last, side[1])
    else:
        side = _disc_span(x, y, dx, dy, half)
        first, last = max(first, side[0]), min(last, side[1])
    return first if 0.0 < first <= last else math.inf


@njit(cache=True, error_model="numpy", forceinline=True)
def normal(
    bodies: NDArray[np.float64], index: int, x: float, y: float, z: float
) -> tuple[float, float, float]:
    """The outward unit normal of a body at a point of its surface."""
    x, y, z = x - bodies[index, X], y - bodies[index, Y], z - bodies[index, Z]
    half = bodies[index, HALF_WIDTH]
    if bodies[index, KIND] == SPHERE:
        return x / half, y / half, z / half
    up = abs(z) / bodies[index, HALF_HEIGHT]
    if bodies[index, KIND] == CYLINDER:
        around = math.sqrt(x * x + y * y)
        if up > around / half:
            return 0.0, 0.0, math.copysign(1.0, z)
        return x / around, y / around, 0.0
    cos, sin = bodies[index, COS], bodies[index, SIN]
    along, across = cos * x + sin * y, cos * y - sin * x
    if up > max(abs(along), abs(across)) / half:
        return 0.0, 0.0, math.copysign(1.0, z)
    if abs(along) > abs(across):
        sign = math.copysign(1.0, along)
        return sign * cos, sign * sin, 0.0
    sign = math.copysign(1.0, across)
    return -sign * sin, sign * cos, 0.0


@njit(cache=True, error_model="numpy", forceinline=True)
def nearest(
    bodies: NDArray[np.float64],
    skipped: int,
    x: float,
    y: float,
    z: float,
    dx: float,
    dy: float,
    dz: float,
) -> tuple[float, int]:
    """What a ray meets first, of the bodies but `skipped`, the ground and the backdrop."""
    first, found = empty_distance(x, y, z, dx, dy, dz)
    for index in range(len(bodies)):
        if index != skipped:
            distance = hit(bodies, index, x, y, z, dx, dy, dz)
            if distance < first:
                first, found = distance, index
    return first, found


@njit(cache=True, error_model="numpy", forceinline=True)
def empty_distance(
    x: float, y: float, z: float, dx: float, dy: float, dz: float
) -> tuple[float, int]:
    """What a ray from above the ground and within the backdrop meets where there is no body."""
    square = dx * dx + dy * dy + dz * dz
    along = x * dx + y * dy + z * dz
    outside = x * x + y * y + z * z - BACKDROP_RADIUS * BACKDROP_RADIUS
    far = (-along + math.sqrt(along * along - square * outside)) / square
    if dz < 0.0 and -z / dz < far:
        return -z / dz, GROUND
    return far, BACKDROP


@njit(cache=True, error_model="numpy", forceinline=True)
def _slopes(offset: float, depth: float, radius: float) -> tuple[float, float]:
    """Between which slopes x / z a circle of the plane is seen from the origin."""
    if depth <= radius:
        return -math.inf, math.inf
    root = radius * math.sqrt(offset * offset + depth * depth - radius * radius)
    below = depth * depth - radius * radius
    return (offset * depth - root) / below, (offset * depth + root) / below


@njit(cache=True, error_model="numpy")
def screen_boxes(
    bodies: NDArray[np.float64],
    intrinsics: NDArray[np.float64],
    extrinsics: NDArray[np.float64],
    height: int,
    width: int,
) -> NDArray[np.int64]:
    """Left, top, right, bottom (excluded) in pixels of boxes that hold all of each body, (M,4)."""
    boxes = np.empty((len(bodies), 4), dtype=np.int64)
    for index in range(len(bodies)):
        x = bodies[index, X] - extrinsics[0, 3]
        y = bodies[index, Y] - extrinsics[1, 3]
        z = bodies[index, Z] - extrinsics[2, 3]
        depth = x * extrinsics[0, 2] + y * extrinsics[1, 2] + z * extrinsics[2, 2]
        for axis, size in enumerate((width, height)):
            offset = x * extrinsics[0, axis] + y * extrinsics[1, axis] + z * extrinsics[2, axis]
            low, high = _slopes(offset, depth, bodies[index, BOUND])
            focal, center = intrinsics[axis, axis], intrinsics[axis, 2]
            low = min(max(low * focal + center - 1.0, 0.0), float(size))
            high = min(max(high * focal + center + 1.0, 0.0), float(size))
            boxes[index, axis] = math.floor(low)
            boxes[index, axis + 2] = math.ceil(high)
    return boxes


@njit(cache=True, error_model="numpy", forceinline=True)
def direction(
    column: float,
    row: float,
    intrinsics: NDArray[np.float64],
    extrinsics: NDArray[np.float64],
) -> tuple[float, float, float]:
    """The ray through a point of the image, as long as one unit of depth."""
    across = (column - intrinsics[0, 2]) / intrinsics[0, 0]
    down = (row - intrinsics[1, 2]) / intrinsics[1, 1]
    return (
        extrinsics[0, 0] * across + extrinsics[0, 1] * down + extrinsics[0, 2],
        extrinsics[1, 0] * across + extrinsics[1, 1] * down + extrinsics[1, 2],
        extrinsics[2, 0] * across + extrinsics[2, 1] * down + extrinsics[2, 2],
    )


@njit(cache=True, error_model="numpy")
def cast(
    ids: NDArray[np.uint16],
    depth: NDArray[np.float64],
    bodies: NDArray[np.float64],
    intrinsics: NDArray[np.float64],
    extrinsics: NDArray[np.float64],
) -> None:
    """Say which body is seen at the centre of each pixel, and how deep it lies.

    Args:
        ids: (H,W), overwritten: row i of `bodies` is i + 1, 0 is none of them.
        depth: (H,W), overwritten: along the camera's axis, of the ground and backdrop too.
        bodies: (M,13).
        intrinsics: (3,3), see `ocrl.types.Camera`.
        extrinsics: (4,4), likewise.
    """
    height, width = ids.shape
    x, y, z = extrinsics[0, 3], extrinsics[1, 3], extrinsics[2, 3]
    for row in range(height):
        for column in range(width):
            dx, dy, dz = direction(column + 0.5, row + 0.5, intrinsics, extrinsics)
            depth[row, column] = empty_distance(x, y, z, dx, dy, dz)[0]
            ids[row, column] = 0
    boxes = screen_boxes(bodies, intrinsics, extrinsics, height, width)
    for index in range(len(bodies)):
        for row in range(boxes[index, 1], boxes[index, 3]):
            for column in range(boxes[index, 0], boxes[index, 2]):
                dx, dy, dz = direction(column + 0.5, row + 0.5, intrinsics, extrinsics)
                distance = hit(bodies, index, x, y, z, dx, dy, dz)
                if distance < depth[row, column]:
                    depth[row, column] = distance
                    ids[row, column] = index + 1
