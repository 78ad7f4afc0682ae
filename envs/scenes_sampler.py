"""Which bodies a scene holds and where they stand, with combinations that are held out.

M bodies of a scene.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ocrl.envs.registry import unknown
from ocrl.envs.scenes_render import MATERIALS

SPLITS = ("train", "held_out", "all")
PROPERTIES = ("shape", "color", "material", "size")
"""The columns of a look."""
_PLACE_TRIES = 100


class LookSampler:
    """Draws what bodies look like: a look is a shape, a colour, a material and a size.

    Every allowed look is equally likely.

    Attributes:
        radii: the sizes by number.
    """

    def __init__(
        self,
        *,
        shapes: Sequence[str],
        colors: Sequence[str],
        materials: Sequence[str],
        sizes: Mapping[str, float],
        known_shapes: Sequence[str],
        known_colors: Sequence[str],
        held_out: Sequence[Sequence[str]],
        split: str,
    ) -> None:
        """Set up the looks of a split.

        Args:
            shapes: names from `known_shapes`.
            colors: names from `known_colors`.
            materials: names from `MATERIALS`.
            sizes: names to radii.
            known_shapes: all names of shapes; a shape's number is its place.
            known_colors: likewise.
            held_out: combinations of names; a look that has all names of one of them is held out.
            split: `train` (no look is held out), `held_out` (at least one in every scene is) or
                `all`.

        Raises:
            ValueError: if a name does not exist, a list is empty, a combination is impossible, or
                the split leaves no look.
        """
        known = (tuple(known_shapes), tuple(known_colors), MATERIALS, tuple(sizes))
        chosen = (tuple(shapes), tuple(colors), tuple(materials), tuple(sizes))
        for name, names, all_names in zip(PROPERTIES, chosen, known, strict=True):
            if not names:
                raise ValueError(f"expected at least one {name} in a scene, got none")
            for entry in names:
                if entry not in all_names:
                    raise ValueError(unknown(name, entry, all_names))
        if min(sizes.values()) <= 0.0:
            raise ValueError(f"expected sizes above 0, got {dict(sizes)}")
        if split not in SPLITS:
            raise ValueError(unknown("split of scenes", split, SPLITS))
        self.radii = np.array(list(sizes.values()))
        places = [
            [all_names.index(entry) for entry in names]
            for names, all_names in zip(chosen, known, strict=True)
        ]
        self._looks = np.array(list(itertools.product(*places)))
        is_held_out = np.zeros(len(self._looks), dtype=bool)
        for combination in held_out:
            is_held_out |= self._matches(combination, known)
        self._held_out = self._looks[is_held_out]
        if split == "train":
            self._looks = self._looks[~is_held_out]
        self._has_held_out = split == "held_out"
        if not len(self._looks):
            raise ValueError("expected held_out to leave a look to draw, got all of them held out")
        if self._has_held_out and not len(self._held_out):
            raise ValueError(
                "split 'held_out': expected held_out to name looks that shapes, colors, materials "
                f"and sizes allow, got {[list(entry) for entry in held_out]}"
            )

    def _matches(
        self, combination: Sequence[str], known: Sequence[Sequence[str]]
    ) -> NDArray[np.bool_]:
        """Which looks have all names of a combination."""
        matches = np.ones(len(self._looks), dtype=bool)
        if isinstance(combination, str) or not combination:
            raise ValueError(
                f"held_out: expected lists of names such as [cube, red], got {combination!r}"
            )
        taken: dict[int, str] = {}
        for name in combination:
            column = next((i for i, names in enumerate(known) if name in names), None)
            if column is None:
                raise ValueError(unknown("name in held_out", name, itertools.chain(*known)))
            if column in taken:
                raise ValueError(
                    f"held_out: expected one {PROPERTIES[column]} in {list(combination)}, got "
                    f"{taken[column]!r} and {name!r}, which no object has together"
                )
            taken[column] = name
            matches &= self._looks[:, column] == known[column].index(name)
        return matches

    def sample(self, rng: np.random.Generator, num_objects: int) -> NDArray[np.int64]:
        """Draw looks (M,4)."""
        looks = self._looks[rng.integers(len(self._looks), size=num_objects)]
        if self._has_held_out:
            looks[rng.integers(num_objects)] = self._held_out[rng.integers(len(self._held_out))]
        return looks


def place(
    rng: np.random.Generator, radii: NDArray[np.float64], *, arena: float, gap: float
) -> NDArray[np.float64] | None:
    """Draw places (M,2) in a circle around the origin, so that no two bodies are near each other.

    Args:
        rng: where the places come from.
        radii: (M,).
        arena: radius of the circle that holds all of every body.
        gap: least free distance between two bodies.

    Returns:
        The places, or None where a body found no room.
    """
    places = np.empty((len(radii), 2))
    for row, radius in enumerate(radii):
        away = (arena - radius) * np.sqrt(rng.random(_PLACE_TRIES))
        angle = rng.uniform(0.0, 2.0 * np.pi, _PLACE_TRIES)
        tries = np.column_stack([away * np.cos(angle), away * np.sin(angle)])
        distance = np.linalg.norm(tries[:, None] - places[None, :row], axis=-1)
        is_free = (distance >= radii[:row] + radius + gap).all(axis=1)
        if not is_free.any():
            return None
        places[row] = tries[is_free.argmax()]
    return places
