"""A scripted player of Crafter that is there to see the world, not to win the game.

X Y cells of the map (x to the right, y down).
"""

from __future__ import annotations

import numpy as np
from crafter import constants, objects
from numba import njit
from numpy.typing import NDArray

from ocrl.envs.crafter import CrafterEnv

_ACTION = {name: index for index, name in enumerate(constants.actions)}
_ID = {name: index for index, name in enumerate((None, *constants.materials))}
_STEPS = ((-1, 0), (1, 0), (0, -1), (0, 1))
_MOVES = tuple(_ACTION[f"move_{side}"] for side in ("left", "right", "up", "down"))
_CREATURES = {
    "cow": objects.Cow,
    "zombie": objects.Zombie,
    "skeleton": objects.Skeleton,
}
_WISHES = {
    "wander": 5.0,
    "tree": 2.0,
    "stone": 1.0,
    "coal": 1.0,
    "iron": 1.0,
    "diamond": 1.0,
    "table": 2.0,
    "water": 1.0,
    "cow": 1.5,
    "zombie": 0.5,
    "skeleton": 1.0,
    "sapling": 0.3,
}
"""How often each goal is drawn where it can be reached; `table` stands for going to craft."""
_ENOUGH = {"wood": 6, "stone": 6, "coal": 3, "iron": 3, "diamond": 3}
_PLACES = ("grass", "sand", "path")
_NEAREST_PLACE, _FARTHEST_PLACE = 8, 30
_MOST_STEPS = 50
_MOST_BLOWS = 8
_SAPLING_BLOWS = 15
_PLACE_STONE_RATE = 0.02


