"""Rollouts that were collected before, as the beginning of a replay.

L frames of an episode, K slots, D columns of a slot.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ocrl import checkpoint
from ocrl.agents.episode_encoder import EpisodeEncoder
from ocrl.agents.memory import FRAME
from ocrl.agents.replay import EpisodeReplay
from ocrl.agents.world_agent import WorldAgent
from ocrl.data.store import EpisodeStore

_NEEDED = ("action", "reward", "terminated", "truncated")
_AT_ONCE = 16
"""Episodes that are encoded side by side."""


def add_rollouts(
    replay: EpisodeReplay,
    path: Path,
    *,
    agent: WorldAgent,
    encoder: EpisodeEncoder | None,
    env: str,
    arguments: Mapping[str, Any],
    has_frames: bool,
) -> int:
    """Encode episodes of a store and add them, as many of the first ones as the replay holds.

    Args:
        replay: is filled.
        path: of the store.
        agent: that will learn from it.
        encoder: of the frames.
        env: name of the environment that the agent plays.
        arguments: of that environment.
        has_frames: keep the frames beside the slots, to make slots of again.

    Returns:
        How many episodes there were.

    Raises:
        FileNotFoundError: if there is no episode at `path`.
        ValueError: if the agent observes more than slots, or the episodes are of another
            environment or another action space, or lack rewards or actions.
    """
    if encoder is None or agent.rows.vectors:
        raise ValueError(
            f"expected an agent that sees slots alone to begin with the rollouts of {path}, got "
            f"one that sees {', '.join((agent.rows.name, *agent.rows.vectors))}; leave out "
            "agent.replay.rollouts, or set obs=slots and observation.vectors=[]"
        )
    store = EpisodeStore(path)
    _check(store, agent=agent, env=env, arguments=arguments)
    replay.version = encoder.fingerprint
    number, num_frames, chosen = 0, replay.num_frames, []
    for index in range(len(store)):
        if num_frames >= replay.capacity:
            break
        if store.lengths[index] >= 2 and store.is_sound(index):
            chosen.append(index)
            num_frames += int(store.lengths[index])
    for first in range(0, len(chosen), _AT_ONCE):
        episodes = [store.episode(index) for index in chosen[first : first + _AT_ONCE]]
        slots = _encoded(episodes, encoder)
        for episode, rows in zip(episodes, slots, strict=True):
            observation = {agent.rows.name: agent.ordered_episode(rows)}
            if has_frames:
                observation[FRAME] = np.asarray(episode["frames"])
            replay.add(observation, _outcomes(episode, agent))
            number += 1
    return number


def _plain(env: str) -> str:
    """The name of an environment behind its short name or its Gymnasium id."""
    return env.lower().replace("_", "").removeprefix("ocrl/").removesuffix("-v0")


def _check(
    store: EpisodeStore, *, agent: WorldAgent, env: str, arguments: Mapping[str, Any]
) -> None:
    lacking = [name for name in _NEEDED if name not in store.arrays]
    if lacking:
        raise ValueError(
            f"expected episodes with {', '.join(_NEEDED)} in {store.path}, got none of "
            f"{', '.join(lacking)}: collect them by playing env={env}"
        )
    found = str(store.metadata.get("env", env))
    if _plain(found) != _plain(env):
        raise ValueError(
            f"expected rollouts of env={env}, got those of {found} in {store.path}: their rewards "
            "are other ones"
        )
    collected = store.metadata.get("env_arguments", {})
    for name, value in arguments.items():
        if name in collected and collected[name] != checkpoint.plain({name: value})[name]:
            raise ValueError(
                f"expected rollouts with env.{name}={value}, got {collected[name]} in {store.path}"
            )
    spec, actions = store.arrays["action"], agent.actions
    shape = () if actions.num_actions else (actions.action_dim,)
    space = str(store.metadata.get("action_space", actions.space))
    if tuple(spec.shape) != shape or space != str(actions.space):
        raise ValueError(
            f"expected actions of {actions.space} in {store.path}, as the environment has them, "
            f"got {space}"
        )


def _encoded(episodes: Sequence[Mapping[str, Any]], encoder: EpisodeEncoder) -> list[Any]:
    """The slots (L,K,D) of each episode."""
    arrays = {
        name: [np.asarray(episode[name]) for episode in episodes]
        for name in ("frames", "action", "intrinsics", "extrinsics")
        if name in episodes[0]
    }
    cameras = None
    if "intrinsics" in arrays:
        cameras = list(zip(arrays["intrinsics"], arrays["extrinsics"], strict=True))
    return list(encoder.encode(arrays["frames"], arrays["action"], cameras=cameras))


def _outcomes(episode: Mapping[str, Any], agent: WorldAgent) -> dict[str, Any]:
    action = agent.actions.from_env(np.asarray(episode["action"]))
    # What stands in the last row was not done.
    action[-1] = agent.actions.empty()
    return {
        "action": action,
        "reward": np.asarray(episode["reward"], np.float32),
        "terminated": np.asarray(episode["terminated"], bool),
        "truncated": np.asarray(episode["truncated"], bool),
    }
