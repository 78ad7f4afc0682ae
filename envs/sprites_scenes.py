"""Which sprites a scene holds: shapes, colours and sizes for every task, with held-out pairs.

M objects of a scene, without the agent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ocrl.envs.sprites_render import COLORS, SHAPES

TASKS = (
    "free",
    "object_goal",
    "object_interaction",
    "object_comparison",
    "property_comparison",
    "reach",
)
SPLITS = ("train", "held_out", "all")
_MAX_TRIES = 2000

Pair = tuple[int, int]


class Scene(NamedTuple):
    """The objects of an episode.

    Attributes:
        look: (M,3) shape, colour and size, as places in `SHAPES`, `COLORS` and the sampler's sizes.
        target: the row of the object that the task is about, -1 where there is none.
    """

    look: NDArray[np.int64]
    target: int


def pair_of(names: Sequence[str], argument: str) -> Pair:
    """Turn [shape, colour] into their numbers.

    Raises:
        ValueError: if it is not a known shape and a known colour.
    """
    colors = tuple(COLORS)
    if len(names) != 2 or names[0] not in SHAPES or names[1] not in colors:
        raise ValueError(
            f"{argument}: expected [shape, colour] with a shape of {', '.join(SHAPES)} and "
            f"a colour of {', '.join(colors)}, got {list(names)}"
        )
    return SHAPES.index(names[0]), colors.index(names[1])


@dataclass(frozen=True)
class SceneSampler:
    """Draws the objects of a scene for a task, so that the task has exactly one answer.

    Attributes:
        task: one of `TASKS`.
        shapes: places in `SHAPES` to draw from.
        colors: places in `COLORS` to draw from.
        num_sizes: how many sizes there are to draw from.
        agent: the agent's shape and colour; no object has both.
        target: shape and colour of the object that `object_goal`, `object_interaction` and `reach`
            are about; it occurs once there.
        held_out: shapes and colours that never meet in `train`.
        split: `train` has none of the held-out pairs, every scene of `held_out` at least one, `all`
            makes no difference between them.
    """

    task: str
    shapes: tuple[int, ...]
    colors: tuple[int, ...]
    num_sizes: int
    agent: Pair
    target: Pair
    held_out: frozenset[Pair]
    split: str

    @property
    def has_fixed_target(self) -> bool:
        """Whether the target looks the same in every episode."""
        return self.task in ("object_goal", "object_interaction", "reach")

    def check(self, num_objects: int) -> None:
        """Raise what makes the task impossible with so few objects or so little to choose from.

        Raises:
            ValueError: if a comparison has fewer than three objects or only one value of every
                property, if the target looks like the agent or is held out of the scenes, or if
                `split` is `held_out` and nothing is held out.
        """
        if not (self.shapes and self.colors and self.num_sizes):
            raise ValueError("expected at least one of shapes, colors and object_sizes, got none")
        if self.task.endswith("_comparison"):
            if num_objects < 3:
                raise ValueError(
                    f"task {self.task!r}: expected 3 objects or more, got {num_objects}"
                )
            if len(self.shapes) == len(self.colors) == self.num_sizes == 1:
                raise ValueError(
                    f"task {self.task!r}: expected two shapes, colors or object_sizes or more"
                )
        if self.has_fixed_target and self.target == self.agent:
            raise ValueError("expected a target that does not look like the agent, got the same")
        if self.has_fixed_target and self.split == "train" and self.target in self.held_out:
            raise ValueError("expected a target that is not held out, got one that is")
        if self.split == "held_out" and not self.held_out:
            raise ValueError("split 'held_out': expected pairs in held_out, got none")

    def sample(self, rng: np.random.Generator, num_objects: int) -> Scene:
        """Draw a scene.

        Raises:
            ValueError: if no scene of the wanted split turns up in 2,000 tries.
        """
        for _ in range(_MAX_TRIES):
            if self.task == "object_comparison":
                look = self._odd_object(rng, num_objects)
            elif self.task == "property_comparison":
                look = self._odd_property(rng, num_objects)
            else:
                look = self._any_objects(rng, num_objects)
            if self._is_allowed(look):
                target = 0 if self.task != "free" else -1
                return Scene(look, target)
        raise ValueError(
            f"expected shapes, colors and held_out that allow scenes of {num_objects} objects for "
            f"task {self.task!r} and split {self.split!r}, got none in {_MAX_TRIES} tries: offer "
            f"more shapes and colors, or hold fewer pairs out"
        )

    def _is_allowed(self, look: NDArray[np.int64]) -> bool:
        pairs = [(int(shape), int(color)) for shape, color, _ in look]
        if self.agent in pairs:
            return False
        if self.has_fixed_target and self.target in pairs[1:]:
            return False
        has_held_out = any(pair in self.held_out for pair in pairs)
        return self.split == "all" or has_held_out == (self.split == "held_out")

    def _draw(self, rng: np.random.Generator) -> NDArray[np.int64]:
        return np.array(
            [rng.choice(self.shapes), rng.choice(self.colors), rng.integers(self.num_sizes)]
        )

    def _draw_allowed(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Draw one object, again and again while it can be in no scene of the split."""
        for _ in range(_MAX_TRIES):
            look = self._draw(rng)
            pair = (int(look[0]), int(look[1]))
            is_target = self.has_fixed_target and pair == self.target
            is_hidden = self.split == "train" and pair in self.held_out
            if pair != self.agent and not is_target and not is_hidden:
                break
        return look

    def _any_objects(self, rng: np.random.Generator, num_objects: int) -> NDArray[np.int64]:
        look = np.stack([self._draw_allowed(rng) for _ in range(num_objects)])
        if self.has_fixed_target:
            look[0, :2] = self.target
        return look

    def _odd_object(self, rng: np.random.Generator, num_objects: int) -> NDArray[np.int64]:
        """All alike, but for the first one, which differs from them in one property."""
        look = np.tile(self._draw(rng), (num_objects, 1))
        self._make_odd(look, rng)
        return look

    def _odd_property(self, rng: np.random.Generator, num_objects: int) -> NDArray[np.int64]:
        """One value of one property occurs once, at the first object; all others at least twice."""
        columns = [_in_groups(rng, values, num_objects) for values in self._values()]
        look = np.stack(columns, axis=1)
        self._make_odd(look, rng)
        return look

    def _values(self) -> list[NDArray[np.int64]]:
        return [np.asarray(self.shapes), np.asarray(self.colors), np.arange(self.num_sizes)]

    def _make_odd(self, look: NDArray[np.int64], rng: np.random.Generator) -> None:
        """Give the first object a value of its own in one property, which the others then share."""
        values = self._values()
        odd = int(rng.choice([index for index in range(3) if len(values[index]) > 1]))
        look[:, odd] = look[0, odd]
        look[0, odd] = rng.choice(values[odd][values[odd] != look[0, odd]])


def _in_groups(
    rng: np.random.Generator, values: NDArray[np.int64], num_objects: int
) -> NDArray[np.int64]:
    """Give every object a value that at least one other has too."""
    num_groups = int(rng.integers(1, max(1, min(num_objects // 2, len(values))) + 1))
    chosen = rng.permutation(values)[:num_groups]
    groups = np.arange(num_objects) // 2 % num_groups
    groups[num_groups * 2 :] = rng.integers(num_groups, size=max(0, num_objects - num_groups * 2))
    return rng.permutation(chosen[groups])
