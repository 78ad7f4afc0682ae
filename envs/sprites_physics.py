"""How sprites move: the agent walks and pushes, the others drift and bounce.

M sprites, the agent is row 0. Every sprite is its circumscribed circle, the arena the unit square.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

MOVES = np.array([[0, -1], [0, 1], [-1, 0], [1, 0]])
"""The discrete actions: up, down, left, right."""
_SLACK = 1e-7


@njit(cache=True)
def _is_free(
    x: float, y: float, index: int, positions: NDArray[np.float64], radii: NDArray[np.float64]
) -> bool:
    """Whether sprite `index` would overlap none of the others (nor the agent) at (x, y)."""
    for other in range(len(radii)):
        if other != index:
            reach = radii[index] + radii[other] - _SLACK
            gap_x, gap_y = x - positions[other, 0], y - positions[other, 1]
            if gap_x * gap_x + gap_y * gap_y < reach * reach:
                return False
    return True


@njit(cache=True)
def _clipped(value: float, radius: float) -> float:
    return min(max(value, radius), 1.0 - radius)


@njit(cache=True)
def _push(
    index: int,
    target_x: float,
    target_y: float,
    unit_x: float,
    unit_y: float,
    positions: NDArray[np.float64],
    radii: NDArray[np.float64],
) -> None:
    """Shift a sprite along (unit_x, unit_y) until the agent has room at its target, if it can."""
    reach = radii[0] + radii[index]
    gap_x, gap_y = positions[index, 0] - target_x, positions[index, 1] - target_y
    along = gap_x * unit_x + gap_y * unit_y
    across = gap_x * gap_x + gap_y * gap_y - along * along
    if along * along + across >= reach * reach:
        return
    shift = math.sqrt(reach * reach - across) - along
    x = _clipped(positions[index, 0] + shift * unit_x, radii[index])
    y = _clipped(positions[index, 1] + shift * unit_y, radii[index])
    if _is_free(x, y, index, positions, radii):
        positions[index, 0], positions[index, 1] = x, y


@njit(cache=True)
def move_agent(
    positions: NDArray[np.float64],
    radii: NDArray[np.float64],
    delta: NDArray[np.float64],
    pushable: NDArray[np.bool_],
    is_solid: bool,
) -> int:
    """Move the agent in a straight line, pushing what can be pushed, up to the first contact.

    A pushed sprite slides in the direction of the move, never sideways; it stops at the walls and
    does not move at all where it would run into another. There is a contact only if the whole move
    would end in another sprite: one that is grazed on the way is passed.

    Args:
        positions: (M,2), changed in place.
        radii: (M,).
        delta: (2,) the wanted move.
        pushable: (M,) which sprites give way.
        is_solid: false lets the agent pass over everything.

    Returns:
        The row of the sprite that cannot be pushed and was run into, or 0.
    """
    x, y = positions[0, 0], positions[0, 1]
    target_x, target_y = _clipped(x + delta[0], radii[0]), _clipped(y + delta[1], radii[0])
    length = math.sqrt((target_x - x) ** 2 + (target_y - y) ** 2)
    if length < _SLACK:
        return 0
    unit_x, unit_y = (target_x - x) / length, (target_y - y) / length
    free, touched = length, 0
    if is_solid:
        for index in range(1, len(radii)):
            gap_x, gap_y = positions[index, 0] - x, positions[index, 1] - y
            is_ahead = gap_x * unit_x + gap_y * unit_y > 0.0
            if pushable[index] and is_ahead:
                _push(index, target_x, target_y, unit_x, unit_y, positions, radii)
    if is_solid and not _is_free(target_x, target_y, 0, positions, radii):
        for index in range(1, len(radii)):
            reach = radii[0] + radii[index] - _SLACK
            gap_x, gap_y = positions[index, 0] - x, positions[index, 1] - y
            along = gap_x * unit_x + gap_y * unit_y
            across = gap_x * gap_x + gap_y * gap_y - along * along
            if along <= 0.0 or across >= reach * reach:
                continue
            contact = max(0.0, along - math.sqrt(reach * reach - across))
            if contact < free:
                free = contact
                touched = 0 if pushable[index] else index
    positions[0, 0], positions[0, 1] = x + free * unit_x, y + free * unit_y
    return touched


@njit(cache=True)
def drift(
    positions: NDArray[np.float64],
    velocities: NDArray[np.float64],
    radii: NDArray[np.float64],
    is_solid: bool,
    is_agent_solid: bool,
) -> int:
    """Move all sprites but the agent by their velocities; they bounce off the walls.

    Args:
        positions: (M,2), changed in place.
        velocities: (M,2) in sides of the arena a step, changed in place.
        radii: (M,).
        is_solid: they also bounce off each other: the two swap their speeds along the line between
            them, and the one whose turn it is stays where it was, so that none ever overlap.
        is_agent_solid: they bounce off the agent, which stays where it is.

    Returns:
        The row of the first sprite that ran into the agent, or 0.
    """
    touched = 0
    for index in range(1, len(radii)):
        if velocities[index, 0] == 0.0 and velocities[index, 1] == 0.0:
            continue
        x, y = (
            positions[index, 0] + velocities[index, 0],
            positions[index, 1] + velocities[index, 1],
        )
        for axis, value in enumerate((x, y)):
            if value < radii[index]:
                velocities[index, axis] = abs(velocities[index, axis])
            elif value > 1.0 - radii[index]:
                velocities[index, axis] = -abs(velocities[index, axis])
        x, y = _clipped(x, radii[index]), _clipped(y, radii[index])
        is_blocked = False
        for other in range(len(radii)):
            if other == index or not (is_agent_solid if other == 0 else is_solid):
                continue
            reach = radii[index] + radii[other]
            gap_x, gap_y = positions[other, 0] - x, positions[other, 1] - y
            distance = math.sqrt(gap_x * gap_x + gap_y * gap_y)
            if distance >= reach:
                continue
            is_blocked = True
            if other == 0 and touched == 0:
                touched = index
            gap_x, gap_y = gap_x / distance, gap_y / distance
            closing = (velocities[index, 0] - velocities[other, 0]) * gap_x
            closing += (velocities[index, 1] - velocities[other, 1]) * gap_y
            if closing > 0.0:
                share = 2.0 if other == 0 else 1.0
                velocities[index, 0] -= share * closing * gap_x
                velocities[index, 1] -= share * closing * gap_y
                if other != 0:
                    velocities[other, 0] += closing * gap_x
                    velocities[other, 1] += closing * gap_y
        if not is_blocked:
            positions[index, 0], positions[index, 1] = x, y
    return touched
