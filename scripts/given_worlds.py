"""A trained world model for an agent: found, with its encoder, and told what is wanted of it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from agent_training import Trainer
from numpy.typing import NDArray
from omegaconf import DictConfig
from PIL import Image

import ocrl
from ocrl import checkpoint
from ocrl.agents import saving
from ocrl.agents.given_world import GivenWorld, LearnedWorld, TrainedWorld
from ocrl.agents.model_based import ModelBased
from ocrl.model import SlotModel
from ocrl.stream import SlotStream


def find_world(config: DictConfig, trainer: Trainer, *, directory: Path) -> GivenWorld | None:
    """The world model at `world_model.path`; None where there is none, and one is learned.

    Its encoder becomes that of `encoder.path`, if slots are observed; one that is there already has
    to be the same.

    Args:
        config: of `configs/agent.yaml`; `encoder.path` is filled in.
        trainer: of the agent.
        directory: of the run.

    Raises:
        FileNotFoundError: if there is nothing at the path, or no picture at `goal`.
        ValueError: if there is no world model, the agent has none or learns its encoder on, its
            encoder is another one than that of `encoder.path`, or there is a goal without a world
            model of episodes.
    """
    path = config.world_model.path
    if path is None:
        if config.goal is not None:
            raise ValueError(
                "expected world_model.path=RUN beside a goal, got none: a world model that is "
                "learned while acting has no slots of a picture before it has learned"
            )
        return None
    if not isinstance(trainer, ModelBased):
        raise ValueError(
            "expected agent=planning or imagination with world_model.path, got another"
        )
    if saving.is_agent(path):
        return _of_agent(config, directory)
    if config.observation.main != "slots" or config.encoder.mode != "frozen":
        raise ValueError(
            "expected obs=slots and encoder.mode=frozen with world_model.path, which foretells the "
            f"slots of its own encoder, got {config.observation.main} and {config.encoder.mode}"
        )
    described = saving.describe_part(checkpoint.find(path), directory)
    world = TrainedWorld.load(path, learns=config.world_model.learns, described=described)
    _share_encoder(config, world, directory)
    return (
        world if config.goal is None else world.aiming_at(slots_of(world.model.model, config.goal))
    )


def _of_agent(config: DictConfig, directory: Path) -> LearnedWorld:
    """The world model of an agent at `world_model.path`, and its encoder."""
    path = config.world_model.path
    if config.world_model.learns or config.goal is not None or config.encoder.mode != "frozen":
        raise ValueError(
            f"expected world_model.learns=false, encoder.mode=frozen and no goal with that of the "
            f"agent {path}, got {config.world_model.learns}, {config.encoder.mode} and "
            f"{config.goal}"
        )
    described = saving.describe_part(saving.find(path), directory)
    world = LearnedWorld.load(path, described=described)
    known = saving.encoder_path(path)
    if config.encoder.path is not None:
        saving.check_encoder(path, config.encoder.path)
    elif known is not None:
        config.encoder.path = str(known)
    return world


def _share_encoder(config: DictConfig, world: TrainedWorld, directory: Path) -> None:
    """Let the environments make slots by the encoder that the world model knows."""
    own = world.model.model
    if config.encoder.path is None:
        folder = directory / "encoder" / checkpoint.FOLDER
        if not folder.is_dir():
            env = checkpoint.read_meta(world.path)["env"]
            checkpoint.save(folder, own, config=world.config["model"], step=0, env=env)
            measured = checkpoint.find(config.world_model.path).parent / "slots" / "metrics.json"
            if measured.is_file():
                shutil.copy(measured, folder.parent)
        config.encoder.path = str(folder)
    found = ocrl.load(config.encoder.path)
    weights, known = found.encoder.state_dict(), own.encoder.state_dict()
    is_same = weights.keys() == known.keys()
    if not is_same or not all(torch.equal(weights[name], known[name]) for name in weights):
        raise ValueError(
            f"expected the encoder that the world model {world.path} foretells the slots of, got "
            f"another at {config.encoder.path}; leave encoder.path out to take its own"
        )


def slots_of(model: SlotModel, path: Path | str) -> NDArray[Any]:
    """The slots (1,K,D) of a picture.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is of another size than the encoder's.
    """
    with Image.open(path) as picture:
        frame = np.asarray(picture.convert("RGB"))
    size = tuple(model.encoder.backbone.image_size)
    if frame.shape[:2] != size:
        raise ValueError(f"expected a picture of {size} pixels at {path}, got {frame.shape[:2]}")
    return SlotStream(model.encoder, num_envs=1).reset(frame[None])
