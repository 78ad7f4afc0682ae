"""Crafter's world, equal to the package's draw for draw, but ordered and fast.

Crafter keeps the objects of a chunk in a `set` that is ordered by memory address, so the same seed
gives another episode each time. Here they are kept in order of arrival. Nothing in the package
itself is changed: an object becomes one of the quick classes below when it enters such a world.
"""

from __future__ import annotations

import collections
import os
import pathlib
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
from crafter import constants, engine, objects
from numba import njit
from numpy.typing import NDArray
from opensimplex.internals import _noise3

CHUNK = (12, 12)
_MATERIALS = (None, *constants.materials)
_ID = {name: index for index, name in enumerate(_MATERIALS)}
_WALKABLE = frozenset(_ID[name] for name in constants.walkable)
_FORMAT = 1


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
        self.uniform = random.random_sample
        self.raw = random._bit_generator.random_raw


class World(engine.World):
    """A crafter world with ordered chunks, quick look-ups and a log of material changes.

    Attributes:
        changes: (x, y, material id) of every change since the world was made, in order.
    """

    def reset(self, seed: int | None = None) -> None:
        """Empty the world and seed its generator."""
        super().reset(seed)
        self._chunks = collections.defaultdict(OrderedSet)
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

    def __getitem__(self, pos: Sequence[int]) -> tuple[str | None, Any]:
        x, y = pos
        if not (0 <= x < self.area[0] and 0 <= y < self.area[1]):
            return None, None
        return _MATERIALS[self._mat_map[x, y]], self._objects[self._obj_map[x, y]]

    def __setitem__(self, pos: Sequence[int], material: str) -> None:
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
    center = tuple(int(value) for value in player.pos)
    terrain = _terrain(world.area, center, *_simplex_tables(world.random.randint(0, 2**31 - 1)))
    state = world.random.get_state()
    draws = world.random.random_sample(_MOST_DRAWS * terrain.shape[1] * terrain.shape[2])
    materials = np.zeros(world.area, np.uint8)
    found = np.zeros((materials.size, 3), np.int64)
    used, count = _decide(terrain, draws, materials, found)
    world.random.set_state(state)
    world.random.random_sample(used)
    world.start(materials)
    _populate(world, player, found[:count])
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
                "ocrl.envs.crafter_world.pregenerate"
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
            with np.load(file, allow_pickle=False) as content:
                materials, found, header = (
                    content[key] for key in ("materials", "creatures", "header")
                )
        except FileNotFoundError:
            return False
        except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"expected a pre-generated world, got a damaged file {file}: delete it ({error})"
            ) from error
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
def _near(obj_map, x, y, distance, limit):  # type: ignore[no-untyped-def]
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


