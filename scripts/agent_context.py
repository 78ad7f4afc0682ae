"""What stands around a run's result: whose it is, worlds it has not seen, a ceiling."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from mistakes import CONFIGS, unknown

from ocrl import checkpoint
from ocrl.agents import saving
from ocrl.agents.comparison_table import Published, published_of
from ocrl.agents.results import HEADLINES, read_evaluation
from ocrl.agents.slot_quality import KEY
from ocrl.discovery import MODEL
from ocrl.envs import registry
from ocrl.envs.crafter import crafter_score


def identity(
    run: Path | str, *, meta: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, Any]:
    """What `evaluation.json` says of whose it is: environment, observation, agent, seed, step."""
    return {
        "env": registry.label(meta["env"], meta["env_arguments"]),
        "obs": _observation(run, meta=meta, config=config),
        "agent": _agent(meta=meta, config=config),
        "seed": config["training"]["seed"],
        "step": meta["step"],
        "training": _training(meta),
        KEY: discovery_of(run),
    }


def discovery_of(run: Path | str) -> dict[str, float] | None:
    """What pretraining measured of a run's slots; None without slots, or if it is not there.

    Of the first segmentation that was scored.
    """
    path = saving.encoder_path(run)
    file = None if path is None else path.parent / "metrics.json"
    if file is None or not file.is_file():
        return None
    presets = json.loads(file.read_text()).get("table", {}).get(MODEL, {})
    return next(iter(presets.values()), None)


def _observation(run: Path | str, *, meta: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """What the agent sees; of slots also the encoder's kind, and how it learns on if it does."""
    main = {"frame": "pixels"}.get(meta["observation"]["main"], meta["observation"]["main"])
    if config["encoder"] is not None:
        main = f"slots ({_kind(config['encoder'])}, gradient)"
    elif meta["encoder"] is not None:
        path = saving.encoder_path(run)
        assert path is not None
        tuned = ", replay" if "origin" in meta["encoder"] else ""
        main = f"slots ({_kind(checkpoint.read_config(path)['encoder'])}{tuned})"
    return "+".join([main, *meta["observation"]["vectors"]])


def _kind(encoder: Mapping[str, Any]) -> str:
    return str(encoder["_target_"]).split(".")[-2]


def _agent(*, meta: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    solvers = config.get("arguments", {})
    if "continuous" in solvers:
        kind = "discrete" if meta["action_space"]["kind"] == "discrete" else "continuous"
        world = meta.get("world_model")
        given = "" if world is None else ", world model given"
        if world is not None and "of" in world:
            given = f", after {world['of']}"
        name = str(solvers[kind]["_target_"]).rpartition(".")[2]
        return f"{config['algorithm']} {name}{given}"
    is_pixels = meta["observation"]["main"] == "frame" and config["encoder"] is None
    name = str(config["vision" if is_pixels else "pooling"]["_target_"]).rpartition(".")[2]
    begun = config["training"].get("replay", {}).get("rollouts")
    rollouts = "" if begun is None else ", begun with rollouts"
    return f"{config['algorithm']} {re.sub('(?<=[a-z])(?=[A-Z])', ' ', name).lower()}{rollouts}"


def _training(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Episodes of training; the published Crafter score is over all of them."""
    episodes, achieved = meta["training"]["num_episodes"], meta["training"]["achieved"]
    rates = {name: count / max(1, episodes) for name, count in achieved.items()}
    return {"num_episodes": episodes, "score": crafter_score(rates) if rates else None}


def variants_of(
    env: str, arguments: Mapping[str, Any], wanted: bool | Sequence[str]
) -> dict[str, dict[str, Any]]:
    """The held-out worlds of an environment: arguments in place of those of training, by name.

    Raises:
        ValueError: if one is asked for that there is not.
    """
    files = [CONFIGS / "variants" / f"{stem}.yaml" for stem in (env, env.split("-")[0])]
    found = [yaml.safe_load(file.read_text()) for file in files if file.is_file()][:1]
    # The free world has no task, and a world that is no other than that of training is no test.
    known: dict[str, dict[str, Any]] = {
        name: changes
        for name, changes in (found[0] if found and arguments.get("task") != "free" else {}).items()
        if any(arguments[key] != value for key, value in changes.items())
    }
    if isinstance(wanted, bool):
        return known if wanted else {}
    for name in wanted:
        if name not in known:
            raise ValueError(unknown("variant", name, known or ["none"]))
    return {name: known[name] for name in wanted}


def find_ceiling(wanted: str | None, env: str, published: Published) -> dict[str, Any] | None:
    """The evaluation of a run at a path, or a published figure, by name or the one marked so.

    Raises:
        ValueError: if it is neither, or the run is of another environment.
    """
    entries = published_of(env, published)
    if wanted is not None and Path(wanted).is_dir():
        found = read_evaluation(wanted)
        if found["env"] != env:
            raise ValueError(f"expected a ceiling of {env}, got {wanted} of {found['env']}")
        return {**found, "source": f"the run {Path(wanted).name}"}
    for entry in entries:
        if entry["name"] == wanted or (wanted is None and entry.get("is_ceiling")):
            mean = {name: entry[name] for name in HEADLINES[1:] if name in entry}
            source = f"{entry['name']}: {entry['source']}"
            return {"source": source, "mean": mean, "score": entry.get("score")}
    if wanted is not None:
        raise ValueError(unknown("run or published figure", wanted, [e["name"] for e in entries]))
    return None
