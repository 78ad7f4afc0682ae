"""MiniGrid's pictures from an atlas of its own tiles, and the masks that belong to the tiles.

X Y cells of the grid, v cells of a side of the agent's view, t pixels of a side of a tile, C codes:
numbers for everything a cell can hold, given in the order in which they are first seen.
"""

from __future__ import annotations

import numpy as np
from minigrid.core.constants import DIR_TO_VEC
from minigrid.core.grid import Grid
from minigrid.core.world_object import Wall, WorldObj
from numba import njit
from numpy.typing import NDArray

EMPTY_CODE = 0
WALL_CODE = 1
_SUBPIXELS = 3
_RED = 255.0


class TileAtlas:
    """MiniGrid's own tiles, drawn once, cut to uint8 as the official frames cut them.

    A pixel of a tile belongs to what stands in the cell if that covers more than half of it.

    Attributes:
        tiles: (number,t,t,3), by tile number.
        plain: (C,) tile number of each code.
        lit: (C,) tile number of each code when highlighted.
        covered: (C,t,t) bool, the pixels that belong to what the code stands for.
        agent_covered: (4,t,t) bool, the pixels of the agent by direction.
        is_opaque: (C,) bool, whether nothing behind can be seen.
    """

    def __init__(self, tile_size: int) -> None:
        self.tile_size = tile_size
        shape = (0, tile_size, tile_size)
        self.tiles = np.empty((*shape, 3), dtype=np.uint8)
        self.plain = np.empty(0, dtype=np.int64)
        self.lit = np.empty(0, dtype=np.int64)
        self.covered = np.empty(shape, dtype=np.bool_)
        self.is_opaque = np.empty(0, dtype=np.bool_)
        self._codes: dict[tuple[int, int, int] | None, int] = {}
        self._looks: list[WorldObj | None] = []
        self._agents: dict[tuple[int, int, bool], int] = {}
        self.code(None)
        self.code(Wall())
        self.agent_covered = np.stack([self._agent_coverage(direction) for direction in range(4)])

    def code(self, item: WorldObj | None) -> int:
        """The number of what a cell holds; its tiles are drawn when it is seen first."""
        key = None if item is None else item.encode()
        known = self._codes.get(key)
        if known is not None:
            return known
        code = self._codes[key] = len(self._looks)
        self._looks.append(None if item is None else WorldObj.decode(*item.encode()))
        self.plain = np.append(self.plain, self._add(self._tile(item, None, False)))
        self.lit = np.append(self.lit, self._add(self._tile(item, None, True)))
        self.covered = np.concatenate([self.covered, self._coverage(item)[None]])
        is_opaque = item is not None and not item.see_behind()
        self.is_opaque = np.append(self.is_opaque, is_opaque)
        return code

    def agent(self, code: int, direction: int, is_lit: bool) -> int:
        """The tile number of the agent over a cell with this code."""
        key = (code, direction, is_lit)
        known = self._agents.get(key)
        if known is None:
            tile = self._tile(self._looks[code], direction, is_lit)
            known = self._agents[key] = self._add(tile)
        return known

    def _tile(
        self, item: WorldObj | None, direction: int | None, is_lit: bool
    ) -> NDArray[np.floating]:
        return Grid.render_tile(item, direction, highlight=is_lit, tile_size=self.tile_size)

    def _add(self, tile: NDArray[np.floating]) -> int:
        self.tiles = np.concatenate([self.tiles, tile.astype(np.uint8)[None]])
        return len(self.tiles) - 1

    def _coverage(self, item: WorldObj | None) -> NDArray[np.bool_]:
        """Where the item paints: what is equal on black and on white ground has been painted."""
        size = self.tile_size * _SUBPIXELS
        if item is None:
            return np.zeros((self.tile_size, self.tile_size), dtype=np.bool_)
        on_black = np.zeros((size, size, 3), dtype=np.uint8)
        on_white = np.full((size, size, 3), 255, dtype=np.uint8)
        item.render(on_black)
        item.render(on_white)
        painted = (on_black == on_white).all(axis=-1)
        blocks = painted.reshape(self.tile_size, _SUBPIXELS, self.tile_size, _SUBPIXELS)
        return blocks.mean(axis=(1, 3)) > 0.5

    def _agent_coverage(self, direction: int) -> NDArray[np.bool_]:
        ground = self._tile(None, None, False)[..., 0]
        return self._tile(None, direction, False)[..., 0] > (ground + _RED) / 2


