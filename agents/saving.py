"""Agents on disk: one folder that describes itself, and executes nothing when it is loaded.

policy.safetensors  weights: tensors only
config.yaml         a `_target_` and plain values
meta.json           version, step, environment, observation, spaces, encoder
encoder/            the slot model, where the agent tunes it
resume/             only needed to go on training
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gymnasium.spaces import Space

from ocrl import checkpoint
from ocrl.agents import spaces
from ocrl.agents.interface import Agent

VERSION = 1
"""Of the folder's layout; an agent of another one is refused."""
FOLDER = "agent"
"""Where a run keeps its agent, inside the run's directory."""
WEIGHTS = "policy.safetensors"
"""The file of an agent's weights, in that folder."""
ASKED = "asked"
"""Entry of `meta.json`: what the run was asked for, as far as it decides what is learned."""


def find(path: Path | str) -> Path:
    """Find the folder of an agent: the path itself, or the one in a run's directory.

    Raises:
        FileNotFoundError: if there is none.
    """
    found = checkpoint.find_folder(path, FOLDER, files=("meta.json", "config.yaml"))
    if found is None:
        raise FileNotFoundError(
            f"expected an agent (policy.safetensors, config.yaml, meta.json) at {path}"
        )
    return found


def read_meta(path: Path | str) -> dict[str, Any]:
    """Read what an agent's folder says of itself.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it was written in another version of the layout, or is damaged.
    """
    file = find(path) / "meta.json"
    try:
        meta = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    if not isinstance(meta, dict) or "observation_space" not in meta:
        raise ValueError(f"{file} is not that of an agent")
    if meta.get("version") != VERSION:
        raise ValueError(
            f"agent {file.parent}: expected version {VERSION}, got {meta.get('version')}; load it "
            "with the release that wrote it"
        )
    return meta


def read_config(path: Path | str) -> dict[str, Any]:
    """Read what an agent is built from.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is damaged.
    """
    return checkpoint.read_yaml(find(path) / "config.yaml")


def load(path: Path | str, *, env: Any = None, encoder: Path | str | None = None) -> Agent:
    """Load an agent, on the CPU.

    Args:
        path: a run's directory, or the folder `agent` in it.
        env: a vector environment that the agent is to act in, to check that it fits.
        encoder: checkpoint of the encoder whose slots the agent is to be given, to check that it
            is the one that it learned with.

    Raises:
        FileNotFoundError: if there is no agent.
        ValueError: if it is damaged, has another version, names an unknown class, or the
            environment or the encoder is not that of its training.
    """
    folder = find(path)
    meta, config = read_meta(folder), read_config(folder)
    target = checkpoint.find_class(str(config.get("_target_")), Agent)
    if encoder is not None:
        check_encoder(folder, encoder)
    if env is not None:
        check_env(folder, env)
    return target.restore(folder, config=config, meta=meta)


def check_encoder(path: Path | str, encoder: Path | str) -> None:
    """Refuse an encoder that an agent did not learn with.

    Raises:
        ValueError: if its hash is not the one that the agent names, or it names none.
    """
    known = read_meta(path)["encoder"]
    if known is None:
        raise ValueError(f"{find(path)} learned without an encoder, got that of {encoder}")
    found = checkpoint.digest(encoder)
    if found != known["hash"]:
        raise ValueError(
            f"{find(path)} learned with the encoder {known['path']} (hash {known['hash'][:12]}), "
            f"got that of {encoder} (hash {found[:12]}): its slots mean something else"
        )


def is_agent(path: Path | str) -> bool:
    """Whether there is an agent at a path, see `find`, and not a model."""
    return checkpoint.find_folder(path, FOLDER, files=("meta.json", WEIGHTS)) is not None


def digest(path: Path | str) -> str:
    """SHA-256 of the weights and the configuration of an agent or a model."""
    if not is_agent(path):
        return checkpoint.digest(path)
    folder = find(path)
    return checkpoint.digest_of([folder / "config.yaml", folder / WEIGHTS])


def describe_part(found: Path, run: Path) -> dict[str, str]:
    """What an agent's `meta.json` says of an encoder or a world model that it begins with.

    Args:
        found: the folder of its checkpoint, or of the agent that it is of.
        run: directory of the agent's run; a checkpoint in it is found wherever the run is moved.
    """
    found, run = found.resolve(), run.resolve()
    place = found.relative_to(run) if found.is_relative_to(run) else found
    return {"path": str(place), "hash": digest(found)}


