"""The true objects of a frame as a set of vectors, for agents that are given what others see.

M rows, F columns, V views.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocrl.envs.interface import ObjectEnv

_CENTRE = ("x", "y")
_SIDES = (*_CENTRE, "width", "height")
"""What is told of an object in a view."""


def place_columns(columns: Sequence[str]) -> list[int]:
    """Which columns of an `ObjectTable` are x or y of a position, in any view."""
    return [place for place, name in enumerate(columns) if name.split("@")[0] in _CENTRE]


class ObjectTable:
    """Turns `objects()` of an environment into an array (M,F) of numbers.

    Columns, named by `columns`: presence, 1 for an object and 0 for an empty row, which is all
    zero; the category, one of so many columns being 1; x and y of the position; width and height of
    the box (0 where a view does not see it); the attributes, those with classes as one column per
    class, those with a limit divided by it. Of several views the four columns of each follow one
    after the other, `x@0`, `y@0` and so on. The environment's `hidden_attributes` are left out:
    they tell what no picture does.

    Attributes:
        columns: F names.
        shape: (M, F); M is the environment's `max_objects`.
    """

    def __init__(self, env: ObjectEnv, *, is_shuffled: bool) -> None:
        """Find out which columns the objects of an environment have.

        Args:
            env: read only here.
            is_shuffled: put the rows into another random order in every frame, empty ones among
                them, so that no place in the array stands for an object; else in the order of
                `objects()`.
        """
        views = (env.observation_space.shape or ())[:-3]
        marks = [f"@{view}" for view in range(views[0])] if views else [""]
        places = tuple(f"{side}{mark}" for mark in marks for side in _SIDES)
        self._num_places = len(places)
        self._num_categories = len(env.categories)
        self._is_shuffled = is_shuffled
        self._rng = np.random.default_rng()
        self._numbers: list[int] = []
        self._classes: list[tuple[int, int]] = []
        limits: list[float] = []
        numbers: list[str] = []
        classes: list[str] = []
        for index, name in enumerate(env.attribute_names):
            if name in env.hidden_attributes:
                continue
            if name in env.attribute_classes:
                known = env.attribute_classes[name]
                self._classes.append((index, len(known)))
                classes += [f"{name}={entry}" for entry in known]
            else:
                self._numbers.append(index)
                limits.append(env.attribute_limits.get(name, 1.0))
                numbers.append(name)
        self._limits = np.array(limits, np.float32)
        self.columns = (
            "presence",
            *(f"category={name}" for name in env.categories),
            *places,
            *numbers,
            *classes,
        )
        self.shape = (env.max_objects, len(self.columns))

    def seed(self, seed: int) -> None:
        """Seed the order of the rows."""
        self._rng = np.random.default_rng([seed, len(self.columns)])

    def __call__(self, objects: NDArray[Any]) -> NDArray[np.float32]:
        """The array (M,F) of a table of objects."""
        table = np.zeros(self.shape, np.float32)
        count = len(objects)
        places = self._rng.permutation(len(table))[:count] if self._is_shuffled else slice(count)
        table[places] = self._encode(objects)
        return table

    def _encode(self, objects: NDArray[Any]) -> NDArray[np.float32]:
        """Rows (m,F) of the objects that are there."""
        attributes, box = objects["attributes"], objects["box"]
        rows = np.arange(len(objects))
        encoded = np.zeros((len(objects), self.shape[1]), np.float32)
        encoded[:, 0] = 1.0
        encoded[rows, 1 + objects["category"].astype(np.int64)] = 1.0
        column = 1 + self._num_categories
        places = np.concatenate([objects["position"], box[..., 2:] - box[..., :2]], axis=-1)
        encoded[:, column : column + self._num_places] = places.reshape(len(objects), -1)
        column += self._num_places
        end = column + len(self._numbers)
        encoded[:, column:end] = attributes[:, self._numbers] / self._limits
        for index, count in self._classes:
            encoded[rows, end + attributes[:, index].astype(np.int64)] = 1.0
            end += count
        return encoded
