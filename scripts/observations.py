"""What an agent is given to see: environments that show frames, true objects or slots."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hydra
from encoder_modes import Encoder
from gymnasium.vector import VectorEnv
from launch import choices_of_environment
from omegaconf import DictConfig
from pretraining import pretrain
from rich.console import Console

import ocrl
from ocrl import checkpoint
from ocrl.agents import saving
from ocrl.device import find_device
from ocrl.envs import make_vec
from ocrl.envs.observation import CAMERAS
from ocrl.envs.recent_frames import RecentFrames
from ocrl.envs.slots import SlotVectorEnv
from ocrl.model import SlotModel
from ocrl.posed import chooser_of

SLOTS, FRAME = "slots", "frame"


def make_observed(
    env: str,
    *,
    arguments: Mapping[str, Any],
    observation: Mapping[str, Any],
    model: SlotModel | None,
    num_envs: int,
    processes: bool,
    remember: int = 0,
    has_frame: bool = False,
) -> VectorEnv[Any, Any, Any]:
    """Build a vector environment whose observations are what an agent learns from.

    Of several cameras an encoder of posed views sees as many as in its training, the first ones;
    frames without slots have those of all cameras as further colours.

    Args:
        env: name of the environment.
        arguments: of the environment.
        observation: `main` (frame, objects or slots), `vectors` beside it, and how slots and
            objects are given; see `configs/agent.yaml`.
        model: whose slots are observed.
        num_envs: how many environments.
        processes: one process per environment.
        remember: frames of how many steps are kept below the slots, see `RecentFrames`.
        has_frame: whether frames stand beside the slots.

    Raises:
        ValueError: if a part of the observation does not exist, or slots are asked for and the
            frames are of another size than the model's, or its encoder is of posed views and there
            are no or too few cameras, or it is not and there are several.
    """
    main = observation["main"]
    is_posed = main == SLOTS and model is not None and model.encoder.backbone.needs_camera
    parts = [FRAME if main == SLOTS else main, *(CAMERAS if is_posed else ())]
    frames: VectorEnv[Any, Any, Any] = make_vec(
        env,
        num_envs,
        processes=processes,
        observe=[*parts, *observation["vectors"]],
        is_shuffled=observation["is_shuffled"],
        is_stacked=main == FRAME,
        **arguments,
    )
    if main != SLOTS:
        return frames
    if model is None:
        raise ValueError("expected an encoder for obs=slots, got none")
    if remember:
        frames = RecentFrames(frames, num_steps=remember)
    is_of_decoder = observation["has_geometry"] and observation["geometry_of"] == "decoder"
    return SlotVectorEnv(
        frames,
        model.encoder,
        num_views=chooser_of(model).num_seen if is_posed else None,
        decoder=model.decoder if is_of_decoder else None,
        has_geometry=observation["has_geometry"],
        has_frame=has_frame,
        is_noisy=observation["is_noisy"],
    )


def observed_again(
    run: Path | str, *, num_envs: int, processes: bool, changes: Mapping[str, Any] | None = None
) -> VectorEnv[Any, Any, Any]:
    """The environments of a trained agent, with its own encoder.

    Args:
        run: directory of the agent's run.
        num_envs: how many environments.
        processes: one process per environment.
        changes: arguments of the environment that differ from those of training.

    Raises:
        FileNotFoundError: if there is no agent, or its encoder is gone.
        ValueError: if its encoder is another one now, or as `make_observed`.
    """
    meta = saving.read_meta(run)
    encoder = saving.encoder_path(run)
    is_slots = meta["observation"]["main"] == SLOTS
    return make_observed(
        meta["env"],
        arguments={**meta["env_arguments"], **(changes or {})},
        observation=meta["observation"],
        model=ocrl.load(encoder) if is_slots and encoder is not None else None,
        num_envs=num_envs,
        processes=processes,
    )


def find_encoder(config: DictConfig, *, env: str, directory: Path, console: Console) -> Encoder:
    """The encoder at `encoder.path`, or one that is pretrained in the run's directory first.

    Raises:
        FileNotFoundError: if there is nothing at `encoder.path`.
        ValueError: if it was trained on another environment.
    """
    path = config.encoder.path
    if path is None:
        path = directory / "encoder"
        if not (path / "metrics.json").is_file():
            console.print(f"no encoder.path given: pretraining slots of {env} in {path}")
            recipe = pretraining_recipe(config, env)
            pretrain(recipe, directory=path, env=env, encoder="of the recipe")
    found = checkpoint.find(path)
    trained_on = checkpoint.read_meta(found)["env"]
    if trained_on.split("-")[0] != env.split("-")[0] and not config.encoder.any_env:
        raise ValueError(
            f"expected an encoder of env={env}, got one trained on {trained_on} at {found}; "
            "encoder.any_env=true takes it all the same"
        )
    settings = checkpoint.plain(config.encoder)
    model = ocrl.load(found).to(find_device(settings["device"]))
    return Encoder(model, found, saving.describe_part(found, directory), settings)


def pretraining_recipe(config: DictConfig, env: str) -> DictConfig:
    """What `pretrain_slots.py env=...` would do, for this very environment."""
    side = config.env.size
    chosen = [f"env={env}", f"image_size=[{side},{side}]", *config.encoder.pretrain]
    overrides = [*choices_of_environment("pretrain", chosen), *chosen, "name=encoder"]
    recipe = hydra.compose("pretrain", overrides=overrides)
    recipe.env = config.env
    return recipe
