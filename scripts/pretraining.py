"""Slots from rollouts of an environment, from nothing to a measured checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hydra
import torch
from episodes import find_episodes
from omegaconf import DictConfig
from rich.console import Console

import ocrl
from ocrl import checkpoint
from ocrl.data.clips import ClipLoader, Prefetcher, evaluation_clips
from ocrl.data.store import EpisodeStore
from ocrl.discovery import evaluate_discovery
from ocrl.distributed import World, join_world
from ocrl.model import SlotModel
from ocrl.monitor import DiscoveryMonitor
from ocrl.report import summary, write_results
from ocrl.train import Run, Trainer


def pretrain(config: DictConfig, *, directory: Path, env: str, encoder: str) -> None:
    """Collect rollouts, train slots on them, measure; each part goes on where it was stopped.

    Args:
        config: what `configs/pretrain.yaml` composes to.
        directory: of the run.
        env: short name of the environment.
        encoder: name of the encoder's configuration, for the report.
    """
    settings = checkpoint.plain(config)
    data, evaluation = settings["data"], settings["evaluation"]
    trainer: Trainer = hydra.utils.instantiate(config.trainer, _convert_="all")
    with join_world(trainer.device) as world:
        console = Console(stderr=True, quiet=not world.is_first, soft_wrap=True)
        model, model_config = new_model(settings, seed=trainer.seed)
        if not checkpoint.load_teachers(model) and settings["teacher"] is not None:
            raise ValueError("expected an objective that learns from teacher=PATH, got none")
        store = rollouts(settings, directory=directory, env=env, world=world, console=console)
        shared = {"holdout": data["holdout"], "image_size": settings["image_size"]}
        loader = training_clips(store, settings, seed=trainer.seed, world=world, **shared)
        held_out = shared | {
            "clip_length": evaluation["clip_length"],
            "segmentation": [p for p in data["presets"] if f"segmentation/{p}" in store.arrays],
            "objects": any(name.startswith("objects/") for name in store.arrays),
        }
        trainer.fit(
            model,
            optimizer=hydra.utils.instantiate(config.optimizer, _convert_="all"),
            batches=lambda step: Prefetcher(loader, start_step=step, device=world.device),
            run=Run(directory, model_config, env=env, fingerprint=store.fingerprint),
            world=world,
            evaluate=DiscoveryMonitor(
                lambda: evaluation_clips(
                    store, num_clips=evaluation["num_clips_in_training"], **held_out
                ),
                presets=data["presets"],
                mask_source=evaluation["mask_source"],
                device=world.device,
                say=console.print,
            ),
        )
        if world.is_first:
            console.print("measuring object discovery on held-out episodes")
            result = evaluate_discovery(
                ocrl.load(directory).to(world.device),
                evaluation_clips(store, num_clips=evaluation["num_clips"], **held_out),
                presets=data["presets"],
                mask_source=evaluation["mask_source"],
                device=world.device,
            )
            details = {"encoder": encoder, "checkpoint": str(checkpoint.find(directory))}
            written = write_results(directory, result, title=f"Slots on {env}", details=details)
            for sentence in summary(result):
                console.print(sentence, soft_wrap=True, highlight=False)
            names = ", ".join(path.name for path in written)
            console.print(f"{names}, checkpoint, tensorboard: {directory}", soft_wrap=True)


def new_model(settings: Mapping[str, Any], *, seed: int) -> tuple[SlotModel, dict[str, Any]]:
    """The model of a training run before its first step, and the configuration it is saved with.

    Args:
        settings: plain values of `configs/pretrain.yaml`.
        seed: of the weights.

    Raises:
        FileNotFoundError: if there is nothing at `start_from`.
        ValueError: if the parts do not fit each other, or what is at `start_from`.
    """
    parts = ("encoder", "decoder", "objectives", "weights", "is_conditioned")
    config = {"_target_": "ocrl.model.SlotModel"} | {name: settings[name] for name in parts}
    torch.manual_seed(seed)
    model = checkpoint.build(config)
    if settings["start_from"] is not None:
        checkpoint.load_encoder(model.encoder, settings["start_from"])
    return model, config


def rollouts(
    settings: Mapping[str, Any], *, directory: Path, env: str, world: World, console: Console
) -> EpisodeStore:
    """The episodes at `data.path`, or those that the run's directory has or collects."""
    return find_episodes(
        env,
        arguments=settings["env"],
        image_size=settings["image_size"],
        path=settings["data"]["path"],
        default_path=directory / "episodes",
        collection=settings["collect"],
        world=world,
        console=console,
    )


def training_clips(
    store: EpisodeStore, settings: Mapping[str, Any], *, seed: int, world: World, **options: Any
) -> ClipLoader:
    """This process's share of the clips of each step; `options` are those of `ClipLoader`."""
    return ClipLoader(
        store,
        clip_length=settings["data"]["clip_length"],
        batch_size=settings["data"]["batch_size"],
        seed=seed,
        objects=settings["is_conditioned"],
        rank=world.rank,
        world_size=world.size,
        **options,
    )
