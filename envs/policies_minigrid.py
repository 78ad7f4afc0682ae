"""A scripted player for MiniGrid and BabyAI that knows the whole grid.

Cells are (x, y).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from minigrid.core.constants import DIR_TO_VEC
from minigrid.core.world_object import Door, Key, WorldObj
from minigrid.envs.babyai.core.roomgrid_level import RoomGridLevel
from minigrid.minigrid_env import MiniGridEnv as Game
from minigrid.utils.baby_ai_bot import BabyAIBot

Cell = tuple[int, int]

_RANDOM_SHARE = 0.1
_PUT_DOWN_SHARE = 0.2
_BLOCKER_COST = 20.0
_LOCK_COST = 40.0


class MiniGridBot:
    """Plays by BabyAI's own bot where there is a BabyAI instruction, elsewhere by shortest ways.

    One action in ten is random. Where it knows no goal (as in `Playground`) or sees no way, it
    visits objects drawn at random, picks them up and puts them down elsewhere.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget the episode."""
        self._babyai: BabyAIBot | None = None
        self._has_given_up = False
        self._last_action: int | None = None
        self._whim: WorldObj | None = None

    def __call__(self, env: Game, rng: np.random.Generator) -> int:
        """The next action."""
        action = None
        if isinstance(env, RoomGridLevel) and not self._has_given_up:
            action = self._follow_instruction(env)
        if action is None:
            action = _pursue(env) if not isinstance(env, RoomGridLevel) else None
        if action is None:
            action = self._play(env, rng)
        if rng.random() < _RANDOM_SHARE:
            action = _wander(env, rng)
        # Games with fewer actions (no hands, no doors) have the first of them.
        self._last_action = int(action if env.action_space.contains(action) else env.actions.left)
        return self._last_action

    def _follow_instruction(self, env: RoomGridLevel) -> int | None:
        """Ask BabyAI's bot; it gives up by all kinds of exceptions, and then for good."""
        try:
            if self._babyai is None:
                self._babyai = BabyAIBot(env)
                return int(self._babyai.replan())
            return int(self._babyai.replan(self._last_action))
        except Exception:
            self._has_given_up = True
            return None

    def _play(self, env: Game, rng: np.random.Generator) -> int:
        """Fetch an object drawn at random, or carry one around and put it down."""
        if env.carrying is not None:
            self._whim = None
            is_free = env.grid.get(*env.front_pos) is None
            if is_free and rng.random() < _PUT_DOWN_SHARE:
                return int(env.actions.drop)
            return int(env.actions.forward if is_free else env.actions.right)
        places = {item: cell for cell, item in _items(env) if item.can_pickup()}
        if self._whim not in places:
            choices = list(places)
            self._whim = choices[rng.integers(len(choices))] if choices else None
        if self._whim is not None:
            action = _approach(env, places[self._whim], env.actions.pickup)
            if action is not None:
                return action
            self._whim = None
        return _wander(env, rng)


def _wander(env: Game, rng: np.random.Generator) -> int:
    """A turn or a step, but not into lava."""
    front = env.grid.get(*env.front_pos)
    is_deadly = front is not None and front.type == "lava"
    return int(
        rng.choice((env.actions.left, env.actions.right, env.actions.forward)[: 3 - is_deadly])
    )