@njit(cache=True)
def view_of_agent(
    codes: NDArray[np.int64],
    is_opaque: NDArray[np.bool_],
    position: tuple[int, int],
    forward: NDArray[np.int64],
    sees_through_walls: bool,
    view_size: int,
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """What the agent has before it: the cells of its view, turned so that it looks up.

    Args:
        codes: (Y,X) of the whole grid.
        is_opaque: (C,).
        position: x, y of the agent.
        forward: (2,) its direction.
        sees_through_walls: everything in the view is seen.
        view_size: v.

    Returns:
        cells: (v,v,2) x, y of the cells, by row and column of the view, outside the grid too.
        seen: (v,v) bool.
    """
    height, width = codes.shape
    cells = np.empty((view_size, view_size, 2), dtype=np.int64)
    seen = np.full((view_size, view_size), sees_through_walls)
    blocks = np.zeros((view_size, view_size), dtype=np.bool_)
    right_x, right_y = -forward[1], forward[0]
    for row in range(view_size):
        for column in range(view_size):
            ahead, aside = view_size - 1 - row, column - view_size // 2
            x = position[0] + forward[0] * ahead + right_x * aside
            y = position[1] + forward[1] * ahead + right_y * aside
            cells[row, column, 0], cells[row, column, 1] = x, y
            is_inside = 0 <= x < width and 0 <= y < height
            blocks[row, column] = is_opaque[codes[y, x] if is_inside else WALL_CODE]
    if sees_through_walls:
        return cells, seen
    # Sight spreads from the agent sideways and one row up, from every cell that does not block it.
    seen[view_size - 1, view_size // 2] = True
    for row in range(view_size - 1, -1, -1):
        for column in range(view_size - 1):
            if seen[row, column] and not blocks[row, column]:
                seen[row, column + 1] = True
                if row > 0:
                    seen[row - 1, column + 1] = seen[row - 1, column] = True
        for column in range(view_size - 1, 0, -1):
            if seen[row, column] and not blocks[row, column]:
                seen[row, column - 1] = True
                if row > 0:
                    seen[row - 1, column - 1] = seen[row - 1, column] = True
    return cells, seen


@njit(cache=True)
def paint(
    canvas: NDArray[np.uint8],
    drawn: NDArray[np.int64],
    wanted: NDArray[np.int64],
    tiles: NDArray[np.uint8],
) -> None:
    """Copy the tiles that differ from those on the canvas.

    Args:
        canvas: (rows * t, columns * t, 3), changed in place.
        drawn: (rows, columns) numbers of the tiles on the canvas, changed in place.
        wanted: (rows, columns) numbers of the tiles that should be there.
        tiles: (number,t,t,3).
    """
    size = tiles.shape[1]
    for row in range(wanted.shape[0]):
        for column in range(wanted.shape[1]):
            number = wanted[row, column]
            if drawn[row, column] == number:
                continue
            drawn[row, column] = number
            for y in range(size):
                for x in range(size):
                    for channel in range(3):
                        canvas[row * size + y, column * size + x, channel] = tiles[
                            number, y, x, channel
                        ]


@njit(cache=True)
def paint_ids(
    canvas: NDArray[np.uint16],
    ids: NDArray[np.uint16],
    codes: NDArray[np.int64],
    covered: NDArray[np.bool_],
) -> None:
    """Give the covered pixels of every cell its id, the others 0.

    Args:
        canvas: (rows * t, columns * t), overwritten.
        ids: (rows, columns).
        codes: (rows, columns).
        covered: (C,t,t).
    """
    size = covered.shape[1]
    for row in range(ids.shape[0]):
        for column in range(ids.shape[1]):
            label, code = ids[row, column], codes[row, column]
            for y in range(size):
                for x in range(size):
                    canvas[row * size + y, column * size + x] = label if covered[code, y, x] else 0


FORWARD = np.array(DIR_TO_VEC, dtype=np.int64)
"""(4,2) the step x, y of every direction."""
