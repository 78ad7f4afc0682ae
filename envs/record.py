"""One episode: a policy plays an environment, and what happened becomes arrays.

L steps, V views, H W image, M objects in view, A action size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from ocrl.envs.interface import ObjectEnv
from ocrl.envs.policies import Policy

Episode = dict[str, Any]


def episode_seeds(seed: int, number: int) -> tuple[int, np.random.Generator]:
    """The seed of the environment and the policy's generator in the `number`-th episode of `seed`.

    Raises:
        ValueError: if one of them is negative.
    """
    for_env, for_policy = np.random.SeedSequence((seed, number)).spawn(2)
    return int(for_env.generate_state(1)[0]) >> 1, np.random.default_rng(for_policy)


def record_episode(
    env: ObjectEnv,
    policy: Policy,
    *,
    seed: int,
    number: int,
    episode_length: int | None,
    segmentation: Sequence[str],
    after_step: Callable[[int], None] | None = None,
) -> Episode:
    """Play one episode from its seeds; what it holds follows from the arguments alone.

    Args:
        env: reset by this function.
        policy: likewise.
        seed: of the whole collection.
        number: of the episode in it, from 0.
        episode_length: steps after which the episode is truncated, None for the environment's own
            end.
        segmentation: presets to keep.
        after_step: called with the number of steps so far; what it raises ends the episode.

    Returns:
        Arrays of L + 1 rows in the layout of `ocrl.data.store`, and the numbers `episode`,
        `seed` and `env_seed`.
    """
    env_seed, rng = episode_seeds(seed, number)
    observation, _ = env.reset(seed=env_seed)
    policy.reset(rng)
    rows = _Rows(env, segmentation)
    rows.add(observation, reward=0.0, terminated=False, truncated=False)
    is_over, steps = False, 0
    while not is_over:
        action = policy(observation)
        observation, reward, terminated, truncated, _ = env.step(action)
        steps += 1
        truncated = truncated or (steps == episode_length and not terminated)
        is_over = terminated or truncated
        rows.actions.append(action)
        rows.add(observation, reward=float(reward), terminated=terminated, truncated=truncated)
        if after_step is not None:
            after_step(steps)
    return rows.episode() | {"episode": number, "seed": seed, "env_seed": env_seed}


def count_steps(episode: Episode) -> int:
    """L."""
    return len(episode["frames"]) - 1


class _Rows:
    """Gathers the rows of an episode."""

    def __init__(self, env: ObjectEnv, segmentation: Sequence[str]) -> None:
        self._env = env
        self._frames: list[NDArray[np.uint8]] = []
        self._masks: dict[str, list[NDArray[np.uint16]]] = {name: [] for name in segmentation}
        self._objects: list[NDArray[np.void]] = []
        self._extras: list[dict[str, NDArray[Any]]] = []
        self._outcomes: list[tuple[float, bool, bool]] = []
        self.actions: list[Any] = []

    def add(
        self, frame: NDArray[np.uint8], *, reward: float, terminated: bool, truncated: bool
    ) -> None:
        """Add a frame with the outcome of the step that led to it."""
        self._frames.append(frame)
        self._outcomes.append((reward, terminated, truncated))
        for preset, masks in self._masks.items():
            masks.append(self._env.segmentation(preset))
        self._objects.append(self._env.objects())
        self._extras.append(self._env.extras())

    def episode(self) -> Episode:
        """The arrays; the last frame has no action and gets zeros."""
        rewards, terminated, truncated = zip(*self._outcomes, strict=True)
        num_rows = len(self._frames)
        objects = np.zeros((num_rows, self._env.max_objects), self._objects[0].dtype)
        for row, table in zip(objects, self._objects, strict=True):
            row[: len(table)] = table
        kept: Episode = {f"segmentation/{name}": np.stack(m) for name, m in self._masks.items()}
        kept |= {name: np.stack([e[name] for e in self._extras]) for name in self._extras[0]}
        return kept | {
            "frames": np.stack(self._frames),
            "action": self._action_rows(num_rows),
            "reward": np.array(rewards, np.float32),
            "terminated": np.array(terminated, np.bool_),
            "truncated": np.array(truncated, np.bool_),
            "is_first": np.arange(num_rows) == 0,
            "objects": objects,
        }

    def _action_rows(self, num_rows: int) -> NDArray[Any]:
        is_discrete = isinstance(self._env.action_space, gymnasium.spaces.Discrete)
        dtype = np.int64 if is_discrete else np.float32
        actions = np.zeros((num_rows, *(self._env.action_space.shape or ())), dtype)
        actions[:-1] = self.actions
        return actions
