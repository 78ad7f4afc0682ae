"""Crafter's terrain and its first creatures, equal to the package's to the last bit and draw.

The package calls noise for one cell at a time from Python. Here the noise of a rule is computed
for all cells where the rule may look at it, and only the draws go from cell to cell.

X Y cells of the map.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit
from numpy.typing import NDArray
from opensimplex.internals import _noise3


def generate(
    random: np.random.RandomState, area: tuple[int, int], center: Sequence[int]
) -> tuple[NDArray[np.uint8], NDArray[np.int64], int]:
    """Generate a map around the player's cell, leaving the generator as crafter would.

    Returns:
        Crafter's material ids (X,Y); rows of creature kind (1 cow, 2 zombie, 3 skeleton), x, y in
        crafter's order; how many uniform draws were taken.
    """
    terrain = _terrain(area, center, *_simplex_tables(random.randint(0, 2**31 - 1)))
    state = random.get_state()
    draws = random.random_sample(_MOST_DRAWS * area[0] * area[1])
    materials = np.zeros(area, np.uint8)
    creatures = np.zeros((materials.size, 3), np.int64)
    used, count = _decide(terrain, draws, materials, creatures)
    random.set_state(state)
    random.random_sample(used)
    return materials, creatures[:count], used


def _terrain(
    area: tuple[int, int],
    center: Sequence[int],
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

    def noise(
        where: NDArray[np.bool_],
        z: int,
        size: int,
        xs: NDArray[np.number] = x,
        ys: NDArray[np.number] = y,
    ) -> NDArray[np.float64]:
        inside = where.ravel()
        return _noise_at(xs[inside] / size, ys[inside] / size, z, perm, gradients)

    everywhere = np.ones(area, np.bool_)
    distance[everywhere] = np.sqrt((x - center[0]) ** 2 + (y - center[1]) ** 2)
    start[everywhere] = 4 - distance[everywhere] + 2 * noise(everywhere, 8, 3)
    start[...] = 1 / (1 + np.exp(-start))
    wild = start <= 0.5
    water[wild] = noise(wild, 3, 15) + 0.15 * noise(wild, 3, 5) + 0.1 - 2 * start[wild]
    mountain[wild] = (noise(wild, 0, 15) + 0.3 * noise(wild, 0, 5)) / 1.3
    mountain[wild] -= 4 * start[wild] + 0.3 * water[wild]
    rock = wild & (mountain > 0.15)
    high = rock & (mountain > 0.3)
    cave[high] = noise(high, 6, 7)
    rock &= ~(high & (cave > 0.15))
    across[rock] = noise(rock, 7, 3, 2 * x, y / 5)
    rock &= across <= 0.4
    down[rock] = noise(rock, 7, 3, x / 5, 2 * y)
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
def _simplex_tables(seed):
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
def _noise_at(xs, ys, z, perm, gradients):
    # The only call of _noise3: each further one makes the compiler inline it again, for seconds.
    values = np.empty(len(xs))
    for index in range(len(xs)):
        values[index] = _noise3(xs[index], ys[index], z, perm, gradients)
    return values


@njit(cache=True)
def _decide(terrain, draws, materials, found):
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
def _material(layers, draws, used):
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
def _creature(material, is_tunnel, distance, draws, used):
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
