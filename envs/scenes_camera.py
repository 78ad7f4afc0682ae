"""Pinhole cameras: where they stand, what they look at, and the points behind their pixels.

V views, H W image. Cameras follow `ocrl.types.Camera`.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def pinhole(size: int, field_of_view: float) -> NDArray[np.float64]:
    """Intrinsics (3,3) of a square image.

    Args:
        size: pixels of a side.
        field_of_view: the angle between its left and right border, in degrees.
    """
    focal = 0.5 * size / math.tan(math.radians(field_of_view) / 2)
    return np.array([[focal, 0.0, size / 2], [0.0, focal, size / 2], [0.0, 0.0, 1.0]])


def look_at(
    azimuth: float, elevation: float, distance: float, target: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Extrinsics (4,4) of an upright camera on a sphere around what it looks at.

    Args:
        azimuth: from the x-axis, counter-clockwise seen from above, in degrees.
        elevation: above the horizon, in degrees, below 90.
        distance: to the target.
        target: (3,).
    """
    turn, rise = math.radians(azimuth), math.radians(elevation)
    back = np.array(
        [math.cos(turn) * math.cos(rise), math.sin(turn) * math.cos(rise), math.sin(rise)]
    )
    right = np.array([-math.sin(turn), math.cos(turn), 0.0])
    extrinsics = np.eye(4)
    extrinsics[:3, :3] = np.column_stack([right, np.cross(right, back), -back])
    extrinsics[:3, 3] = target + distance * back
    return extrinsics


def points_of(
    depth: NDArray[np.floating], intrinsics: NDArray[np.float64], extrinsics: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The points of the world behind the centres of the pixels.

    Args:
        depth: (...,H,W) along the axis of the camera.
        intrinsics: (...,3,3).
        extrinsics: (...,4,4).

    Returns:
        (...,H,W,3).
    """
    height, width = depth.shape[-2:]
    row, column = np.mgrid[:height, :width] + 0.5
    pixels = np.stack([column, row, np.ones_like(row)], axis=-1)
    to_world = extrinsics[..., :3, :3] @ np.linalg.inv(intrinsics)
    rays = np.einsum("...ij,hwj->...hwi", to_world, pixels)
    return rays * depth[..., None] + extrinsics[..., None, None, :3, 3]


def project(
    points: NDArray[np.floating], intrinsics: NDArray[np.float64], extrinsics: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where points of the world are seen.

    Args:
        points: (N,3).
        intrinsics: (3,3).
        extrinsics: (4,4).

    Returns:
        Column and row (N,2) in pixels, and depth (N,).
    """
    local = (points - extrinsics[:3, 3]) @ extrinsics[:3, :3]
    seen = local @ intrinsics.T
    return seen[:, :2] / seen[:, 2:], local[:, 2]
