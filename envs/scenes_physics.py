"""How bodies move on the ground: straight on until they meet, then as billiard balls do.

M bodies. Each is the circle around its footprint, and all are inside a circle around the origin.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

_MAX_CONTACTS = 1000
"""In a step; what is not played by then stands still until the next one."""


@njit(cache=True, error_model="numpy")
def _time_to_meet(x: float, y: float, dx: float, dy: float, reach: float) -> float:
    """When a point at (x, y) that moves by (dx, dy) comes as near as `reach` to the origin."""
    closing = x * dx + y * dy
    if closing >= 0.0:
        return math.inf
    square = dx * dx + dy * dy
    root = closing * closing - square * (x * x + y * y - reach * reach)
    if root <= 0.0:
        return math.inf
    return max((-closing - math.sqrt(root)) / square, 0.0)


@njit(cache=True, error_model="numpy")
def _time_to_leave(x: float, y: float, dx: float, dy: float, radius: float) -> float:
    """When it is as far as `radius` from the origin and moves away."""
    square = dx * dx + dy * dy
    if square == 0.0:
        return math.inf
    along = x * dx + y * dy
    outside = x * x + y * y - radius * radius
    if outside >= 0.0:
        return 0.0 if along > 0.0 else -2.0 * along / square
    return (-along + math.sqrt(along * along - square * outside)) / square


@njit(cache=True, error_model="numpy")
def move(
    places: NDArray[np.float64],
    velocities: NDArray[np.float64],
    radii: NDArray[np.float64],
    masses: NDArray[np.float64],
    arena: float,
    duration: float,
) -> int:
    """Play some time: every contact at the moment when it happens, without friction or loss.

    Two bodies that meet change their speeds along the line between them so that momentum and energy
    stay; a body that meets the border turns around. So no two ever overlap, if none did before.

    Args:
        places: (M,2), changed in place.
        velocities: (M,2) in units a step, changed in place.
        radii: (M,).
        masses: (M,).
        arena: radius of the border around the origin.
        duration: in steps.

    Returns:
        How many times two bodies met.
    """
    num_meetings, left = 0, duration
    for _ in range(_MAX_CONTACTS):
        soonest, first, second = left, -1, -1
        for index in range(len(radii)):
            x, y = places[index, 0], places[index, 1]
            dx, dy = velocities[index, 0], velocities[index, 1]
            time = _time_to_leave(x, y, dx, dy, arena - radii[index])
            if time < soonest:
                soonest, first, second = time, index, -1
            for other in range(index):
                time = _time_to_meet(
                    x - places[other, 0],
                    y - places[other, 1],
                    dx - velocities[other, 0],
                    dy - velocities[other, 1],
                    radii[index] + radii[other],
                )
                if time < soonest:
                    soonest, first, second = time, index, other
        places += soonest * velocities
        left -= soonest
        if first < 0:
            break
        if second < 0:
            _bounce(places, velocities, first)
        else:
            _collide(places, velocities, masses, first, second)
            num_meetings += 1
    return num_meetings


@njit(cache=True, error_model="numpy")
def _bounce(places: NDArray[np.float64], velocities: NDArray[np.float64], index: int) -> None:
    """Turn around what leaves: mirror its velocity at the border."""
    x, y = places[index, 0], places[index, 1]
    away = math.sqrt(x * x + y * y)
    speed = (velocities[index, 0] * x + velocities[index, 1] * y) / away
    velocities[index, 0] -= 2.0 * speed * x / away
    velocities[index, 1] -= 2.0 * speed * y / away


@njit(cache=True, error_model="numpy")
def _collide(
    places: NDArray[np.float64],
    velocities: NDArray[np.float64],
    masses: NDArray[np.float64],
    first: int,
    second: int,
) -> None:
    """Exchange what two bodies carry along the line between them."""
    x, y = places[second, 0] - places[first, 0], places[second, 1] - places[first, 1]
    away = math.sqrt(x * x + y * y)
    x, y = x / away, y / away
    closing = (velocities[first, 0] - velocities[second, 0]) * x
    closing += (velocities[first, 1] - velocities[second, 1]) * y
    push = 2.0 * closing / (masses[first] + masses[second])
    velocities[first, 0] -= push * masses[second] * x
    velocities[first, 1] -= push * masses[second] * y
    velocities[second, 0] += push * masses[first] * x
    velocities[second, 1] += push * masses[first] * y
