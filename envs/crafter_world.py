"""Crafter's world, equal to the package's draw for draw, but ordered and fast.

Crafter keeps the objects of a chunk in a `set` that is ordered by memory address, so the same seed
gives another episode each time. Here they are kept in order of arrival. Nothing in the package
itself is changed: an object becomes one of the quick classes below when it enters such a world.
"""

from __future__ import annotations

import collections
import os
import pathlib
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
from crafter import constants, engine, objects
from numba import njit
from numpy.typing import NDArray

from ocrl.envs.crafter_terrain import generate

CHUNK = (12, 12)
_MATERIALS = (None, *constants.materials)
_ID = {name: index for index, name in enumerate(_MATERIALS)}
_WALKABLE = frozenset(_ID[name] for name in constants.walkable)
_FORMAT = 1
_DAMAGE = (
    OSError,
    EOFError,
    LookupError,
    RuntimeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
"""What numpy and zipfile raise over altered bytes."""


class OrderedSet:
    """The part of `set` that crafter's chunks use, in order of arrival."""

    def __init__(self) -> None:
        self._items: dict[Any, None] = {}

    def add(self, item: Any) -> None:
        """Add an object at the end."""
        self._items[item] = None

    def remove(self, item: Any) -> None:
        """Take an object out; KeyError if it is not there."""
        del self._items[item]

    def __contains__(self, item: Any) -> bool:
        return item in self._items

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)


class _Draws:
    """`uniform()` of a RandomState without its argument handling; the stream is the same."""

    def __init__(self, random: np.random.RandomState) -> None:
        self._random = random
        self.uniform = random.random_sample
        self.raw = random._bit_generator.random_raw

    def __reduce__(self) -> tuple[Any, ...]:
        # A copied bound method would go on drawing from the original's generator.
        return _Draws, (self._random,)


class World(engine.World):
    """A crafter world with ordered chunks, quick look-ups and a log of material changes.

    Attributes:
        changes: (x, y, material id) of every change since the world was made, in order.
    """

    def reset(self, seed: int | None = None) -> None:
        """Empty the world and seed its generator."""
        super().reset(seed)
        self._chunks: dict[Any, OrderedSet] = collections.defaultdict(OrderedSet)
        self.draws = _Draws(self.random)
        self.changes: list[tuple[int, int, int]] = []
        self.initial_materials = self._mat_map

    def start(self, materials: NDArray[np.uint8]) -> None:
        """Set the whole map, the state that `changes` count from."""
        self._mat_map[:] = materials
        self.initial_materials = materials
        self.changes.clear()

    def add(self, obj: Any) -> None:
        """Place an object; it takes on its quick class."""
        obj.__class__ = QUICK.get(type(obj), type(obj))
        obj.random = self.draws
        super().add(obj)

    def move(self, obj: Any, pos: Sequence[int]) -> None:
        """Move an object to a free cell."""
        if obj.removed:
            return
        (x, y), (old_x, old_y) = pos, obj.pos.tolist()
        assert self._obj_map[x, y] == 0
        self._obj_map[x, y] = self._obj_map[old_x, old_y]
        self._obj_map[old_x, old_y] = 0
        width, height = self._chunk_size
        if x // width != old_x // width or y // height != old_y // height:
            self._chunks[self.chunk_key((old_x, old_y))].remove(obj)
            self._chunks[self.chunk_key((x, y))].add(obj)
        obj.pos = np.array((x, y))

    def __getitem__(self, pos: Any) -> tuple[str | None, Any]:
        x, y = pos
        if not (0 <= x < self.area[0] and 0 <= y < self.area[1]):
            return None, None
        return _MATERIALS[self._mat_map[x, y]], self._objects[self._obj_map[x, y]]

    def __setitem__(self, pos: Any, material: str) -> None:
        x, y = (int(value) for value in pos)
        index = _ID[material]
        if self._mat_map[x, y] != index:
            self._mat_map[x, y] = index
            self.changes.append((x, y, index))

    def is_free(self, x: int, y: int) -> bool:
        """Whether a creature may step on the cell."""
        return (
            0 <= x < self.area[0]
            and 0 <= y < self.area[1]
            and self._mat_map.item(x, y) in _WALKABLE
            and self._obj_map.item(x, y) == 0
        )

    def near(self, pos: NDArray[np.integer], distance: int, limit: int) -> list[Any]:
        """Objects closer than `distance` steps with an index below `limit`, in order of index."""
        indices = _near(self._obj_map, pos[0], pos[1], distance, limit)
        return [self._objects[index] for index in indices.tolist()]


