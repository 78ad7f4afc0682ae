"""Evaluate a run of train_agent.py in its own worlds and in held-out ones, and film it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
import numpy as np
from agent_context import find_ceiling, identity, variants_of
from einops import rearrange
from kept_results import read_published
from numpy.typing import NDArray
from observations import SLOTS, observed_again

from ocrl import checkpoint
from ocrl.agents import saving
from ocrl.agents.comparison import grouped
from ocrl.agents.evaluation import RandomAgent, evaluate, own_random_numbers
from ocrl.agents.interface import Agent
from ocrl.agents.results import (
    EVALUATION,
    PROGRESS,
    Run,
    read_evaluation,
    read_progress,
    write_evaluation,
)
from ocrl.agents.video import Look, Recording, draw, record, write_video
from ocrl.envs import make_vec
from ocrl.envs.crafter import crafter_score
from ocrl.visualize import to_gif

_NUM_GIF_FRAMES = 60


def is_evaluated(run: Path | str) -> bool:
    """Whether the evaluation in a run's directory is of its agent as it is now."""
    if not (Path(run) / EVALUATION).is_file():
        return False
    return bool(read_evaluation(run)["step"] == saving.trained_steps(Path(run)))


def settings_after_training(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """What `evaluate_agent.py` would do, with the episodes of `evaluation` in `agent.yaml`."""
    composed = dict(checkpoint.plain(hydra.compose("evaluate_agent")))
    given = {name: evaluation[name] for name in ("is_deterministic", "worlds")}
    return {**composed, **given, "episodes": evaluation["num_episodes"]}


def check_comparable(runs: Sequence[Path | str]) -> None:
    """Refuse runs that can not stand in one table, before any of them is played.

    Raises:
        FileNotFoundError: if one of them is not there.
        ValueError: if one is given twice, or two are of one environment, method and seed.
    """
    found = []
    for run in runs:
        known = identity(run, meta=saving.read_meta(run), config=saving.read_config(run))
        found.append(Run(Path(run), known, read_progress(Path(run) / PROGRESS)))
    grouped(found)


def evaluate_run(
    run: Path | str, *, say: Callable[[str], None], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Play a run's agent, and write `evaluation.json` and the video into its directory.

    Args:
        run: its directory.
        say: told what is going on.
        settings: those of `configs/evaluate_agent.yaml`.

    Raises:
        FileNotFoundError: if there is no agent, or its encoder or ceiling is not there.
        ValueError: if its encoder is another one now, or there is no such variant or ceiling.
    """
    meta, config = saving.read_meta(run), saving.read_config(run)
    agent = saving.load(run)
    known = identity(run, meta=meta, config=config)
    ceiling = find_ceiling(settings["ceiling"], known["env"], read_published())
    variants = variants_of(meta["env"], meta["env_arguments"], settings["worlds"])
    worlds: dict[str, Any] = {}
    for world, changes in {"": {}, **variants}.items():
        try:
            worlds[world] = _play(agent, run, meta, changes, settings)
        except ValueError as error:
            if not world:
                raise
            say(f"{world}: left out: {error}")
            continue
        best = ceiling if not world else (ceiling or {}).get("variants", {}).get(world)
        worlds[world]["ceiling"] = None if best is None else _figures(best)
        mean = worlds[world]["mean"]
        figures = ", ".join(f"{key} {value:.3f}" for key, value in mean.items())
        say(f"{world or 'as trained'}: {figures}")
    own = worlds.pop("")
    if not any(own["episodes"]["return"]) and not own["floor"]["mean"]["return"]:
        say(
            f"no episode of the agent or of random play had a return other than 0 in "
            f"{known['env']}: there is nothing to learn from, or it is hard to come by"
        )
    how = {name: settings[name] for name in ("seeds", "is_deterministic")}
    result = {**known, **how, **own, "variants": worlds}
    before = read_evaluation(run) if (Path(run) / EVALUATION).is_file() else None
    if before is not None and _is_larger(before, result):
        say(
            f"{Path(run) / EVALUATION} stays as it is, of {before['num_episodes']} episodes in "
            f"{1 + len(before.get('variants') or {})} worlds; move it away to have this one kept"
        )
    else:
        say(f"{write_evaluation(run, result)}")
    if settings["video"]:
        for path in film(agent, run, meta, settings):
            say(f"{path}")
    return result


def _play(
    agent: Agent,
    run: Path | str,
    meta: Mapping[str, Any],
    changes: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """A block of the record: the agent in a world, and the floor in the same one."""
    num_envs = min(settings["num_envs"], settings["episodes"])
    episodes: dict[str, Any] = {
        "num_episodes": settings["episodes"],
        "seeds": settings["seeds"],
        "is_deterministic": settings["is_deterministic"],
        "score": crafter_score,
    }
    env = observed_again(run, num_envs=num_envs, processes=False, changes=changes)
    try:
        block = evaluate(agent.reading(env.single_observation_space), env, **episodes)
    finally:
        env.close()
    bare = make_vec(meta["env"], num_envs, **{**meta["env_arguments"], **changes})
    try:
        floor = evaluate(RandomAgent(bare.single_action_space, seed=0), bare, **episodes)
    finally:
        bare.close()
    return {**block, "floor": _figures(floor)}


def _is_larger(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether an evaluation of the same agent has more episodes, or worlds that this one lacks."""
    if before["step"] != now["step"]:
        return False
    worlds = set(before.get("variants") or {}) - set(now["variants"])
    return bool(worlds) or before["num_episodes"] > now["num_episodes"]


def _figures(block: Mapping[str, Any]) -> dict[str, Any]:
    """What of a block stands beside another one."""
    kept = ("source", "num_episodes", "mean", "score", "interval")
    return {name: block[name] for name in kept if name in block}


def film(
    agent: Agent, run: Path | str, meta: Mapping[str, Any], settings: Mapping[str, Any]
) -> list[Path]:
    """Write the video of an episode, see `episode`."""
    env: Any = observed_again(run, num_envs=1, processes=False)
    try:
        has_slots = meta["observation"]["main"] == SLOTS
        recording = episode(agent, env, has_slots=has_slots, settings=settings)
    finally:
        env.close()
    rate = settings["frames_per_second"]
    return write_video(run, recording, frames_per_second=rate, num_gif_frames=_NUM_GIF_FRAMES)


def episode(agent: Agent, env: Any, *, has_slots: bool, settings: Mapping[str, Any]) -> Recording:
    """Play the episode of the first of the seeds in one environment, and keep what was seen."""
    columns = env.get_attr("object_columns")[0] if not has_slots else ()
    with own_random_numbers(settings["seeds"][0]):
        return record(
            agent,
            env,
            _look_at(env, has_slots=has_slots),
            seed=settings["seeds"][0],
            num_steps=settings["video_steps"],
            is_deterministic=settings["is_deterministic"],
            action_names=env.get_attr("action_names")[0] or None,
            object_columns=columns,
        )


def moving_picture(
    agent: Agent, env: Any, *, has_slots: bool, settings: Mapping[str, Any]
) -> bytes:
    """The end of that episode as a GIF, for TensorBoard; closes the environment."""
    try:
        video = draw(episode(agent, env, has_slots=has_slots, settings=settings))
    finally:
        env.close()
    rate = settings["frames_per_second"]
    return to_gif(video[-_NUM_GIF_FRAMES:], frames_per_second=rate)


def _look_at(env: Any, *, has_slots: bool) -> Look:
    """What an agent sees, the views of several cameras side by side."""

    def look() -> tuple[NDArray[np.uint8], NDArray[np.float32] | None]:
        if not has_slots:
            return env.call("render")[0], None
        height, width = env.slots.stream.grid
        attn = rearrange(env.slots.stream.attn[0], "k (v h w) -> k h (v w)", h=height, w=width)
        views = env.slots.frames.reshape(-1, *env.slots.frames.shape[-3:])
        return rearrange(views, "v h w c -> h (v w) c"), attn

    return look
