"""Who plays while episodes are collected: `random`, `scripted`, `mixed`, or a saved agent.

An agent of your own is named by where to find it, `module:factory` or `module:factory:argument`,
for example `my_agents:load_ppo:runs/7/model.zip`. The factory is called as `factory(env)` or
`factory(env, argument)` in each worker process and gives a `Policy`.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ocrl.envs.interface import ObjectEnv
from ocrl.envs.registry import unknown

RANDOM_SHARE = 0.25
"""How many actions of `mixed` are random."""


class Policy(Protocol):
    """A player. Where it draws at random it draws from the generator of the episode alone."""

    def reset(self, rng: np.random.Generator) -> None:
        """Get ready for the first frame of an episode."""

    def __call__(self, observation: NDArray[np.uint8]) -> Any:
        """The action after a frame (H,W,3) uint8, an element of the action space."""


@runtime_checkable
class ScriptedEnv(Protocol):
    """An environment that brings a player of its own."""

    def scripted_action(self, rng: np.random.Generator) -> Any:
        """What the player does now."""


class RandomPolicy:
    """Draws every action from the action space."""

    def __init__(self, env: ObjectEnv) -> None:
        self._space = env.action_space

    def reset(self, rng: np.random.Generator) -> None:
        """See `Policy.reset`."""
        self._space.seed(int(rng.integers(2**31)))

    def __call__(self, observation: NDArray[np.uint8]) -> Any:
        """See `Policy.__call__`."""
        return self._space.sample()


class EnvPolicy:
    """Does what the environment's own player does."""

    def __init__(self, env: ScriptedEnv) -> None:
        self._env = env

    def reset(self, rng: np.random.Generator) -> None:
        """See `Policy.reset`."""
        self._rng = rng

    def __call__(self, observation: NDArray[np.uint8]) -> Any:
        """See `Policy.__call__`."""
        return self._env.scripted_action(self._rng)


class MixedPolicy:
    """The scripted player with random actions in between."""

    def __init__(self, env: ObjectEnv) -> None:
        self._random, self._scripted = RandomPolicy(env), scripted(env)

    def reset(self, rng: np.random.Generator) -> None:
        """See `Policy.reset`."""
        self._rng = rng
        self._random.reset(rng)
        self._scripted.reset(rng)

    def __call__(self, observation: NDArray[np.uint8]) -> Any:
        """See `Policy.__call__`."""
        is_random = self._rng.random() < RANDOM_SHARE
        return (self._random if is_random else self._scripted)(observation)


def scripted(env: ObjectEnv) -> Policy:
    """The scripted player of an environment: an explorer in Crafter, a goal seeker elsewhere.

    Raises:
        ValueError: if the environment has none.
    """
    if isinstance(env, ScriptedEnv):
        return EnvPolicy(env)
    # Imported here, so that only who plays Crafter pays for its import.
    from ocrl.envs.crafter import CrafterEnv
    from ocrl.envs.policies_crafter import CrafterExplorer

    if isinstance(env, CrafterEnv):
        return CrafterExplorer(env)
    raise ValueError(
        f"expected an environment with a scripted player, got {type(env).__name__}: "
        "use policy=random"
    )


_POLICIES: dict[str, Callable[[ObjectEnv], Policy]] = {
    "random": RandomPolicy,
    "scripted": scripted,
    "mixed": MixedPolicy,
}


def build_policy(name: str, env: ObjectEnv) -> Policy:
    """Build a policy by name.

    Args:
        name: see the top of this file.
        env: where it will play.

    Raises:
        ValueError: if there is no such policy; the message lists those that exist.
    """
    if name in _POLICIES:
        return _POLICIES[name](env)
    if ":" in name:
        return _saved_policy(name, env)
    raise ValueError(
        unknown("policy", name, _POLICIES) + ", or module:factory[:argument] for one of your own"
    )


def _saved_policy(name: str, env: ObjectEnv) -> Policy:
    module, attribute, *argument = name.split(":", 2)
    try:
        factory = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"expected a policy as module:factory[:argument], got {name!r}: {error} (is its "
            "folder in PYTHONPATH?)"
        ) from error
    policy = factory(env, *argument)
    is_policy = callable(policy) and inspect.ismethod(getattr(policy, "reset", None))
    if not is_policy:
        raise ValueError(
            f"expected {name!r} to give a callable with a method reset(rng), got {policy!r}"
        )
    return policy