class _Quick:
    """Crafter's object arithmetic on plain integers. The numbers and the draws are the same."""

    world: World
    pos: NDArray[np.integer]
    random: _Draws
    all_dirs: ClassVar[Any]
    _steps: ClassVar = ((-1, 0), (+1, 0), (0, -1), (0, +1))

    def move(self, direction: Sequence[int]) -> bool:
        x, y = self.pos.tolist()
        x, y = x + int(direction[0]), y + int(direction[1])
        if self.world.is_free(x, y):
            self.world.move(self, (x, y))
            return True
        return False

    def distance(self, target: Any) -> int:
        x, y = self.pos.tolist()
        u, v = (target.pos if isinstance(target, objects.Object) else target).tolist()
        return abs(u - x) + abs(v - y)

    def toward(self, target: Any, long_axis: bool = True) -> NDArray[np.integer]:
        x, y = self.pos.tolist()
        u, v = (target.pos if isinstance(target, objects.Object) else target).tolist()
        dx, dy = u - x, v - y
        if abs(dx) > abs(dy) if long_axis else abs(dx) <= abs(dy):
            return np.array(((dx > 0) - (dx < 0), 0))
        return np.array((0, (dy > 0) - (dy < 0)))

    def random_dir(self) -> tuple[int, int]:
        # RandomState.randint(0, 4) is one 32-bit draw with all but the low two bits masked off.
        return self._steps[self.random.raw() & 3]


class Player(objects.Player):
    """Crafter's player, known to quick worlds (it may walk where creatures do not)."""


class Cow(_Quick, objects.Cow):
    """Crafter's cow."""


class Zombie(_Quick, objects.Zombie):
    """Crafter's zombie."""


class Skeleton(_Quick, objects.Skeleton):
    """Crafter's skeleton."""


class Arrow(objects.Arrow):
    """Crafter's arrow (it flies where creatures do not walk)."""


class Plant(objects.Plant):
    """Crafter's plant."""


ENTITIES = (Player, Cow, Zombie, Skeleton, Arrow, Plant)
"""In the order of crafter's semantic ids."""
QUICK = {entity.__bases__[-1]: entity for entity in ENTITIES}


def world_seed(seed: int, episode: int) -> int:
    """The seed of the world of an environment's n-th episode (from 1), as crafter computes it."""
    return hash((seed, episode)) % (2**31 - 1)


def fill_world(world: World, player: Player) -> int:
    """Generate material and creatures around the player, as crafter's `generate_world` does.

    The generator of the world ends up in the same state too.

    Returns:
        How many uniform draws it took.
    """
    materials, creatures, used = generate(world.random, world.area, player.pos.tolist())
    world.start(materials)
    _populate(world, player, creatures)
    return used


def _populate(world: World, player: Player, found: NDArray[np.integer]) -> None:
    for kind, x, y in found.tolist():
        if kind == 1:
            world.add(Cow(world, (x, y)))
        else:
            world.add((Zombie if kind == 2 else Skeleton)(world, (x, y), player))


