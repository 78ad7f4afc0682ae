"""Slots from rollouts of an environment, from nothing to a measured checkpoint."""

from __future__ import annotations

from pathlib import Path

import hydra
import torch
from episodes import find_episodes
from omegaconf import DictConfig
from rich.console import Console

import ocrl
from ocrl import checkpoint
from ocrl.data.clips import ClipLoader, Prefetcher, evaluation_clips
from ocrl.discovery import evaluate_discovery
from ocrl.distributed import join_world
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
    model_config = {"_target_": "ocrl.model.SlotModel"} | {
        name: settings[name]
        for name in ("encoder", "decoder", "objectives", "weights", "is_conditioned")
    }
    with join_world(trainer.device) as world:
        console = Console(stderr=True, quiet=not world.is_first, soft_wrap=True)
        torch.manual_seed(trainer.seed)
        model = checkpoint.build(model_config)
        if settings["start_from"] is not None:
            checkpoint.load_encoder(model.encoder, settings["start_from"])
        if not checkpoint.load_teachers(model) and settings["teacher"] is not None:
            raise ValueError("expected an objective that learns from teacher=PATH, got none")
        store = find_episodes(
            env,
            arguments=settings["env"],
            image_size=settings["image_size"],
            path=data["path"],
            default_path=directory / "episodes",
            collection=settings["collect"],
            world=world,
            console=console,
        )
        shared = {"holdout": data["holdout"], "image_size": settings["image_size"]}
        loader = ClipLoader(
            store,
            clip_length=data["clip_length"],
            batch_size=data["batch_size"],
            seed=trainer.seed,
            objects=settings["is_conditioned"],
            rank=world.rank,
            world_size=world.size,
            **shared,
        )
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
