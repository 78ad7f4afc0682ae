"""The last frames of a vector environment, to learn from.

E environments, B batch, T frames, C H W image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from einops import rearrange
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray
from torch import Tensor

from ocrl.envs.slots import FRAME
from ocrl.envs.vector import ObjectVectorWrapper
from ocrl.types import Clip


class RecentFrames(ObjectVectorWrapper):
    """Remembers the last frames of a vector environment that gives such, and what was done there.

    Attributes:
        num_steps: how many steps are remembered at most; a reset forgets all.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any], *, num_steps: int) -> None:
        """Wrap an environment whose observation is a frame, or has one as `frame`.

        Raises:
            ValueError: if `num_steps` is below 1.
        """
        super().__init__(env)
        if num_steps < 1:
            raise ValueError(f"expected num_steps of at least 1, got {num_steps}")
        self.num_steps = num_steps
        self._frames: list[NDArray[np.uint8]] = []
        self._is_first: list[NDArray[np.bool_]] = []
        self._actions: list[NDArray[Any]] = []

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """See Gymnasium."""
        observation, info = self.env.reset(**kwargs)
        self._frames, self._is_first, self._actions = [], [], []
        self._add(observation, np.ones(self.num_envs, dtype=bool))
        return observation, info

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """See Gymnasium."""
        self._actions.append(np.array(actions))
        observation, reward, terminated, truncated, info = self.env.step(actions)
        self._add(observation, terminated | truncated)
        return observation, reward, terminated, truncated, info

    def _add(self, observation: Any, is_first: NDArray[np.bool_]) -> None:
        frames = observation[FRAME] if isinstance(observation, dict) else observation
        self._frames.append(frames.copy())
        self._is_first.append(is_first.copy())
        if len(self._frames) > self.num_steps:
            del self._frames[0], self._is_first[0], self._actions[0]

    def __len__(self) -> int:
        """Steps that are remembered now."""
        return len(self._frames)

    def clips(self, num_clips: int, *, clip_length: int, seed: Sequence[int]) -> Clip:
        """Draw pieces of what was played, over the ends of episodes where they fall so.

        Args:
            num_clips: B.
            clip_length: T.
            seed: of the drawing.

        Raises:
            ValueError: if fewer frames than T are remembered.
        """
        if len(self) <= clip_length:
            raise ValueError(
                f"expected more than {clip_length} steps to draw from, got {len(self)}"
            )
        rng = np.random.default_rng(seed)
        # The last frame has no action yet.
        starts = rng.integers(len(self) - clip_length, size=num_clips)
        rows = rng.integers(self.num_envs, size=num_clips)

        def cut(entries: list[NDArray[Any]]) -> Tensor:
            pieces = [
                np.stack([entry[row] for entry in entries[start : start + clip_length]])
                for start, row in zip(starts, rows, strict=True)
            ]
            return torch.from_numpy(np.stack(pieces))

        is_first = cut(self._is_first)
        is_first[:, 0] = True
        video = rearrange(cut(self._frames), "b t h w c -> b t c h w").contiguous()
        return Clip(video=video, is_first=is_first, action=cut(self._actions))