class CrafterExplorer:
    """Goes from goal to goal: far places, things to collect, animals, water, monsters.

    It knows the whole map and walks shortest paths, through stone once it has a pickaxe, never into
    water or lava. It fights what stands beside it, crafts what it can beside a table, plants
    saplings, eats and drinks when it must, and sleeps only when it is nearly out of energy.
    It reads the game and changes nothing in it.
    """

    def __init__(self, env: CrafterEnv) -> None:
        """Play in `env`."""
        self._env = env

    def reset(self, rng: np.random.Generator) -> None:
        """Forget the last episode; every choice of the next one is drawn from `rng`."""
        self._rng = rng
        self._forget()

    def __call__(self, observation: NDArray[np.uint8]) -> int:
        """The next action; the observation is not read."""
        self._look()
        for choice in (self._rest, self._fight, self._craft, self._pursue):
            action = choice()
            if action is not None:
                return action
        return self._stray()

    def _look(self) -> None:
        game = self._env._game
        self._world, self._player = game.world, game.player
        self._inventory = game.player.inventory
        self._x, self._y = (int(value) for value in game.player.pos)
        x, y = game.player.facing
        self._facing = (int(x), int(y))
        self._steps_left -= 1

    def _forget(self) -> None:
        self._goal: str | None = None
        self._place = (0, 0)
        self._steps_left = 0
        self._blows_left = 0

    def _ahead(self, step: tuple[int, int]) -> tuple[str | None, objects.Object | None]:
        material, obj = self._world[self._x + step[0], self._y + step[1]]
        return material, obj

    def _rest(self) -> int | None:
        """Sleep on, or fall asleep when there is hardly another choice."""
        if self._player.sleeping:
            return _ACTION["noop"]
        return _ACTION["sleep"] if self._inventory["energy"] < 2 else None

    def _fight(self) -> int | None:
        """Turn to a monster beside the player, then hit it."""
        for step, move in zip(_STEPS, _MOVES, strict=True):
            if isinstance(self._ahead(step)[1], objects.Zombie | objects.Skeleton):
                return _ACTION["do"] if step == self._facing else move
        return None

    def _craft(self) -> int | None:
        """Make, place or plant something where the place for it is here."""
        material, obj = self._ahead(self._facing)
        is_free = obj is None
        if is_free and material in constants.place["table"]["where"] and self._wants_table():
            return _ACTION["place_table"]
        if self._is_near("table"):
            tool = self._affordable_tool()
            if tool is not None:
                return _ACTION[f"make_{tool}"]
            if (
                is_free
                and material in constants.place["furnace"]["where"]
                and self._wants_furnace()
            ):
                return _ACTION["place_furnace"]
        if is_free and material == "grass" and self._inventory["sapling"]:
            return _ACTION["place_plant"]
        is_open = is_free and material in constants.place["stone"]["where"]
        if is_open and self._inventory["stone"] and self._rng.random() < _PLACE_STONE_RATE:
            return _ACTION["place_stone"]
        return None

    def _is_near(self, material: str) -> bool:
        around = self._world._mat_map[
            max(0, self._x - 1) : self._x + 2, max(0, self._y - 1) : self._y + 2
        ]
        return bool((around == _ID[material]).any())

    def _can_pay(self, cost: dict[str, int], *, spare: int = 0) -> bool:
        return all(self._inventory[item] >= amount + spare for item, amount in cost.items())

    def _wants_table(self) -> bool:
        is_needed = not self._inventory["wood_pickaxe"] and not self._is_near("table")
        return is_needed and self._can_pay(constants.place["table"]["uses"], spare=2)

    def _wants_furnace(self) -> bool:
        is_needed = not self._is_near("furnace") and not self._inventory["iron_pickaxe"]
        return is_needed and self._can_pay(constants.place["furnace"]["uses"])

    def _affordable_tool(self, *, anywhere: bool = False) -> str | None:
        """A tool that is still missing and could be made, here or at the right place."""
        for tool, recipe in constants.make.items():
            if not self._inventory[tool] and self._can_pay(recipe["uses"]):
                places = recipe["nearby"]
                if anywhere or all(self._is_near(place) for place in places):
                    return str(tool)
        return None

    def _pursue(self) -> int | None:
        """Go on towards the goal, or choose another one."""
        need = self._need()
        if need is not None and self._goal != need:
            self._set_goal(need)
        for _ in range(4):
            if self._goal is None or self._steps_left <= 0 or self._blows_left <= 0:
                self._set_goal(self._wish())
            action = self._approach()
            if action is not None:
                return action
            self._forget()
        return None

    def _need(self) -> str | None:
        for item, goal in (("drink", "water"), ("food", "cow")):
            if self._inventory[item] < 4 and self._wanted(goal).any():
                return goal
        return None

    def _wish(self) -> str:
        kinds = [kind for kind in _WISHES if self._is_sensible(kind)]
        weights = np.array([_WISHES[kind] for kind in kinds])
        return kinds[int(np.searchsorted(weights.cumsum(), self._rng.random() * weights.sum()))]

    def _is_sensible(self, kind: str) -> bool:
        if kind in ("wander", "sapling"):
            return True
        if kind == "table" and self._affordable_tool(anywhere=True) is None:
            return False
        if kind in constants.collect:
            recipe = constants.collect[kind]
            items = [item for item in recipe["receive"] if item in _ENOUGH]
            if any(self._inventory[item] >= _ENOUGH[item] for item in items):
                return False
            if not self._can_pay(recipe["require"]):
                return False
        return bool(self._wanted(kind).any())

    def _set_goal(self, kind: str) -> None:
        self._goal = kind
        self._steps_left = _MOST_STEPS
        self._blows_left = int(self._rng.integers(1, 4))
        if kind in _CREATURES:
            self._blows_left = _MOST_BLOWS
        elif kind == "water":
            self._blows_left = max(1, 9 - self._inventory["drink"])
        elif kind == "sapling":
            self._blows_left = _SAPLING_BLOWS
        elif kind == "wander":
            self._place = self._far_place()

    def _far_place(self) -> tuple[int, int]:
        """A random cell some way off, on a random kind of ground."""
        materials = self._world._mat_map
        x, y = np.ogrid[: materials.shape[0], : materials.shape[1]]
        distance = np.maximum(abs(x - self._x), abs(y - self._y))
        is_far = (distance >= _NEAREST_PLACE) & (distance <= _FARTHEST_PLACE)
        for material in self._rng.permutation(_PLACES):
            cells = np.argwhere(is_far & (materials == _ID[material]))
            if len(cells):
                place = cells[self._rng.integers(len(cells))]
                return int(place[0]), int(place[1])
        return self._x, self._y

    def _wanted(self, kind: str) -> NDArray[np.bool_]:
        """The cells (X,Y) that reach the goal."""
        materials = self._world._mat_map
        if kind in _CREATURES:
            wanted = np.zeros(materials.shape, np.bool_)
            for obj in self._world.objects:
                if isinstance(obj, _CREATURES[kind]):
                    wanted[obj.pos[0], obj.pos[1]] = True
            return wanted
        if kind == "wander":
            wanted = np.zeros(materials.shape, np.bool_)
            wanted[self._place] = True
            return wanted
        return np.asarray(materials == _ID["grass" if kind == "sapling" else kind])

    def _approach(self) -> int | None:
        """One step on the shortest path to the goal, or a blow at what is there; None if stuck."""
        assert self._goal is not None
        wanted = self._wanted(self._goal)
        wanted[self._x, self._y] = False
        passable = _PASSABLE[bool(self._inventory["wood_pickaxe"])][self._world._mat_map]
        direction = _first_step(passable, self._world._obj_map, wanted, self._x, self._y)
        if direction < 0:
            return None
        step, move = _STEPS[direction], _MOVES[direction]
        material, obj = self._ahead(step)
        is_at_goal = bool(wanted[self._x + step[0], self._y + step[1]])
        if obj is None and material in constants.walkable and self._goal != "sapling":
            return move
        if step != self._facing:
            return move
        if is_at_goal:
            if self._goal == "table":
                return None
            self._blows_left -= 1
        return _ACTION["do"]

    def _stray(self) -> int:
        """A random move that is not a step into lava."""
        safe = [
            move
            for step, move in zip(_STEPS, _MOVES, strict=True)
            if self._ahead(step)[0] != "lava"
        ]
        return int(self._rng.choice(safe)) if safe else _ACTION["noop"]