def trained_steps(run: Path) -> int:
    """Environment steps that the agent of a run has learned from; 0 where there is none."""
    try:
        return int(read_meta(run)["step"])
    except FileNotFoundError:
        return 0


def is_finished(run: Path, total_steps: int) -> bool:
    """Whether the agent of a run has learned for so many steps, or has nothing to learn."""
    try:
        meta = read_meta(run)
    except FileNotFoundError:
        return False
    return int(meta["step"]) >= total_steps or bool(meta["training"].get("learns_nothing"))


def describe_kept(path: Path | str) -> str:
    """Which checkpoint of an agent there still is, as the end of a sentence about a failure."""
    try:
        step = read_meta(path)["step"]
    except FileNotFoundError:
        return "no checkpoint had been saved yet"
    return f"the checkpoint of step {step} in {path} is kept"


def check_same_run(
    path: Path | str, *, config: Mapping[str, Any], meta: Mapping[str, Any]
) -> dict[str, Any]:
    """Refuse to go on from an agent of another run.

    Args:
        path: of the agent.
        config: of this run's agent.
        meta: of this run; an encoder that was tuned is compared as what it was before.

    Returns:
        The whole of what the agent's `meta.json` says.

    Raises:
        ValueError: naming the first difference.
    """
    folder = find(path)
    saved = read_meta(folder)
    known = {name: saved.get(name) for name in meta}
    if ASKED in known and ASKED not in saved:
        # The agent is older than this is written down.
        known[ASKED] = checkpoint.plain(meta[ASKED])
    if isinstance(known["encoder"], dict):
        known["encoder"] = known["encoder"].get("origin", known["encoder"])
    difference = checkpoint.describe_difference(
        {**read_config(folder), **known},
        # As they come back from a file: tuples as lists.
        {**config, **checkpoint.plain(meta)},
    )
    if difference is not None:
        raise ValueError(
            f"{folder} belongs to another run: {difference}; give this one another name=... or "
            "move that folder away"
        )
    return saved


def check_finished(
    path: Path | str,
    *,
    asked: Mapping[str, Any],
    encoder: Path | str | None,
    world_model: Path | str | None,
) -> None:
    """Refuse to take a finished agent for one that was asked for otherwise.

    Args:
        path: of the agent; nothing is known of one that is older than this is written down.
        asked: what is asked for now.
        encoder: that it is to learn with; None if that is not said.
        world_model: that it is to begin with; None if that is not said.

    Raises:
        ValueError: naming the first difference.
    """
    saved = read_meta(path)
    known = saved.get(ASKED)
    difference = checkpoint.describe_difference(known, checkpoint.plain(asked)) if known else None
    for name, model in (("encoder", encoder), ("world_model", world_model)):
        if difference is None and model is not None and saved.get(name) is not None:
            begun_with = saved[name].get("origin", saved[name])
            if digest(model) != begun_with["hash"]:
                difference = f"its {name} is not that of {model}"
    if difference is not None:
        raise ValueError(
            f"{find(path)} was trained to its end in another run: {difference}; give this one "
            "another name=... or move that folder away"
        )


def encoder_path(path: Path | str) -> Path | None:
    """Checkpoint of the encoder that an agent learned with; None where there is none.

    Raises:
        FileNotFoundError: if it is not there any more.
        ValueError: if another one is there now.
    """
    folder = find(path)
    known = read_meta(folder)["encoder"]
    if known is None:
        return None
    # A tuned one is part of the agent; relative ones are inside the run, which may have been moved.
    found = folder / "encoder" if "origin" in known else folder.parent / known["path"]
    check_encoder(folder, found)
    return found


def check_env(path: Path | str, env: Any) -> None:
    """Refuse an environment with other spaces than those of an agent's training.

    Args:
        path: of the agent.
        env: a vector environment of Gymnasium or of Stable-Baselines3.

    Raises:
        ValueError: if a space differs; the message names both.
    """
    meta = read_meta(path)
    for name in ("observation_space", "action_space"):
        found: Space[Any] = getattr(env, f"single_{name}", None) or getattr(env, name)
        expected = spaces.from_json(meta[name])
        if spaces.to_json(found) != meta[name]:
            raise ValueError(
                f"{find(path)}: expected the {name.replace('_', ' ')} of its training, "
                f"{expected}, got {found}"
            )


def write(folder: Path, agent: Any, *, config: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
    """Write an agent that has `save_weights` into a folder, as part of `checkpoint.replacing`."""
    agent.save_weights(folder)
    checkpoint.write_yaml(folder / "config.yaml", config)
    (folder / "meta.json").write_text(json.dumps({"version": VERSION, **meta}, indent=2) + "\n")
