"""Connected regions of material in a grid world, with ids that last as long as the region.

X Y cells of the map.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

GROUND = 0
"""The kind of cells that belong to no region."""


class Regions:
    """Labels the 4-connected cells of equal kind and keeps the labels while single cells change.

    The rules, in the order they are applied when a cell changes its kind:

    - The region that loses the cell keeps its id. If it falls apart, its largest part keeps it and
      each other part gets a fresh one (equal sizes: the part met first going up, left, right, down
      from the cell, with x growing to the right).
    - The cell joins the neighbouring region of its new kind. If that makes several regions one,
      the largest of them gives its id to all (equal sizes: the older one).
    - With no such neighbour, the cell is a new region with a fresh id.

    No id is ever used again, and no region that neither holds nor touches the changed cell
    changes its id. Ids depend on the order of the changes, not on when they are looked at.

    Attributes:
        labels: (X,Y) uint16 ids, 0 on ground; changed in place.
    """

    def __init__(self, kinds: NDArray[np.integer], *, first_id: int, last_id: int) -> None:
        """Label a map.

        Args:
            kinds: (X,Y); 0 is ground. It is copied.
            first_id: the smallest id that may be given.
            last_id: the largest.

        Raises:
            ValueError: if `kinds` is no map or the range of ids cannot be held in uint16.
        """
        if kinds.ndim != 2:
            raise ValueError(f"expected kinds of shape (X,Y), got {kinds.shape}")
        if not 0 < first_id <= last_id < 65535:
            raise ValueError(
                f"expected ids with 0 < first_id <= last_id < 65535, got {first_id} and {last_id}"
            )
        self._kinds = np.array(kinds, np.int64)
        self._first_id = first_id
        self._last_id = last_id
        components = np.zeros(kinds.shape, np.int64)
        self._next_id = first_id + int(_label(self._kinds, components))
        self._check_ids()
        self.labels = np.where(components > 0, components + (first_id - 1), 0).astype(np.uint16)

    def change(self, x: int, y: int, kind: int) -> None:
        """Give the cell (x, y) another kind.

        Raises:
            IndexError: if the cell is outside the map.
            OverflowError: if a fresh id is needed and none is left.
        """
        width, height = self._kinds.shape
        if not (0 <= x < width and 0 <= y < height):
            raise IndexError(f"expected a cell inside the {width} x {height} map, got ({x}, {y})")
        if kind == self._kinds[x, y]:
            return
        old_id = int(self.labels[x, y])
        self._kinds[x, y] = kind
        self.labels[x, y] = 0
        if old_id:
            self._split(x, y, old_id)
        if kind != GROUND:
            self.labels[x, y] = self._join(x, y, kind)

    def _neighbours(self, x: int, y: int) -> list[tuple[int, int]]:
        width, height = self._kinds.shape
        cells = ((x, y - 1), (x - 1, y), (x + 1, y), (x, y + 1))
        return [cell for cell in cells if 0 <= cell[0] < width and 0 <= cell[1] < height]

    def _split(self, x: int, y: int, old_id: int) -> None:
        seen = np.zeros(self.labels.shape, np.bool_)
        parts = [
            (int(_measure(self.labels, seen, *cell)), cell)
            for cell in self._neighbours(x, y)
            if self.labels[cell] == old_id and not seen[cell]
        ]
        # The sort is stable: of two equally large parts the one met first comes first.
        for _, cell in sorted(parts, key=lambda part: -part[0])[1:]:
            _fill(self.labels, *cell, self._fresh_id())

    def _join(self, x: int, y: int, kind: int) -> int:
        touched = {
            int(self.labels[cell]) for cell in self._neighbours(x, y) if self._kinds[cell] == kind
        }
        if not touched:
            return self._fresh_id()
        if len(touched) == 1:
            return touched.pop()
        sizes = {label: np.count_nonzero(self.labels == label) for label in touched}
        keeper = min(touched, key=lambda label: (-sizes[label], label))
        self.labels[np.isin(self.labels, list(touched))] = keeper
        return keeper

    def _fresh_id(self) -> int:
        self._next_id += 1
        self._check_ids()
        return self._next_id - 1

    def _check_ids(self) -> None:
        if self._next_id > self._last_id + 1:
            raise OverflowError(
                f"expected at most {self._last_id - self._first_id + 1} regions in an episode, "
                "got more: reset the environment or use a smaller map"
            )


@njit(cache=True)
def _label(kinds, components):
    """Number the components of `kinds` from 1 in scan order, into zeros; their count."""
    width, height = kinds.shape
    stack = np.empty((width * height, 2), np.int64)
    count = 0
    for start_x in range(width):
        for start_y in range(height):
            if kinds[start_x, start_y] == 0 or components[start_x, start_y] != 0:
                continue
            count += 1
            components[start_x, start_y] = count
            stack[0, 0], stack[0, 1] = start_x, start_y
            top = 1
            while top > 0:
                top -= 1
                x, y = stack[top]
                for dx, dy in ((0, -1), (-1, 0), (1, 0), (0, 1)):
                    u, v = x + dx, y + dy
                    if (
                        0 <= u < width
                        and 0 <= v < height
                        and components[u, v] == 0
                        and kinds[u, v] == kinds[start_x, start_y]
                    ):
                        components[u, v] = count
                        stack[top, 0], stack[top, 1] = u, v
                        top += 1
    return count


@njit(cache=True)
def _measure(labels, seen, start_x, start_y):
    """Size of the connected part of a label around a cell, marking it in `seen`."""
    width, height = labels.shape
    stack = np.empty((width * height, 2), np.int64)
    stack[0, 0], stack[0, 1] = start_x, start_y
    seen[start_x, start_y] = True
    top = 1
    size = 0
    while top > 0:
        top -= 1
        x, y = stack[top]
        size += 1
        for dx, dy in ((0, -1), (-1, 0), (1, 0), (0, 1)):
            u, v = x + dx, y + dy
            if (
                0 <= u < width
                and 0 <= v < height
                and not seen[u, v]
                and labels[u, v] == labels[start_x, start_y]
            ):
                seen[u, v] = True
                stack[top, 0], stack[top, 1] = u, v
                top += 1
    return size


def _fill(labels: NDArray[np.uint16], x: int, y: int, new_id: int) -> None:
    part = np.zeros(labels.shape, np.bool_)
    _measure(labels, part, x, y)
    labels[part] = new_id