def _passable(*names: str) -> NDArray[np.bool_]:
    return np.isin(np.arange(len(_ID)), [_ID[name] for name in names])


_PASSABLE = {
    False: _passable(*constants.walkable),
    True: _passable(*constants.walkable, "stone"),
}


@njit(cache=True)
def _first_step(
    passable: NDArray[np.bool_],
    occupied: NDArray[np.uint32],
    wanted: NDArray[np.bool_],
    x: int,
    y: int,
) -> int:
    """Which of `_STEPS` starts a shortest path to the nearest wanted cell; -1 if none does.

    Only the last cell of a path may be impassable or occupied.

    Args:
        passable: (X,Y).
        occupied: (X,Y), above 0 where an object is.
        wanted: (X,Y).
        x: where the path starts.
        y: where the path starts.
    """
    width, height = passable.shape
    came_by = np.full((width, height), -1, np.int8)
    queue = np.empty((width * height, 2), np.int64)
    queue[0, 0], queue[0, 1] = x, y
    came_by[x, y] = 4
    head, tail = 0, 1
    while head < tail:
        u, v = queue[head, 0], queue[head, 1]
        head += 1
        for index in range(4):
            next_u = u + (-1 if index == 0 else 1 if index == 1 else 0)
            next_v = v + (-1 if index == 2 else 1 if index == 3 else 0)
            if not (0 <= next_u < width and 0 <= next_v < height):
                continue
            if came_by[next_u, next_v] >= 0:
                continue
            # Every cell remembers the first step of its path.
            came_by[next_u, next_v] = index if head == 1 else came_by[u, v]
            if wanted[next_u, next_v]:
                return came_by[next_u, next_v]
            if passable[next_u, next_v] and occupied[next_u, next_v] == 0:
                queue[tail, 0], queue[tail, 1] = next_u, next_v
                tail += 1
    return -1