class WorldCache:
    """A folder of worlds made beforehand: one `.npz` file per world seed and map size.

    A file holds the materials, the creatures and the number of draws that generation took, so that
    the loaded world and its generator are those that generation would have given.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Open a folder.

        Raises:
            FileNotFoundError: if there is no such folder.
        """
        self.folder = pathlib.Path(folder)
        if not self.folder.is_dir():
            raise FileNotFoundError(
                f"expected a folder of pre-generated worlds, got {self.folder}: make it with "
                "scripts/pregenerate_worlds.py"
            )

    def file(self, seed: int, area: tuple[int, int]) -> pathlib.Path:
        """Where the world of a world seed is kept."""
        return self.folder / f"{area[0]}x{area[1]}-{seed}.npz"

    def load(self, world: World, player: Player, seed: int) -> bool:
        """Fill a fresh world from its file, if there is one.

        Raises:
            ValueError: if the file is damaged or of another format.
        """
        file = self.file(seed, world.area)
        try:
            # Opened here because np.load leaves a damaged file open.
            with open(file, "rb") as stream, np.load(stream, allow_pickle=False) as content:
                arrays = [content[key] for key in ("materials", "creatures", "header")]
        except FileNotFoundError:
            return False
        except _DAMAGE as error:
            raise ValueError(
                f"expected a pre-generated world, got a damaged file {file}: delete it ({error})"
            ) from error
        materials, found, header = arrays
        if header.tolist()[0] != _FORMAT or materials.shape != tuple(world.area):
            raise ValueError(
                f"expected a world of format {_FORMAT} and size {tuple(world.area)}, got format "
                f"{header.tolist()[0]} and size {materials.shape} in {file}: delete it"
            )
        world.random.randint(0, 2**31 - 1)
        world.random.random_sample(header.tolist()[1])
        world.start(materials)
        _populate(world, player, found)
        return True

    def save(self, world: World, seed: int, draws: int) -> pathlib.Path:
        """Write a freshly filled world; a file is whole or not there."""
        creatures = [
            (ENTITIES.index(type(obj)), *obj.pos.tolist())
            for obj in world.objects
            if not isinstance(obj, Player)
        ]
        file = self.file(seed, world.area)
        handle, temporary = tempfile.mkstemp(dir=self.folder, suffix=".part")
        try:
            with os.fdopen(handle, "wb") as stream:
                np.savez_compressed(
                    stream,
                    materials=world._mat_map,
                    creatures=np.array(creatures, np.uint16).reshape(-1, 3),
                    header=np.array((_FORMAT, draws), np.int64),
                )
            os.replace(temporary, file)
        except BaseException:
            os.unlink(temporary)
            raise
        return file


def pregenerate(
    folder: str | os.PathLike[str],
    *,
    seeds: Iterable[int],
    area: tuple[int, int],
    episodes: int = 1,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Generate the worlds of environment seeds into a folder for `CrafterEnv(world_cache=...)`.

    Args:
        folder: made if it does not exist; worlds already in it are kept.
        seeds: what `reset(seed=...)` will be called with.
        area: cells of the map.
        episodes: how many episodes after each seeded reset to prepare.
        progress: called with the number of worlds done so far.

    Returns:
        How many worlds were added.
    """
    pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
    cache = WorldCache(folder)
    world = World(area, constants.materials, CHUNK)
    added = done = 0
    for seed in seeds:
        for episode in range(1, episodes + 1):
            number = world_seed(int(seed), episode)
            if not cache.file(number, area).exists():
                player = seed_world(world, number)
                cache.save(world, number, fill_world(world, player))
                added += 1
            done += 1
            if progress is not None:
                progress(done)
    return added


def seed_world(world: World, seed: int) -> Player:
    """Empty and seed a world, and put the player in its middle."""
    world.reset(seed=seed)
    player = Player(world, (world.area[0] // 2, world.area[1] // 2))
    world.add(player)
    return player


@njit(cache=True)
def _near(obj_map, x, y, distance, limit):
    width, height = obj_map.shape
    found = np.empty(2 * distance * distance, np.int64)
    count = 0
    for u in range(max(0, x - distance + 1), min(width, x + distance)):
        reach = distance - abs(u - x)
        for v in range(max(0, y - reach + 1), min(height, y + reach)):
            if 0 < obj_map[u, v] < limit:
                found[count] = obj_map[u, v]
                count += 1
    return np.sort(found[:count])
