"""What an agent observes of an environment: frames, objects, and vectors beside them.

V views, H W image, M rows and F columns of the table of objects, W numbers of a vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from einops import rearrange
from gymnasium.spaces import Box, Dict
from numpy.typing import NDArray

from ocrl.envs.interface import EXTRINSICS, INTRINSICS, ObjectEnv
from ocrl.envs.object_table import ObjectTable
from ocrl.envs.registry import unknown

FRAME, OBJECTS = "frame", "objects"
CAMERAS = (INTRINSICS, EXTRINSICS)
"""Keys of the cameras that a frame was seen by."""
_MATRICES = {INTRINSICS: (3, 3), EXTRINSICS: (4, 4)}


class ObservedEnv(gymnasium.Wrapper[Any, Any, NDArray[np.uint8], Any]):
    """An `ObjectEnv` whose observation is made of named parts.

    `frame` ([V,]H,W,3) uint8 is the picture; `intrinsics` (V,3,3) and `extrinsics` (V,4,4) are the
    cameras it was seen by; `objects` (M,F) the true objects, see `ObjectTable`; any other name is
    one of the environment's `vectors()` (W,), such as `inventory` or `mission`. One part is the
    observation itself, several are a dict. Masks and tables are reached as before.
    """

    def __init__(
        self,
        env: ObjectEnv,
        keys: Sequence[str],
        *,
        is_shuffled: bool = False,
        is_stacked: bool = False,
    ) -> None:
        """Compose the observation.

        Args:
            env: the environment.
            keys: names of the parts, one or more.
            is_shuffled: see `ObjectTable`; `reset(seed=s)` seeds the order too.
            is_stacked: frames of several views are one of more colours, (H,W,V*3).

        Raises:
            ValueError: if a part does not exist or is named twice, or none is named.
        """
        super().__init__(env)
        if env.num_cameras == 0 and any(key in CAMERAS for key in keys):
            raise ValueError(
                f"expected an environment with cameras, whose poses an encoder of posed views "
                f"reads, got {type(env).__name__}, which knows none: take another encoder, or an "
                "environment such as env=tabletop-reach"
            )
        cameras = CAMERAS if env.num_cameras else ()
        known = (FRAME, OBJECTS, *cameras, *env.vector_sizes)
        for key in keys:
            if key not in known:
                raise ValueError(unknown("part of the observation", key, known))
        if not keys or len(set(keys)) < len(keys):
            raise ValueError(f"expected different parts of the observation, got {list(keys)}")
        self._env = env
        self._keys = tuple(keys)
        self._table = ObjectTable(env, is_shuffled=is_shuffled) if OBJECTS in keys else None
        self._needs_vectors = any(key in env.vector_sizes for key in keys)
        self._needs_cameras = any(key in CAMERAS for key in keys)
        self._is_stacked = is_stacked and len(env.observation_space.shape or ()) == 4
        spaces = {key: self._space(key) for key in keys}
        self.observation_space = spaces[keys[0]] if len(keys) == 1 else Dict(spaces)

    @property
    def object_columns(self) -> tuple[str, ...]:
        """Names of the columns of `objects`, see `ObjectTable`; none where they are not a part."""
        return () if self._table is None else self._table.columns

    def _space(self, key: str) -> gymnasium.Space[Any]:
        if key == FRAME:
            space = self._env.observation_space
            if not self._is_stacked:
                return space
            assert space.shape is not None
            num_views, height, width, _ = space.shape
            return Box(0, 255, (height, width, num_views * 3), np.uint8)
        if key in CAMERAS:
            shape = (self._env.num_cameras, *_MATRICES[key])
            return Box(-np.inf, np.inf, shape, np.float32)
        if key == OBJECTS:
            assert self._table is not None
            return Box(-np.inf, np.inf, self._table.shape, np.float32)
        return Box(0.0, 1.0, (self._env.vector_sizes[key],), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """See Gymnasium."""
        frame, info = self.env.reset(seed=seed, options=options)
        if seed is not None and self._table is not None:
            self._table.seed(seed)
        return self._observe(frame), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """See Gymnasium."""
        frame, *outcome = self.env.step(action)
        return self._observe(frame), *outcome

    def _observe(self, frame: NDArray[np.uint8]) -> Any:
        vectors = self._env.vectors() if self._needs_vectors else {}
        cameras = self._env.cameras() if self._needs_cameras else {}
        if self._is_stacked:
            frame = rearrange(frame, "v h w c -> h w (v c)")
        parts: dict[str, Any] = {**vectors, **cameras, FRAME: frame}
        if self._table is not None:
            parts[OBJECTS] = self._table(self._env.objects())
        if len(self._keys) == 1:
            return parts[self._keys[0]]
        return {key: parts[key] for key in self._keys}
