"""A scripted player for the sprites world: walks to the target, pushes, wanders.

M sprites, the agent is row 0.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ocrl.envs.sprites_physics import MOVES

_RANDOM_SHARE = 0.1
_NUM_CELLS = 64
# In steps: no place is further than half a diagonal, 0.71, from those that whole steps lead to.
_NEAR = 0.75


class SpritesWorld(Protocol):
    """What the player reads from the environment."""

    task: str
    positions: NDArray[np.float64]
    radii: NDArray[np.float64]
    pushable: NDArray[np.bool_]
    target: int
    goal: NDArray[np.float64]
    goal_radius: float
    step_size: float


class SpritesBot:
    """Plans over the places that steps in four directions lead to, on every frame anew.

    One action in ten is random. In `free` it walks to places drawn at random, pushing what is in
    its way, and to others when it is stuck.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget where it was going."""
        self._waypoint: NDArray[np.float64] | None = None
        self._was_at = np.full(2, np.inf)

    def __call__(self, env: SpritesWorld, rng: np.random.Generator) -> NDArray[np.float64]:
        """The direction (2,) to move in: one of (1,0), (-1,0), (0,1) and (0,-1)."""
        if env.task == "free":
            return self._wander(env, rng)
        direction = np.zeros(2)
        if rng.random() >= _RANDOM_SHARE:
            direction = _push(env) if env.task == "object_interaction" else _walk(env)
        return direction if direction.any() else _random_direction(rng)

    def _wander(self, env: SpritesWorld, rng: np.random.Generator) -> NDArray[np.float64]:
        agent = env.positions[0]
        is_there = self._waypoint is not None and np.abs(agent - self._waypoint).max() < 0.05
        is_stuck = bool(np.abs(agent - self._was_at).max() < env.step_size / 4)
        self._was_at = agent.copy()
        if self._waypoint is None or is_there or is_stuck:
            self._waypoint = rng.uniform(env.radii[0], 1.0 - env.radii[0], 2)
        # In proportion to what is left, so that the path runs straight and not along an L.
        away = self._waypoint - agent
        axis = int(rng.random() * np.abs(away).sum() > abs(away[0]))
        direction = np.zeros(2)
        direction[axis] = 1.0 if away[axis] >= 0 else -1.0
        return direction


def _random_direction(rng: np.random.Generator) -> NDArray[np.float64]:
    direction = np.zeros(2)
    direction[rng.integers(2)] = rng.choice((-1.0, 1.0))
    return direction


def _walk(env: SpritesWorld) -> NDArray[np.float64]:
    reach = env.radii[0] + env.radii[env.target]
    goal = env.positions[env.target]
    return first_step(env.positions, env.radii, 0, goal, reach, env.target, env.step_size)


def _push(env: SpritesWorld) -> NDArray[np.float64]:
    """Find the target's way to the goal, stand behind it for the first step, then walk into it."""
    target = env.target
    direction = first_step(
        env.positions, env.radii, target, env.goal, env.goal_radius, 0, env.step_size
    )
    if not direction.any():
        return direction
    reach = env.radii[0] + env.radii[target]
    offset = env.positions[target] - env.positions[0]
    across = abs(offset[0] * direction[1] - offset[1] * direction[0])
    if offset @ direction > 0.5 * reach and across <= _NEAR * env.step_size:
        return direction
    stance = env.positions[target] - direction * (reach + _NEAR * env.step_size)
    return first_step(env.positions, env.radii, 0, stance, _NEAR * env.step_size, 0, env.step_size)


@njit(cache=True)
def _has_room(
    x: float,
    y: float,
    radius: float,
    mover: int,
    ignored: int,
    positions: NDArray[np.float64],
    radii: NDArray[np.float64],
) -> bool:
    """Whether a circle is inside the arena and off all sprites but the agent and two others."""
    if min(x, y) < radius or max(x, y) > 1.0 - radius:
        return False
    for index in range(1, len(radii)):
        if index != mover and index != ignored:
            gap_x, gap_y = x - positions[index, 0], y - positions[index, 1]
            if gap_x * gap_x + gap_y * gap_y < (radius + radii[index]) ** 2:
                return False
    return True


@njit(cache=True)
def first_step(
    positions: NDArray[np.float64],
    radii: NDArray[np.float64],
    mover: int,
    goal: NDArray[np.float64],
    near: float,
    ignored: int,
    step_size: float,
) -> NDArray[np.float64]:
    """The first of the fewest steps in four directions that bring a sprite to a place.

    Args:
        positions: (M,2).
        radii: (M,).
        mover: the row of what moves: 0 the agent; any other is pushed and needs room for the
            agent behind it at every step.
        goal: (2,) where to go.
        near: how near to `goal` is near enough.
        ignored: the row of a sprite that may be touched, 0 for none.
        step_size: length of a step.

    Returns:
        (2,) a unit vector along an axis, or zeros where no path leads there or it is there.
    """
    direction = np.zeros(2)
    reach = radii[0] + radii[mover]
    side = 2 * _NUM_CELLS + 1
    came_by = np.full((side, side), -1, dtype=np.int8)
    queue = np.empty((side * side, 2), dtype=np.int64)
    queue[0] = _NUM_CELLS
    came_by[_NUM_CELLS, _NUM_CELLS] = len(MOVES)
    head, tail = 0, 1
    while head < tail:
        column, row = queue[head, 0], queue[head, 1]
        head += 1
        x = positions[mover, 0] + (column - _NUM_CELLS) * step_size
        y = positions[mover, 1] + (row - _NUM_CELLS) * step_size
        if (x - goal[0]) ** 2 + (y - goal[1]) ** 2 <= near * near:
            while column != _NUM_CELLS or row != _NUM_CELLS:
                direction[:] = MOVES[came_by[column, row]]
                column -= int(direction[0])
                row -= int(direction[1])
            return direction
        for move in range(len(MOVES)):
            step_x, step_y = MOVES[move, 0], MOVES[move, 1]
            next_column, next_row = column + step_x, row + step_y
            if not (0 <= next_column < side and 0 <= next_row < side):
                continue
            if came_by[next_column, next_row] >= 0:
                continue
            next_x, next_y = x + step_x * step_size, y + step_y * step_size
            if not _has_room(next_x, next_y, radii[mover], mover, ignored, positions, radii):
                continue
            behind_x, behind_y = x - step_x * reach, y - step_y * reach
            radius = radii[0] + _NEAR * step_size
            if mover != 0 and not _has_room(behind_x, behind_y, radius, mover, 0, positions, radii):
                continue
            came_by[next_column, next_row] = move
            queue[tail, 0], queue[tail, 1] = next_column, next_row
            tail += 1
    return direction