def _items(env: Game) -> Iterator[tuple[Cell, WorldObj]]:
    for index, item in enumerate(env.grid.grid):
        if item is not None and item.type != "wall":
            yield (index % env.width, index // env.width), item


def _find(env: Game, matches: Callable[[WorldObj], bool]) -> Cell | None:
    """The nearest of the cells with such an object, as the crow flies."""
    x, y = env.agent_pos
    cells = [cell for cell, item in _items(env) if matches(item)]
    return min(cells, key=lambda cell: abs(cell[0] - x) + abs(cell[1] - y), default=None)


def _pursue(env: Game) -> int | None:
    """A step towards the goal of one of MiniGrid's own games, None where it has none."""
    known = vars(env)
    actions = env.actions
    if "move_pos" in known:
        return _put_near(env)
    if "success_pos" in known:
        return _walk(env, _cell(known["success_pos"]))
    if "red_door" in known:
        doors = (known["red_door"], known["blue_door"])
        closed = [door for door in doors if not door.is_open]
        return _act_on(env, closed[0], actions.toggle) if closed else None
    if "obj" in known:
        return _act_on(env, known["obj"], actions.pickup)
    if "door" in known:
        return _act_on(env, known["door"], actions.toggle)
    if "targetType" in known and "target_pos" not in known:
        kind, color = known["targetType"], known["targetColor"]
        cell = _find(env, lambda item: item.type == kind and item.color == color)
        return None if cell is None else _approach(env, cell, actions.pickup)
    if "target_pos" in known:
        return _approach(env, _cell(known["target_pos"]), actions.done)
    goal = _find(env, lambda item: item.type == "goal")
    return None if goal is None else _walk(env, goal)


def _cell(position: Any) -> Cell:
    return int(position[0]), int(position[1])


def _act_on(env: Game, item: WorldObj, action: int) -> int | None:
    """Act on an object where it is now; in a box, open the box."""
    cell = _find(env, lambda other: other is item)
    if cell is not None:
        return _approach(env, cell, action)
    cell = _find(env, lambda other: other.contains is item)
    return None if cell is None else _approach(env, cell, env.actions.toggle)


def _put_near(env: Game) -> int | None:
    """Carry one object beside another."""
    known = vars(env)
    target = _cell(known["target_pos"])
    if env.carrying is None:
        return _approach(env, _cell(known["move_pos"]), env.actions.pickup)
    around = [(target[0] + x, target[1] + y) for x in (-1, 0, 1) for y in (-1, 0, 1)]
    free = [cell for cell in around if env.grid.get(*cell) is None and cell != target]
    x, y = env.agent_pos
    for cell in sorted(free, key=lambda cell: abs(cell[0] - x) + abs(cell[1] - y)):
        action = _approach(env, cell, env.actions.drop)
        if action is not None:
            return action
    return None


def _approach(env: Game, cell: Cell, action: int, pending: tuple[WorldObj, ...] = ()) -> int | None:
    """Come to stand before a cell with what the action needs, then act on it.

    `pending` are the locked doors that this is a part of opening.
    """
    path = _path(env, cell)
    if path is None:
        return None
    obstacle = _clear(env, path, pending)
    if obstacle is not None:
        return obstacle
    item = env.grid.get(*cell)
    if action == env.actions.toggle and _needs_key(item, env.carrying):
        return _unlock(env, item, pending)
    if action == env.actions.pickup and env.carrying is not None:
        return _put_down(env, path)
    if len(path) > 1:
        return _advance(env, path[0])
    return int(action) if _cell(env.front_pos) == cell else _turn_to(env, cell)


def _walk(env: Game, cell: Cell) -> int | None:
    """Come to stand on a cell."""
    path = _path(env, cell)
    if path is None:
        return None
    obstacle = _clear(env, path, ())
    return _advance(env, path[0]) if obstacle is None else obstacle


def _clear(env: Game, path: list[Cell], pending: tuple[WorldObj, ...]) -> int | None:
    """Deal with the first thing on a way, before its end, that walking and opening cannot pass.

    Returns:
        None where there is no such thing, or nothing to be done about it.
    """
    for index, cell in enumerate(path[:-1]):
        item = env.grid.get(*cell)
        if isinstance(item, Door) and item.is_locked:
            has_key = not _needs_key(item, env.carrying)
            # The key at hand is needed before hands are for anything further on.
            return _advance(env, path[0]) if has_key else _unlock(env, item, pending)
        if item is not None and item.can_pickup():
            if env.carrying is not None:
                return _put_down(env, path)
            if index > 0:
                return _advance(env, path[0])
            is_before = _cell(env.front_pos) == cell
            return int(env.actions.pickup) if is_before else _turn_to(env, cell)
    return None


def _needs_key(item: WorldObj | None, carried: WorldObj | None) -> bool:
    """Whether this is a door that can only be opened with a key that is not at hand."""
    if not isinstance(item, Door) or not item.is_locked:
        return False
    return not (isinstance(carried, Key) and carried.color == item.color)


def _unlock(env: Game, door: WorldObj | None, pending: tuple[WorldObj, ...]) -> int | None:
    """Fetch the key of a locked door, out of a box if need be."""
    if door is None or door in pending:
        return None

    def is_key(item: WorldObj | None) -> bool:
        return isinstance(item, Key) and item.color == door.color

    pending = (*pending, door)
    cell = _find(env, is_key)
    if cell is not None:
        return _approach(env, cell, env.actions.pickup, pending)
    cell = _find(env, lambda item: is_key(item.contains))
    return None if cell is None else _approach(env, cell, env.actions.toggle, pending)


def _advance(env: Game, cell: Cell) -> int:
    """Enter the next cell of a way, or open its door."""
    if _cell(env.front_pos) != cell:
        return _turn_to(env, cell)
    item = env.grid.get(*cell)
    is_free = item is None or item.can_overlap()
    return int(env.actions.forward if is_free else env.actions.toggle)


def _turn_to(env: Game, cell: Cell) -> int:
    """Turn towards a neighbouring cell."""
    wanted = (cell[0] - int(env.agent_pos[0]), cell[1] - int(env.agent_pos[1]))
    turns = [_cell(vector) for vector in DIR_TO_VEC].index(wanted) - int(env.agent_dir)
    return int(env.actions.left if turns % 4 == 3 else env.actions.right)


def _put_down(env: Game, path: list[Cell]) -> int:
    """Put the carried object down on a free cell beside the agent that is not on its way."""
    front = _cell(env.front_pos)
    is_free = env.grid.get(*front) is None and front not in path
    return int(env.actions.drop if is_free else env.actions.right)


def _cost(env: Game, cell: Cell) -> float:
    """What entering a cell costs in steps, infinite where nobody can."""
    if not (0 <= cell[0] < env.width and 0 <= cell[1] < env.height):
        return np.inf
    item = env.grid.get(*cell)
    if item is None:
        return 1.0
    if item.type in ("lava", "wall"):
        return np.inf
    if isinstance(item, Door):
        return 1.0 if item.is_open else _LOCK_COST if item.is_locked else 2.0
    return _BLOCKER_COST if item.can_pickup() else 1.0


def _path(env: Game, goal: Cell) -> list[Cell] | None:
    """The cells of the cheapest way to a cell, without the agent's own; the goal costs nothing.

    Returns:
        None where there is no way or the agent stands there.
    """
    start = _cell(env.agent_pos)
    queue: list[tuple[float, Cell]] = [(0.0, start)]
    came_from: dict[Cell, Cell] = {}
    costs = {start: 0.0}
    while queue:
        cost, cell = heapq.heappop(queue)
        if cell == goal:
            break
        if cost > costs[cell]:
            continue
        for step_x, step_y in DIR_TO_VEC:
            following = (cell[0] + int(step_x), cell[1] + int(step_y))
            reached = cost + (1.0 if following == goal else _cost(env, following))
            if reached < costs.get(following, np.inf):
                costs[following], came_from[following] = reached, cell
                heapq.heappush(queue, (reached, following))
    if goal not in came_from:
        return None
    path = [goal]
    while came_from[path[-1]] != start:
        path.append(came_from[path[-1]])
    return path[::-1]