def _terrain(
    area: tuple[int, int],
    center: tuple[int, ...],
    perm: NDArray[np.int64],
    gradients: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Everything that crafter's terrain rules compare, before any draw.

    Noise is computed where a rule may look at it. Every operation is one that crafter's scalar
    code does, in its order, so the results are equal to the last bit.

    Returns:
        (len(_LAYERS),X,Y) in the order of `_LAYERS`.
    """
    terrain = np.zeros((len(_LAYERS), *area))
    distance, start, water, mountain, cave, across, down, coal, iron, lava, sand, tree = terrain
    x, y = (axis.ravel() for axis in np.indices(area))

    def noise(where: NDArray[np.bool_], z: int, size: int, *, dx: float = 1, dy: float = 1):  # type: ignore[no-untyped-def]
        inside = where.ravel()
        # Factors are 2 and 1/5 in crafter; it divides by 5, and so must we.
        u = x[inside] * 2 if dx == 2 else x[inside] / dx
        v = y[inside] * 2 if dy == 2 else y[inside] / dy
        return _noise_at(u / size, v / size, z, perm, gradients)

    everywhere = np.ones(area, np.bool_)
    distance.flat = np.sqrt((x - center[0]) ** 2 + (y - center[1]) ** 2)
    start.flat = (4 - distance).ravel() + 2 * noise(everywhere, 8, 3)
    start[...] = 1 / (1 + np.exp(-start))
    wild = start <= 0.5
    water[wild] = noise(wild, 3, 15) + 0.15 * noise(wild, 3, 5) + 0.1 - 2 * start[wild]
    mountain[wild] = (noise(wild, 0, 15) + 0.3 * noise(wild, 0, 5)) / 1.3
    mountain[wild] -= 4 * start[wild] + 0.3 * water[wild]
    rock = wild & (mountain > 0.15)
    high = rock & (mountain > 0.3)
    cave[high] = noise(high, 6, 7)
    rock &= ~(high & (cave > 0.15))
    across[rock] = noise(rock, 7, 3, dx=2, dy=5)
    rock &= across <= 0.4
    down[rock] = noise(rock, 7, 3, dx=5, dy=2)
    rock &= down <= 0.4
    coal[rock] = noise(rock, 1, 8)
    iron[rock] = noise(rock, 2, 6)
    high &= rock
    lava[high] = noise(high, 6, 5)
    low = wild & (mountain <= 0.15)
    beach = low & (water > 0.25) & (water <= 0.35)
    sand[beach] = noise(beach, 4, 9)
    meadow = low & (water <= 0.3)
    tree[meadow] = noise(meadow, 5, 7)
    return terrain


_LAYERS = (
    "distance",
    "start",
    "water",
    "mountain",
    "cave",
    "across",
    "down",
    "coal",
    "iron",
    "lava",
    "sand",
    "tree",
)
_MOST_DRAWS = 6
"""No cell takes more uniform draws than this: three for its material, three for a creature."""
_WATER, _GRASS, _STONE, _PATH, _SAND, _TREE, _LAVA, _COAL, _IRON, _DIAMOND = range(1, 11)


@njit(cache=True)
def _simplex_tables(seed):  # type: ignore[no-untyped-def]
    """The two tables of OpenSimplex for a seed: a shuffle driven by a 64-bit congruence."""
    state = np.int64(seed)
    perm = np.zeros(256, np.int64)
    gradients = np.zeros(256, np.int64)
    source = np.arange(256)
    for _ in range(3):
        state = state * 6364136223846793005 + 1442695040888963407
    for index in range(255, -1, -1):
        state = state * 6364136223846793005 + 1442695040888963407
        # state + 31 itself may overflow.
        chosen = (state % (index + 1) + 31) % (index + 1)
        perm[index] = source[chosen]
        gradients[index] = perm[index] % 24 * 3
        source[chosen] = source[index]
    return perm, gradients


@njit(cache=True)
def _noise_at(xs, ys, z, perm, gradients):  # type: ignore[no-untyped-def]
    # The only call of _noise3: each further one makes the compiler inline it again, for seconds.
    values = np.empty(len(xs))
    for index in range(len(xs)):
        values[index] = _noise3(xs[index], ys[index], z, perm, gradients)
    return values


@njit(cache=True)
def _decide(terrain, draws, materials, found):  # type: ignore[no-untyped-def]
    """Crafter's rules for material, then creatures; uniform draws in its order from `draws`."""
    width, height = materials.shape
    tunnels = np.zeros((width, height), np.bool_)
    used = 0
    for x in range(width):
        for y in range(height):
            material, tunnels[x, y], used = _material(terrain[:, x, y], draws, used)
            materials[x, y] = material
    count = 0
    for x in range(width):
        for y in range(height):
            kind, used = _creature(materials[x, y], tunnels[x, y], terrain[0, x, y], draws, used)
            if kind > 0:
                found[count, 0], found[count, 1], found[count, 2] = kind, x, y
                count += 1
    return used, count


@njit(cache=True)
def _material(layers, draws, used):  # type: ignore[no-untyped-def]
    """Material of a cell, whether it is a tunnel, and the draws used so far."""
    start, water, mountain, cave = layers[1], layers[2], layers[3], layers[4]
    across, down, coal, iron = layers[5], layers[6], layers[7], layers[8]
    lava, sand, tree = layers[9], layers[10], layers[11]
    if start > 0.5:
        return _GRASS, False, used
    if mountain > 0.15:
        if mountain > 0.3 and cave > 0.15:
            return _PATH, False, used
        if across > 0.4 or down > 0.4:
            return _PATH, True, used
        if coal > 0:
            used += 1
            if draws[used - 1] > 0.85:
                return _COAL, False, used
        if iron > 0.4:
            used += 1
            if draws[used - 1] > 0.75:
                return _IRON, False, used
        if mountain > 0.18:
            used += 1
            if draws[used - 1] > 0.994:
                return _DIAMOND, False, used
        if mountain > 0.3 and lava > 0.35:
            return _LAVA, False, used
        return _STONE, False, used
    if 0.25 < water <= 0.35 and sand > -0.2:
        return _SAND, False, used
    if water > 0.3:
        return _WATER, False, used
    if tree > 0:
        used += 1
        if draws[used - 1] > 0.8:
            return _TREE, False, used
    return _GRASS, False, used


@njit(cache=True)
def _creature(material, is_tunnel, distance, draws, used):  # type: ignore[no-untyped-def]
    """What starts on a cell (nothing 0, cow 1, zombie 2, skeleton 3), and the draws used so far."""
    if material not in (_GRASS, _PATH, _SAND):
        return 0, used
    if distance > 3 and material == _GRASS:
        used += 1
        if draws[used - 1] > 0.985:
            return 1, used
    if distance > 10:
        used += 1
        if draws[used - 1] > 0.993:
            return 2, used
    if material == _PATH and is_tunnel:
        used += 1
        if draws[used - 1] > 0.95:
            return 3, used
    return 0, used
