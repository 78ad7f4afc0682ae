"""Crafter's rules over an ordered world, without pictures."""

from __future__ import annotations

from typing import Any

import crafter
import numpy as np
from crafter import constants, engine
from numpy.typing import NDArray

from ocrl.envs.crafter_world import (
    CHUNK,
    ENTITIES,
    Cow,
    Skeleton,
    World,
    WorldCache,
    Zombie,
    fill_world,
    seed_world,
    world_seed,
)

_CANONICAL_SIZE = 64
_GRASS, _PATH = (1 + constants.materials.index(name) for name in ("grass", "path"))


class Game(crafter.Env):
    """A `crafter.Env` in two halves: `begin` and `advance` play, nothing is drawn.

    Its episodes are those of a `crafter.Env` at 64 pixels whose chunks are ordered. A step in the
    dark takes from the world's generator what crafter's frame of that size takes.
    """

    def __init__(self, area: tuple[int, int], view: tuple[int, int], length: int | None) -> None:
        super().__init__(area=area, view=view, length=length, seed=0)
        self._world = World(area, constants.materials, CHUNK)
        item_rows = self._item_view._grid[1]
        self._local_view = engine.LocalView(
            self._world, self._textures, [view[0], view[1] - item_rows]
        )
        self._sem_view = engine.SemanticView(self._world, ENTITIES)
        self._reach = 2 * max(view)
        self._canvas = tuple(
            int(cells) * (_CANONICAL_SIZE // all_cells)
            for cells, all_cells in zip(self._local_view._grid, view, strict=True)
        )

    @property
    def world(self) -> World:
        """The map and its objects."""
        return self._world

    @property
    def player(self) -> Any:
        """The player."""
        return self._player

    @property
    def unlocked(self) -> set[str]:
        """Achievements of this episode."""
        return self._unlocked

    @property
    def is_out_of_time(self) -> bool:
        """Whether the episode has its full length."""
        return self._length is not None and self._step >= self._length

    def seed(self, seed: int) -> None:
        """Make the next episode the first one of a seed."""
        self._seed, self._episode = seed, 0

    def begin(self, cache: WorldCache | None) -> None:
        """Start the next episode, as crafter's `reset` does."""
        self._episode += 1
        self._step = 0
        self._world_seed = world_seed(self._seed, self._episode)
        self._player = seed_world(self._world, self._world_seed)
        self._last_health = self._player.health
        self._unlocked: set[str] = set()
        if cache is None or not cache.load(self._world, self._player, self._world_seed):
            fill_world(self._world, self._player)
        self._update_time()
        self._draw_noise()

    def advance(self, action: int) -> float:
        """Play a step, as crafter's `step` does, and give its reward."""
        world, player = self._world, self._player
        self._step += 1
        self._update_time()
        player.action = constants.actions[action]
        # Crafter goes through the objects there were before the step, the player first. What the
        # others do changes neither how far the rest are from the player nor who is there.
        limit = len(world._objects)
        player.update()
        for obj in world.near(player.pos, self._reach, limit):
            if obj is not player:
                obj.update()
        if self._step % 10 == 0:
            self._balance()
        self._draw_noise()
        reward = (player.health - self._last_health) / 10
        self._last_health = player.health
        unlocked = {name for name, count in player.achievements.items() if count > 0}
        if len(unlocked) > len(self._unlocked):
            self._unlocked = unlocked
            reward += 1.0
        return float(reward)

    def semantic(self) -> NDArray[np.uint8]:
        """Crafter's map (X,Y) of material and object kinds."""
        return self._sem_view()

    def noise(self, canvas: tuple[int, int]) -> NDArray[np.float64] | None:
        """The noise (W,H) of the current frame for a local view of that many pixels.

        None in the light. At crafter's default size these are the world's own draws, at another
        size they come from a generator seeded by world and step.
        """
        if self._noise is None or canvas == self._canvas:
            return self._noise
        generator = np.random.default_rng((self._world_seed, self._step))
        return generator.uniform(32, 127, canvas)

    def _draw_noise(self) -> None:
        self._noise = None
        if self._world.daylight < 0.5:
            self._noise = self._world.random.uniform(32, 127, self._canvas)

    def _balance(self) -> None:
        """Let creatures come and go in each chunk, as crafter's `_balance_chunk` does."""
        light = self._world.daylight
        dark = 3.5 - 3 * light
        materials = self._world._mat_map
        grass, path = _count_per_chunk(materials == _GRASS), _count_per_chunk(materials == _PATH)
        for chunk, members in self._world.chunks.items():
            index = chunk[0] // CHUNK[0], chunk[2] // CHUNK[1]
            kinds = [type(obj) for obj in members]
            targets = (
                (0 if grass[index] < 50 else int(dark), int(dark)),
                (0 if path[index] < 6 else 1, 2),
                (0 if grass[index] < 30 else 1, int(1.5 + light)),
            )
            for (least, most), (kind, material, arrival, leaving) in zip(
                targets, _CREATURES, strict=True
            ):
                count = kinds.count(kind)
                if count < least:
                    self._arrive(chunk, kind, material, *arrival)
                elif count > most:
                    self._leave(members, kind, *leaving)

    def _arrive(
        self,
        chunk: tuple[int, int, int, int],
        kind: type,
        material: int,
        distance: int,
        rate: float,
    ) -> None:
        world = self._world
        if world.random.random_sample() >= rate:
            return
        left, right, top, bottom = chunk
        xs, ys = (world._mat_map[left:right, top:bottom] == material).nonzero()
        index = world.random.randint(0, len(xs))
        pos = np.array((left + xs[index], top + ys[index]))
        if world[pos][1] is None and self._player.distance(pos) >= distance:
            world.add(Cow(world, pos) if kind is Cow else kind(world, pos, self._player))

    def _leave(self, members: Any, kind: type, distance: int, rate: float) -> None:
        random = self._world.random
        if random.random_sample() >= rate:
            return
        creatures = [obj for obj in members if type(obj) is kind]
        obj = creatures[random.randint(0, len(creatures))]
        if self._player.distance(obj.pos) >= distance:
            self._world.remove(obj)


_CREATURES = (
    (Zombie, _GRASS, (6, 0.3), (0, 0.4)),
    (Skeleton, _PATH, (7, 0.1), (7, 0.1)),
    (Cow, _GRASS, (5, 0.01), (5, 0.1)),
)
"""Kind, ground, and for arriving and leaving the least distance from the player and the rate."""


def _count_per_chunk(cells: NDArray[np.bool_]) -> NDArray[np.integer]:
    starts = [range(0, side, step) for side, step in zip(cells.shape, CHUNK, strict=True)]
    columns = np.add.reduceat(cells.astype(np.int64), starts[0], axis=0)
    return np.add.reduceat(columns, starts[1], axis=1)
