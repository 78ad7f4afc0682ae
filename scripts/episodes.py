"""Find the episodes that a script needs, or collect them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from ocrl.data.store import EpisodeStore
from ocrl.distributed import World
from ocrl.envs.collect import collect
from ocrl.envs.registry import gymnasium_id, make


def find_episodes(
    env: str,
    *,
    arguments: Mapping[str, Any],
    image_size: Sequence[int],
    path: str | None,
    default_path: Path,
    collection: Mapping[str, Any],
    world: World,
    console: Console,
) -> EpisodeStore:
    """Open the episodes at `path`, or collect those that are missing at `default_path`.

    Args:
        env: name of the environment.
        arguments: of the environment, `_target_` included.
        image_size: (H, W) that the model takes.
        path: of episodes that exist; None to collect.
        default_path: where episodes are collected.
        collection: further arguments of `ocrl.envs.collect.collect`.
        world: the processes that wait for the episodes; the first one collects.
        console: to say what is done.

    Raises:
        ValueError: if the episodes are not of that environment, or it has frames of another size.
    """
    env_arguments = {name: value for name, value in arguments.items() if name != "_target_"}
    played = make(env, **env_arguments)
    frame_size, actions = played.observation_space.shape, str(played.action_space)
    if path is None:
        if frame_size is None or list(frame_size[-3:-1]) != list(image_size):
            raise ValueError(
                f"expected frames of image_size={list(image_size)} from env={env}, got "
                f"{frame_size}; change one of them"
            )
        if world.is_first:
            console.print(f"episodes of {env}: {default_path}", soft_wrap=True)
            collect(env, env_arguments, path=default_path, **collection)
        world.wait()
    store = EpisodeStore(path or default_path)
    stored, wanted = store.metadata.get("env"), gymnasium_id(env)
    if stored is not None and stored != wanted:
        raise ValueError(f"expected episodes of {wanted} at {store.path}, got those of {stored}")
    found = store.metadata.get("action_space", actions)
    if found != actions:
        raise ValueError(
            f"expected actions in {actions} at {store.path}, as env={env} has them, got {found}"
        )
    return store
